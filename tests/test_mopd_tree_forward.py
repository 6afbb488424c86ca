"""Shared prefixes are computed once, and nobody can tell from the states."""

import random
import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Llama4TextConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from agents import pocket
from mopd import tree_forward
from mopd.prefixes import prefix_tree
from mopd.scoring import Scored, backbone_of, sampled_hidden, shared_hidden
from mopd.tree_forward import can_share, tree_hidden

TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**TINY, num_hidden_layers=3, num_key_value_heads=2),
    # Every sixth layer sees everything, the others 24 tokens: shorter than any prefix here.
    "gemma3": Gemma3TextConfig(
        **TINY, num_hidden_layers=7, num_key_value_heads=1, sliding_window=24
    ),
    "gemma3, narrow": Gemma3TextConfig(
        **TINY, num_hidden_layers=2, num_key_value_heads=1, sliding_window=1
    ),
    "gpt2": GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2),
}


def random_model(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def group(vocabulary: int, size: int = 6, scale: int = 1) -> list[Scored]:
    """Leave-one-out contexts of one task, and responses with stretches that nobody sampled."""
    rng = random.Random(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(length * scale))

    task, first, second, third, failed = draw(20), draw(40), draw(45), draw(37), draw(30)
    contexts = [(first, second, failed)] * (size - 2)
    contexts += [(second, third, failed), (first, third, failed)]
    rows = []
    for i, context in enumerate(contexts):
        response = draw(12 + 5 * i)
        mask = tuple(j % 9 < 6 for j in range(len(response)))
        rows.append(Scored((*task, *(t for peer in context for t in peer)), response, mask))
    return rows


def naive_logprobs(model: torch.nn.Module, rows: list[Scored]) -> torch.Tensor:
    """Each row by a plain forward of its own."""
    pieces = []
    for row in rows:
        logits = model(input_ids=torch.tensor([[*row.context_ids, *row.response_ids]])).logits[0]
        pieces.append(logits[len(row.context_ids) - 1 : -1][torch.tensor(row.mask)])
    return torch.cat(pieces).log_softmax(-1)


def both_logprobs(model: torch.nn.Module, rows: list[Scored]) -> tuple[torch.Tensor, torch.Tensor]:
    head = model.get_output_embeddings()
    hidden = shared_hidden(backbone_of(model), model.config, rows), sampled_hidden(model, rows)
    shared, padded = (head(h).log_softmax(-1) for h in hidden)
    return shared, padded


@pytest.mark.parametrize("max_tokens", [2**14, 200])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_states_equal_those_of_each_row_alone(
    name: str, attention: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_forward, "MAX_TOKENS", max_tokens)  # 200: one or two rows a batch
    model = random_model(CONFIGS[name])
    model.set_attn_implementation(attention)
    rows = [*group(128), *group(128)[::-1]]
    wanted = naive_logprobs(model, rows)
    for got in both_logprobs(model, rows):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_states_of_the_pocket_student_equal_those_of_each_row_alone() -> None:
    model = AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32).eval()
    rows = group(model.config.vocab_size, scale=4)
    wanted = naive_logprobs(model, rows)
    for got in both_logprobs(model, rows):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_shared_prefix_goes_through_the_model_once() -> None:
    model = random_model(CONFIGS["qwen3"])
    rows = group(128)
    computed: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: computed.append(inputs[0].numel())
    )
    shared_hidden(model.model, model.config, rows)
    handle.remove()
    alone = sum(len(row.context_ids) + len(row.response_ids) for row in rows)
    distinct = prefix_tree([(*row.context_ids, *row.response_ids) for row in rows])
    assert sum(computed) < 1.2 * sum(len(s.token_ids) for s in distinct) < 0.6 * alone


@torch.no_grad()
def test_gradient_checkpointing_and_training_mode_are_left_as_they_were() -> None:
    model = random_model(CONFIGS["qwen3"])
    rows = group(128)
    wanted = shared_hidden(model.model, model.config, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it gets another name in transformers 6
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert torch.equal(shared_hidden(model.model, model.config, rows), wanted)
    assert model.training
    assert model.model.training


@torch.no_grad()
def test_rows_of_which_nothing_was_sampled_ask_for_nothing() -> None:
    model = random_model(CONFIGS["qwen3"])
    row, silent = group(128)[0], Scored((5, 6), (7, 8), (False, False))
    alone = shared_hidden(model.model, model.config, [row])
    assert torch.equal(shared_hidden(model.model, model.config, [silent, row]), alone)
    assert shared_hidden(model.model, model.config, [silent]).shape == (0, 32)


@torch.no_grad()
def test_wanted_states_come_in_the_order_in_which_they_are_asked_for() -> None:
    model = random_model(CONFIGS["qwen3"])
    short, long = tuple(range(3, 10)), tuple(range(20, 60))
    got = tree_hidden(model.model, model.config, [short, long, short], [[6, 0], [39], [0]])
    for hidden, (ids, position) in zip(
        got, [(short, 6), (short, 0), (long, 39), (short, 0)], strict=True
    ):
        alone = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, position]
        torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=0)


def test_models_whose_state_is_more_than_keys_and_values_do_not_share() -> None:
    assert all(can_share(config) for config in CONFIGS.values())
    assert not can_share(Qwen3NextConfig(num_hidden_layers=4))  # recurrent layers
    assert not can_share(Llama4TextConfig(num_hidden_layers=4))  # chunked attention
