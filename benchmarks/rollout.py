"""Multi-turn rollouts with a KV cache kept over turns, against `generate` anew at each turn.

`python benchmarks/rollout.py [--model NAME] [--episodes N] [--turns N] [--tokens N]`: both ways
have the same prompts, observations and lengths of turns.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForCausalLM

import envs
from agents.base import TurnRequest
from agents.chat import Chat
from agents.transformers_agent import TransformersAgent
from envs.types import Message
from mopd.config import ModelSection
from mopd.student import device_of, dtype_of, load_tokenizer, model_path

OBSERVATION = (Message("tool", "[3, 1, 4, 1, 5]\n(two more lines of output)"),)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/rollout.py")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=30, help="of each turn")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    measured = {}
    for name in WAYS:
        # In a process of its own, so that the peak of memory is its own, too.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured[name] = pool.apply(measure, (name, args))
    tokens = args.episodes * args.turns * args.tokens
    slowest = max(seconds for seconds, _ in measured.values())
    print(f"{args.model}: {args.episodes} episodes x {args.turns} turns x {args.tokens} tokens")
    print(f"{'':<28}{'seconds':>9}{'tokens/s':>10}{'ratio':>7}{'peak MB':>9}")
    for name, (seconds, peak_mb) in measured.items():
        row = f"{seconds:>9.2f}{tokens / seconds:>10.0f}{slowest / seconds:>7.2f}{peak_mb:>9.0f}"
        print(f"{name:<28}{row}")


def measure(name: str, args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a rollout of all episodes, and the peak of memory in MB."""
    section = ModelSection(name=args.model)
    device = device_of(section)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        model_path(args.model), dtype=dtype_of(section, device)
    )
    model = model.eval().to(device)
    env = envs.make("code")
    chat = Chat(load_tokenizer(section), env.schemas())
    chat.eos_id = -1  # no turn ends before its length
    prompts = [
        chat.prompt_ids(env.reset(options={"task": env.task(i // 8)})[0])
        for i in range(args.episodes)
    ]
    observation = chat.continuation_ids(OBSERVATION)
    seconds = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        transcripts = WAYS[name](model, chat, prompts, observation, args.turns, args.tokens)
        seconds.append(time.perf_counter() - started)
        grown = args.turns * args.tokens + (args.turns - 1) * len(observation)
        lengths = [len(prompt) + grown for prompt in prompts]
        assert [len(transcript) for transcript in transcripts] == lengths
    if device.type == "cuda":
        return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**20
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(seconds), peak_kib / 1024


def kept(
    model: torch.nn.Module,
    chat: Chat,
    prompts: Sequence[list[int]],
    observation: list[int],
    turns: int,
    tokens: int,
) -> list[list[int]]:
    agent = TransformersAgent(model, chat, max_context=2**31)
    transcripts = [list(prompt) for prompt in prompts]
    for number in range(turns):
        for transcript in transcripts if number else ():
            transcript += observation
        agent.submit([TurnRequest(i, ids, tokens, seed=i) for i, ids in enumerate(transcripts)])
        left = len(transcripts)
        while left:
            for turn in agent.advance():
                transcripts[turn.episode] += turn.token_ids
                left -= 1
    return transcripts


@torch.no_grad()
def anew(
    model: torch.nn.Module,
    chat: Chat,
    prompts: Sequence[list[int]],
    observation: list[int],
    turns: int,
    tokens: int,
) -> list[list[int]]:
    transcripts = [list(prompt) for prompt in prompts]
    for number in range(turns):
        for transcript in transcripts if number else ():
            transcript += observation
        longest = max(map(len, transcripts))
        padded = [[0] * (longest - len(ids)) + ids for ids in transcripts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in transcripts]
        ids_BT = model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
        )
        for transcript, said in zip(transcripts, ids_BT[:, longest:].tolist(), strict=True):
            transcript += said
    return transcripts


Way = Callable[[torch.nn.Module, Chat, Sequence[list[int]], list[int], int, int], list[list[int]]]
WAYS: dict[str, Way] = {"generate anew at each turn": anew, "cache kept over turns": kept}


if __name__ == "__main__":
    main()
