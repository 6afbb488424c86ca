"""`python -m agents.pocket.train`: the recipe that made the pocket student, from nothing.

Nobody here acts on a task's answer. Transcripts come from the noisy demonstrators, and so do the
peers in a prompt: in most of the prompts with a successful peer even the "success" is a random
reading, so what can be learnt is to follow successful peers and to avoid failed ones, not the
answers. Failures without a success beside them are real ones. Only train families are seen. Equal
seeds give equal weights on one machine.
"""

import argparse
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agents.chat import Chat
from agents.pocket import PATH
from agents.pocket.demonstrators import DEMONSTRATORS, Demonstrator, Reading
from agents.types import Trajectory
from envs.types import Message, StopReason, Task, Verdict
from mopd.config import PromptSection
from mopd.peers import PeerContext
from mopd.prompts import teacher_prompt_ids

CONTROL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
VOCABULARY = 1024
# What a prompt shows (S: a successful peer, F: a failed one, b: feedback), and how often.
CONTEXTS = {"": 0.38, "S": 0.09, "SS": 0.06, "SF": 0.09, "SSF": 0.20, "F": 0.11, "FF": 0.02,
            "Fb": 0.03, "b": 0.02}  # fmt: skip
GUESSED = 0.7  # of the prompts with a successful peer: its reading is random
SLIPS = 0.25  # of the same prompts: the agent departs in one phrase, and goes on from there
OVERLONG = 0.35  # of the failures beside a success: its transcript with a call too many
CRISP = 0.6  # of those with failures alone: a task of level 1, where to avoid them is to solve it
MAX_TOKENS = 1100
BATCH_TOKENS = 3072
OWN, PROMPT = 1.0, 0.3  # loss weights: the agent's tokens, the task with its evidence


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the weight of each token in the loss."""

    ids: list[int]
    weights: list[float]


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(prog="python -m agents.pocket.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH, help="folder (default: the package's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8200, help="batches of 3,072 tokens")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small is slower on two
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    demonstrators = [make() for make in DEMONSTRATORS]
    tokenizer = build_tokenizer(random.Random(args.seed), demonstrators)
    chats = {d: Chat(tokenizer, d.env.schemas()) for d in demonstrators}
    for chat in chats.values():
        chat.check()
    model = build_model(len(tokenizer))
    # Compiled, it is a third faster than torch's fused attention.
    model.set_attn_implementation("eager")
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    train(model, chats, random.Random(args.seed + 1), args.steps)
    tokenizer.save_pretrained(args.out)
    model.bfloat16().save_pretrained(args.out)


def build_tokenizer(
    rng: random.Random, demonstrators: Sequence[Demonstrator], texts: int = 6000
) -> PreTrainedTokenizerFast:
    """A byte-level BPE on the recipe's own texts; numbers fall into pieces of one or two digits.

    (Single digits did not learn to copy.) `\\n` inside JSON is a piece of its own, so that code
    is cut alike inside a call and outside.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\\n|\d{1,2}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    raw.decoder = decoders.ByteLevel()
    prompts = PromptSection()
    wording = [prompts.first_success, prompts.other_success, prompts.failure, prompts.feedback]
    corpus: list[str] = [*wording, prompts.closing] * (texts // 10)
    for _ in range(texts):
        demonstrator = rng.choice(demonstrators)
        task = demonstrator.draw(rng)
        reading = demonstrator.read(rng, task)
        corpus.append(task.prompt)
        corpus.append(demonstrator.feedback(task, reading))
        for message in demonstrator.act(rng, task, reading):
            corpus += [message.content, *(c.arguments for c in message.tool_calls)]
            corpus += ['{"name": "' + c.name + '", "arguments": ' for c in message.tool_calls]
            corpus += [f"call {c.name}\nresult: " for c in message.tool_calls]
    for demonstrator in demonstrators:
        env = demonstrator.env
        head = "system\nTools:\n" + "".join(map(str, env.schemas())).replace("'", '"')
        corpus += [f"{head}{env.system_prompt}\nassistant\nuser\ntool\n"] * (texts // 10)
    raw.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(CONTROL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers' own
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(CONTROL[1:]),
        chat_template=(PATH / "chat_template.jinja").read_text(),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_model(vocabulary: int) -> Qwen3ForCausalLM:
    """Qwen3's architecture, tiny."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen3ForCausalLM(config)


def make_example(
    rng: random.Random, demonstrator: Demonstrator, chat: Chat, kind: str
) -> Example | None:
    """One episode with the evidence that `kind` names.

    None where it is too long, or where a task can be read in no way but those that have failed.
    """
    only_failures = "F" in kind and "S" not in kind
    crisp = only_failures and rng.random() < CRISP
    task = demonstrator.draw_at(rng, 1) if crisp else demonstrator.draw(rng)
    target, shown = read_target_and_failures(rng, demonstrator, task, kind)
    if target in shown:
        return None
    context = PeerContext(
        successes=tuple(
            _peer(task, demonstrator.act(rng, task, target)) for _ in range(kind.count("S"))
        ),
        failures=tuple(
            _peer(task, failed(rng, demonstrator, task, r, target if "S" in kind else None))
            for r in shown[: kind.count("F")]
        ),
        feedback=demonstrator.feedback(task, shown[-1]) if "b" in kind else "",
    )
    messages = [Message("system", demonstrator.env.system_prompt), Message("user", task.prompt)]
    ids = teacher_prompt_ids(messages, context, PromptSection(), chat).token_ids
    head = len(chat.encode(chat.render(messages[:1]))) - 3  # constant text teaches nothing
    seed = rng.getrandbits(32)
    response = _response(chat, demonstrator.act(random.Random(seed), task, target))
    if "S" in kind and rng.random() < SLIPS:
        slip = _with_one_changed(rng, demonstrator, task, target)
        if slip not in shown:  # else it would be learnt to copy the failure
            said = _response(chat, demonstrator.act(random.Random(seed), task, slip))
            response = without_departure(said, response)
    weights = [0.0] * head + [PROMPT] * (len(ids) - head) + response.weights
    example = Example([*ids, *response.ids], weights)
    return example if len(example.ids) <= MAX_TOKENS else None


def failed(
    rng: random.Random,
    demonstrator: Demonstrator,
    task: Task,
    wrong: Reading,
    success: Reading | None,
) -> tuple[Message, ...]:
    """The transcript of a failure: `wrong` throughout, or the success with a call of it too many.

    A model that has seen the former only takes the latter, which its own training brings about,
    for a way to go on: two peers agree up to there.
    """
    messages = demonstrator.act(rng, task, wrong)
    calls = [i for i, message in enumerate(messages) if message.tool_calls]
    if success is None or not calls or rng.random() >= OVERLONG:
        return messages
    at = rng.choice(calls)
    return (*demonstrator.act(rng, task, success)[:-1], *messages[at : at + 2], messages[-1])


def _response(chat: Chat, messages: Sequence[Message]) -> Example:
    """The agent's part of an episode, with what it observes."""
    ids: list[int] = []
    weights: list[float] = []
    for message in messages:
        if message.role == "tool":
            piece, weight = chat.continuation_ids([message]), 0.0
        else:
            piece, weight = [*chat.encode(assistant_text(message)), chat.eos_id], OWN
        ids += piece
        weights += [weight] * len(piece)
    return Example(ids, weights)


def without_departure(said: Example, meant: Example) -> Example:
    """`said`, where the token that first departs from `meant` weighs nothing.

    So the model learns to go on from a mistake as it is, and not to make it. A teacher that has
    learnt this blames a mistake where it is made and nothing that follows from it.
    """
    for i, (token, other) in enumerate(zip(said.ids, meant.ids, strict=False)):
        if token != other:
            return Example(said.ids, [*said.weights[:i], 0.0, *said.weights[i + 1 :]])
    return said


def assistant_text(message: Message) -> str:
    """An assistant's message as the model writes it."""
    calls = [
        f'<tool_call>\n{{"name": "{c.name}", "arguments": {c.arguments}}}\n</tool_call>'
        for c in message.tool_calls
    ]
    return "\n".join(part for part in (message.content, *calls) if part)


def read_target_and_failures(
    rng: random.Random, demonstrator: Demonstrator, task: Task, kind: str
) -> tuple[Reading, list[Reading]]:
    """What the target and the successful peers read, and what each failed one read."""
    failures = kind.count("F") + kind.count("b")
    if "S" in kind:
        draw = demonstrator.guess if rng.random() < GUESSED else demonstrator.read
        target = draw(rng, task)
        # One is drawn even where none is shown: the shipped weights come from these draws.
        wrong = [_other_than(rng, demonstrator, task, {target}) for _ in range(max(failures, 1))]
        return target, wrong[:failures]
    if not kind:
        return demonstrator.read(rng, task), []
    # Failures only: none of them is right, as a verifier would have it.
    right = tuple(next(iter(belief)) for belief in demonstrator.beliefs(task))
    shown = [_other_than(rng, demonstrator, task, {right}) for _ in range(failures)]
    return _other_than(rng, demonstrator, task, set(shown)), shown


def _with_one_changed(
    rng: random.Random, demonstrator: Demonstrator, task: Task, reading: Reading
) -> Reading:
    """One phrase read otherwise, by belief; the same where it can mean one thing only."""
    at = rng.randrange(len(reading))
    belief = demonstrator.beliefs(task)[at]
    others = [meaning for meaning in belief if meaning != reading[at]]
    if not others:
        return reading
    other = rng.choices(others, [belief[meaning] for meaning in others])[0]
    return (*reading[:at], other, *reading[at + 1 :])


def _other_than(
    rng: random.Random, demonstrator: Demonstrator, task: Task, excluded: set[Reading]
) -> Reading:
    for _ in range(50):
        reading = demonstrator.read(rng, task)
        if reading not in excluded:
            return reading
    return demonstrator.guess(rng, task)


def _peer(task: Task, messages: tuple[Message, ...]) -> Trajectory:
    return Trajectory(task, 0, (), (), (), messages, Verdict(0.0, False), StopReason.ANSWERED, "")


def train(
    model: Qwen3ForCausalLM, chats: dict[Demonstrator, Chat], rng: random.Random, steps: int
) -> None:
    """Weighted next-token prediction; Muon on matrices, AdamW on embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    forward = torch.compile(model, dynamic=True)
    tokens, losses = 0, []
    for step, batch in enumerate(batches(rng, chats, steps), start=1):
        share = step / steps
        factor = min(1.0, step / 60) * min(1.0, max(0.02, (1 - share) / 0.85))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        loss = weighted_loss(forward, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        tokens += sum(len(e.ids) for e in batch)
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            spent = sum(os.times()[:4])  # with the compiler's processes
            print(
                f"step {step}/{steps}  loss {sum(losses) / len(losses):.3f}  "
                f"{tokens / 1e6:.2f}M tokens  {spent / 60:.1f} CPU-minutes  "
                f"weights {digest(model)}",
                flush=True,
            )
            losses = []


def digest(model: torch.nn.Module) -> str:
    """The start of a SHA-256 of all weights: two runs of the recipe agree line by line."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()[:12]


def batches(
    rng: random.Random, chats: dict[Demonstrator, Chat], steps: int
) -> Iterator[list[Example]]:
    """`steps` batches of examples of like length; peers come in over the first quarter."""
    done = 0
    while done < steps:
        bare = 0.6 * max(0.0, 1 - done / steps / 0.25)
        pool: list[Example] = []
        while len(pool) < 160:
            demonstrator = rng.choice(list(chats))
            kind = rng.choices(list(CONTEXTS), list(CONTEXTS.values()))[0]
            kind = "" if rng.random() < bare else kind
            example = make_example(rng, demonstrator, chats[demonstrator], kind)
            if example is not None:
                pool.append(example)
        pool.sort(key=lambda e: len(e.ids))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if len(example.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        if len(groups[-1]) == 1:  # another shape for the compiler, which would cost a minute
            groups.pop()
        rng.shuffle(groups)
        for group in groups[: steps - done]:
            done += 1
            yield group


def weighted_loss(forward: Callable[..., Any], batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the next token, weighted; right-padded, padding weighs nothing."""
    length = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [0] * (length - len(e.ids)) for e in batch])
    weights = torch.tensor([e.weights + [0.0] * (length - len(e.ids)) for e in batch])[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()


if __name__ == "__main__":
    main()
