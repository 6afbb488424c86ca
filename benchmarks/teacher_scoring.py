"""Teacher scores with each shared prefix run once, against the usual ways: CPU seconds and memory.

`python benchmarks/teacher_scoring.py [--parts table growth] [--json FILE]`, some five minutes.
`table`: a random model of Gemma 3 270M's shape (262,144 tokens of vocabulary, float32), 8 rollouts
of 249 tokens or so behind 1,200. `growth`: a random model of the pocket student's shape, groups
of 4 to 64 and contexts of 256 to 8,192 tokens. Memory is the peak over the loaded model.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peak import peak_gib
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config
from transformers.models.gemma3 import Gemma3TextConfig

from mopd.head import logprobs_at
from mopd.scoring import Scored, sampled_hidden, sampled_ids, shared_hidden

SUPPORT = 100
GEMMA = Gemma3TextConfig(
    vocab_size=262_144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
    query_pre_attn_scalar=256,
)
POCKET = Qwen3Config(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    tie_word_embeddings=True,
    max_position_embeddings=16_384,
)

Way = Callable[[PreTrainedModel, Sequence[Scored], torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """One way on one case; `difference` is the largest in log-probability from the first way."""

    case: str
    way: str
    cpu_s: float
    peak_gib: float
    difference: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/teacher_scoring.py")
    parser.add_argument("--parts", nargs="+", choices=["table", "growth"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<34}{'way':<26}{'CPU s':>8}{'GiB':>7}{'time x':>8}{'difference':>12}")
    results: list[Measured] = []
    for part in args.parts or ["table", "growth"]:
        results += table() if part == "table" else growth()
    if args.json:
        text = json.dumps([asdict(result) for result in results], indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")


def table() -> list[Measured]:
    model = random_model(GEMMA)
    rows = group(size=8, context=1200, response=300)
    distinct = group(size=8, context=1200, response=300, leave_one_out=True)
    small = group(size=4, context=300, response=75)
    return [
        *compared("one context", model, rows, {"shared": shared, "response logits": responses}),
        *compared("leave one out", model, distinct, {"shared": shared, "row by row": each}),
        *compared("a quarter, 4 rollouts", model, small, {"shared": shared, "full": full}),
    ]


def growth() -> list[Measured]:
    model = random_model(POCKET)
    sizes = {"group": [(n, 1024) for n in (4, 16, 64)]}
    sizes["context"] = [(8, n) for n in (256, 1024, 4096, 8192)]
    results = []
    for size, context in (*sizes["group"], *sizes["context"]):
        rows = group(size, context, 200, leave_one_out=True)
        ways = {"shared": shared, "row by row": each, "one padded batch": padded}
        results += compared(f"group of {size}, context of {context}", model, rows, ways)
    return results


def compared(
    case: str, model: PreTrainedModel, rows: Sequence[Scored], ways: Mapping[str, Way]
) -> list[Measured]:
    """Each way once, the cheapest in memory first; printed as they come."""
    ids_NK = torch.randint(
        model.config.vocab_size,
        (sum(sum(row.mask) for row in rows), SUPPORT),
        generator=torch.Generator().manual_seed(0),
    )
    ids_NK[:, 0] = sampled_ids(rows, ids_NK.device)
    results: list[Measured] = []
    first = torch.zeros(0)
    for name, way in ways.items():
        with peak_gib() as peak:
            started = time.process_time()
            logprobs_NK = way(model, rows, ids_NK)
            seconds, used = time.process_time() - started, peak()
        first = first if results else logprobs_NK
        difference = float((logprobs_NK - first).abs().max())
        results.append(Measured(case, name, seconds, used, difference))
        times = seconds / results[0].cpu_s
        print(
            f"{case:<34}{name:<26}{seconds:>8.2f}{used:>7.2f}{times:>8.2f}{difference:>12.1e}",
            flush=True,
        )
    return results


def shared(model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
    """Ours: each prefix once, the head in chunks."""
    hidden_NH = shared_hidden(model.base_model, model.config, rows)
    return logprobs_at(model.lm_head, hidden_NH, ids_NK, 1.0)


def each(model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
    """Row by row: nothing shared, nothing padded, the head in chunks."""
    hidden_NH = torch.cat([sampled_hidden(model, [row]) for row in rows])
    return logprobs_at(model.lm_head, hidden_NH, ids_NK, 1.0)


def padded(model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
    """One right-padded batch, the head in chunks."""
    return logprobs_at(model.lm_head, sampled_hidden(model, rows), ids_NK, 1.0)


def responses(model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
    """One right-padded batch, logits of the responses."""
    return usual(model, rows, ids_NK, min(len(row.context_ids) for row in rows) - 1)


def full(model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
    """One right-padded batch, logits of all tokens."""
    return usual(model, rows, ids_NK, 0)


def usual(
    model: PreTrainedModel, rows: Sequence[Scored], ids_NK: torch.Tensor, start: int
) -> torch.Tensor:
    sequences = [torch.tensor([*row.context_ids, *row.response_ids]) for row in rows]
    ids_BT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths_B1 = torch.tensor([[len(sequence)] for sequence in sequences])
    logits_BTV = model(
        input_ids=ids_BT,
        attention_mask=(torch.arange(ids_BT.shape[1]) < lengths_B1).long(),
        use_cache=False,
        logits_to_keep=ids_BT.shape[1] - start,
    ).logits
    logprobs_BTV = logits_BTV.log_softmax(-1)
    pieces, done = [], 0
    for row, logprobs_TV in zip(rows, logprobs_BTV, strict=True):
        first = len(row.context_ids) - 1 - start
        predicting = logprobs_TV[first : first + len(row.mask)][torch.tensor(row.mask)]
        pieces.append(predicting.gather(-1, ids_NK[done : done + len(predicting)]))
        done += len(predicting)
    return torch.cat(pieces)


def group(size: int, context: int, response: int, *, leave_one_out: bool = False) -> list[Scored]:
    """Rollouts of random tokens and falling lengths, as two successes and a failure are shown.

    With `leave_one_out` the two successes see a third one in their own place.
    """
    rng = random.Random(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 1000) for _ in range(length))

    task, failed = draw(context // 12), draw(context // 4)
    one, two, three = (draw(context // 3) for _ in range(3))
    rows = []
    for i in range(size):
        peers = (one, two)
        if leave_one_out and i < 2:
            peers = ((two, three), (one, three))[i]
        said = draw(response - (17 * i) % (response // 2))
        context_ids = (*task, *peers[0], *peers[1], *failed)
        rows.append(Scored(context_ids, said, (True,) * len(said)))
    return rows


def random_model(config: Qwen3Config | Gemma3TextConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


if __name__ == "__main__":
    with torch.no_grad():
        main()
