"""vLLM: episodes that wait for nobody against lockstep, with tools of different slowness.

`.venv-vllm/bin/python benchmarks/engines.py`: all ways have the same prompts, the same lengths of
turns, and the same tools, which sleep between turns. Most turns are short and some are ten times
as long, as those of agents are. In lockstep a turn begins when all tools of the turn before are
done: by vLLM's own `LLM.generate`, as one uses it, and by our engine, which has less to do.
"""

import argparse
import heapq
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import envs
from agents import pocket
from agents.base import TurnRequest
from agents.chat import Chat
from agents.vllm_agent import VllmAgent
from agents.vllm_messages import EngineOptions
from agents.vllm_worker import engine_arguments, set_environment
from mopd.config import ModelSection
from mopd.student import load_tokenizer

# Transcripts and the lengths of their next turns -> these turns.
Say = Callable[[Sequence[list[int]], Sequence[int]], list[Sequence[int]]]
Way = Callable[[Sequence[list[int]], Sequence[list[int]], Sequence[list[float]], list[int]], None]
SLOWEST_S = (0.0, 0.25, 0.5, 1.0)  # tools take from 0 to so long


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/engines.py")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8, help="of the shortest turns")
    parser.add_argument("--observation", type=int, default=20, help="tokens between turns")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = envs.make("calculator")
    chat = Chat(load_tokenizer(ModelSection()), env.schemas())
    prompts = [
        chat.prompt_ids(env.reset(options={"task": env.task(i // 8)})[0])
        for i in range(args.episodes)
    ]
    rng = random.Random(0)
    lengths = [
        [int(args.tokens * min(12, rng.paretovariate(1.1))) for _ in range(args.turns)]
        for _ in prompts
    ]
    shares = [[rng.random() for _ in range(args.turns - 1)] for _ in prompts]
    options = EngineOptions(
        model=str(pocket.PATH),
        dtype="float32",
        eos_id=0,  # padding, which no model says: turns end at their scripted lengths
        max_context=1024,
        max_episodes=args.episodes,
        kv_cache_bytes=2**29,
        adapter_rank=None,
    )
    agent = VllmAgent(options, chat, reproducible=False)
    ways: dict[str, Way] = {
        "generate": partial(lockstep, by_library(options)),
        "lockstep": partial(lockstep, by_engine(agent)),
        "continuous": partial(continuous, agent),
    }
    drawn = sorted(length for turns in lengths for length in turns)
    print(
        f"{args.episodes} episodes x {args.turns} turns of {drawn[0]} to {drawn[-1]} tokens, "
        f"median {statistics.median(drawn):g}"
    )
    print(
        f"{'':<14}{'LLM.generate':>14}{'our engine':>16}"
        f"{'our engine':>16}{'continuous against':>24}"
    )
    print(
        f"{'tools, s':<14}{'in lockstep, s':>14}{'in lockstep, s':>16}{'continuous, s':>16}"
        f"{'generate':>12}{'lockstep':>12}"
    )
    rows: list[dict[str, float]] = []
    try:
        for slowest_s in SLOWEST_S:
            tools = [[share * slowest_s for share in turn] for turn in shares]
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for repeat in range(args.repeats + 1):
                for name, way in ways.items():
                    started = time.perf_counter()
                    way(prompts, lengths, tools, [5] * args.observation)
                    if repeat:  # the first is to get warm
                        seconds[name].append(time.perf_counter() - started)
            row = {name: statistics.median(times) for name, times in seconds.items()}
            whole, lock, free = row["generate"], row["lockstep"], row["continuous"]
            print(
                f"0 to {slowest_s:<9g}{whole:>14.2f}{lock:>16.2f}{free:>16.2f}"
                f"{whole / free:>12.2f}{lock / free:>12.2f}",
                flush=True,
            )
            rows.append({"slowest_tool_s": slowest_s} | {f"{k}_s": v for k, v in row.items()})
    finally:
        agent.close()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def by_library(options: EngineOptions) -> Say:
    """vLLM as one calls it from Python, told what our engine tells it."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    set_environment()
    # Not installed where the types are checked: its pins exclude a current torch.
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    library = LLM(**engine_arguments(options))

    def say(transcripts: Sequence[list[int]], lengths: Sequence[int]) -> list[Sequence[int]]:
        samplings = [
            SamplingParams(max_tokens=n, ignore_eos=True, logprobs=0, seed=i, detokenize=False)
            for i, n in enumerate(lengths)
        ]
        prompts = [{"prompt_token_ids": ids} for ids in transcripts]
        said = library.generate(prompts, samplings, use_tqdm=False)
        return [output.outputs[0].token_ids for output in said]

    return say


def by_engine(agent: VllmAgent) -> Say:
    """Our engine, which generates for whoever is asked."""

    def say(transcripts: Sequence[list[int]], lengths: Sequence[int]) -> list[Sequence[int]]:
        asked = enumerate(zip(transcripts, lengths, strict=True))
        agent.submit([TurnRequest(i, ids, n, i) for i, (ids, n) in asked])
        said: dict[int, Sequence[int]] = {}
        while len(said) < len(transcripts):
            said |= {turn.episode: turn.token_ids for turn in agent.advance()}
        return [said[i] for i in range(len(transcripts))]

    return say


def lockstep(
    say: Say,
    prompts: Sequence[list[int]],
    lengths: Sequence[list[int]],
    tools: Sequence[list[float]],
    observation: list[int],
) -> None:
    transcripts = [list(prompt) for prompt in prompts]
    for turn in range(len(lengths[0])):
        said = say(transcripts, [turns[turn] for turns in lengths])
        for transcript, ids in zip(transcripts, said, strict=True):
            transcript += [*ids, *observation]
        if turn < len(tools[0]):
            time.sleep(max(slow[turn] for slow in tools))


def continuous(
    agent: VllmAgent,
    prompts: Sequence[list[int]],
    lengths: Sequence[list[int]],
    tools: Sequence[list[float]],
    observation: list[int],
) -> None:
    transcripts = [list(prompt) for prompt in prompts]
    turns = [0] * len(prompts)
    agent.submit([TurnRequest(i, ids, lengths[i][0], i) for i, ids in enumerate(transcripts)])
    speaking, left = len(prompts), len(prompts)
    at_work: list[tuple[float, int]] = []  # when its tool is done, episode
    while left:
        now = time.perf_counter()
        while at_work and at_work[0][0] <= now:
            _, i = heapq.heappop(at_work)
            turns[i] += 1
            agent.submit([TurnRequest(i, transcripts[i], lengths[i][turns[i]], i)])
            speaking += 1
        if speaking:
            for said in agent.advance(agent.clock + 1 if at_work else None):
                i = said.episode
                speaking -= 1
                if turns[i] == len(tools[i]):
                    left -= 1
                    continue
                transcripts[i] += [*said.token_ids, *observation]
                heapq.heappush(at_work, (time.perf_counter() + tools[i][turns[i]], i))
        elif at_work:
            time.sleep(max(0.0, at_work[0][0] - time.perf_counter()))


if __name__ == "__main__":
    main()
