"""vLLM: episodes that wait for nobody against lockstep, with tools of different slowness.

`.venv-vllm/bin/python benchmarks/engines.py`: both ways have the same prompts, the same lengths of
turns, and the same tools, which sleep between turns. Most turns are short and some are ten times
as long, as those of agents are. In lockstep a turn begins when all tools of the turn before are
done.
"""

import argparse
import heapq
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import envs
from agents import pocket
from agents.base import TurnRequest
from agents.chat import Chat
from agents.vllm_agent import VllmAgent
from agents.vllm_messages import EngineOptions
from mopd.config import ModelSection
from mopd.student import load_tokenizer

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
    drawn = sorted(length for turns in lengths for length in turns)
    print(
        f"{args.episodes} episodes x {args.turns} turns of {drawn[0]} to {drawn[-1]} tokens, "
        f"median {statistics.median(drawn):g}"
    )
    print(f"{'tools, seconds':<18}{'lockstep':>10}{'continuous':>12}{'ratio':>8}")
    rows: list[dict[str, float]] = []
    try:
        for slowest_s in SLOWEST_S:
            tools = [[share * slowest_s for share in turn] for turn in shares]
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            for repeat in range(args.repeats + 1):
                for name, way in WAYS.items():
                    started = time.perf_counter()
                    way(agent, prompts, lengths, tools, [5] * args.observation)
                    if repeat:  # the first is to get warm
                        seconds[name].append(time.perf_counter() - started)
            lock, free = (statistics.median(seconds[name]) for name in WAYS)
            print(f"0 to {slowest_s:<13g}{lock:>10.2f}{free:>12.2f}{lock / free:>8.2f}", flush=True)
            rows.append({"slowest_tool_s": slowest_s, "lockstep_s": lock, "continuous_s": free})
    finally:
        agent.close()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def lockstep(
    agent: VllmAgent,
    prompts: Sequence[list[int]],
    lengths: Sequence[list[int]],
    tools: Sequence[list[float]],
    observation: list[int],
) -> None:
    transcripts = [list(prompt) for prompt in prompts]
    for turn in range(len(lengths[0])):
        agent.submit(
            [TurnRequest(i, ids, lengths[i][turn], i) for i, ids in enumerate(transcripts)]
        )
        speaking = len(prompts)
        while speaking:
            for said in agent.advance():
                transcripts[said.episode] += [*said.token_ids, *observation]
                speaking -= 1
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


Way = Callable[
    [VllmAgent, Sequence[list[int]], Sequence[list[int]], Sequence[list[float]], list[int]], None
]
WAYS: dict[str, Way] = {"lockstep": lockstep, "continuous": continuous}


if __name__ == "__main__":
    main()
