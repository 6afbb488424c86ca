"""Multi-turn rollouts with a KV cache kept over turns, against `generate` anew at each turn.

`python benchmarks/rollout.py [--model NAME] [--episodes N] [--turns N] [--observation N]`: both
ways have the same prompts and observations, and the same scripted lengths of turns, which differ
as those of a real model do.
"""

import argparse
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import envs
from agents.base import TurnRequest
from agents.chat import Chat
from agents.transformers_agent import TransformersAgent
from mopd.config import ModelSection
from mopd.student import device_of, dtype_of, load_tokenizer, model_path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/rollout.py")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=30, help="of a turn, on average")
    parser.add_argument("--observation", type=int, default=20, help="tokens between turns")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    measured = {}
    for name in WAYS:
        # In a process of its own, so that the peak of memory is its own, too.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured[name] = pool.submit(measure, name, args).result()
    slowest = max(seconds for seconds, _ in measured.values())
    print(
        f"{args.model}: {args.episodes} episodes x {args.turns} turns of some {args.tokens} "
        f"tokens, observations of {args.observation}"
    )
    print(f"{'':<28}{'seconds':>9}{'ratio':>7}{'peak MB':>9}")
    for name, (seconds, peak_mb) in measured.items():
        print(f"{name:<28}{seconds:>9.2f}{slowest / seconds:>7.2f}{peak_mb:>9.0f}")


def measure(name: str, args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a rollout of all episodes, and the peak of memory in MB."""
    disable_progress_bar()
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
    chat.eos_id = -1  # no turn ends before its scripted length
    prompts = [
        chat.prompt_ids(env.reset(options={"task": env.task(i // 8)})[0])
        for i in range(args.episodes)
    ]
    rng = random.Random(0)
    lengths = [
        [rng.randint(args.tokens // 3, args.tokens * 5 // 3) for _ in range(args.turns)]
        for _ in prompts
    ]
    observation = [5] * args.observation
    seconds = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        transcripts = WAYS[name](model, chat, prompts, lengths, observation)
        seconds.append(time.perf_counter() - started)
        for transcript, prompt, turns in zip(transcripts, prompts, lengths, strict=True):
            grown = sum(turns) + (len(turns) - 1) * len(observation)
            assert len(transcript) == len(prompt) + grown
    if device.type == "cuda":
        return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**20
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(seconds), peak_kib / 1024


def kept(
    model: torch.nn.Module,
    chat: Chat,
    prompts: Sequence[list[int]],
    lengths: Sequence[list[int]],
    observation: list[int],
) -> list[list[int]]:
    agent = TransformersAgent(model, chat, max_context=2**31)
    transcripts = [list(prompt) for prompt in prompts]
    left = [list(turns) for turns in lengths]
    agent.submit([TurnRequest(i, ids, left[i].pop(0), i) for i, ids in enumerate(transcripts)])
    speaking = len(prompts)
    while speaking:
        for turn in agent.advance():
            i = turn.episode
            transcripts[i] += turn.token_ids
            if left[i]:
                transcripts[i] += observation
                agent.submit([TurnRequest(i, transcripts[i], left[i].pop(0), i)])
            else:
                agent.release(i)
                speaking -= 1
    return transcripts


@torch.no_grad()
def anew(
    model: torch.nn.Module,
    chat: Chat,
    prompts: Sequence[list[int]],
    lengths: Sequence[list[int]],
    observation: list[int],
) -> list[list[int]]:
    transcripts = [list(prompt) for prompt in prompts]
    for number in range(len(lengths[0])):
        for transcript in transcripts if number else ():
            transcript += observation
        longest, tokens = max(map(len, transcripts)), max(turns[number] for turns in lengths)
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
        said = ids_BT[:, longest:].tolist()
        for transcript, ids, turns in zip(transcripts, said, lengths, strict=True):
            transcript += ids[: turns[number]]
    return transcripts


Way = Callable[
    [torch.nn.Module, Chat, Sequence[list[int]], Sequence[list[int]], list[int]], list[list[int]]
]
WAYS: dict[str, Way] = {"generate anew at each turn": anew, "cache kept over turns": kept}


if __name__ == "__main__":
    main()
