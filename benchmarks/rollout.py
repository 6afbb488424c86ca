"""Multi-turn rollouts: our engine against `generate` anew at each turn, TRL's loop, and slow tools.

`python benchmarks/rollout.py [--parts short,long] [--json FILE]`: ratios within one run. Turns have
scripted lengths, which differ as those of a real model do, and both sides have the same prompts and
observations; in `tools` and `trl` the pocket student plays `calculator`.
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rollout_ways import (
    Calculator,
    Case,
    SlowCalculator,
    anew,
    clock_of,
    load,
    ours,
    played,
    played_by_trl,
)

SHORT = Case(episodes=64, turns=3, prompt=20, observation=20)
LONG = Case(episodes=64, turns=3, prompt=400, observation=100)
GEMMA = Case(model="gemma-270m-shape", episodes=8, turns=2, tokens=12, prompt=20, observation=20)
IN_FLIGHT = (8, 32, 64, 128, 512)
TURNS = (1, 4, 16)
WAYS: dict[str, Callable[..., Any]] = {"generate anew at each turn": anew, "ours": ours}

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/rollout.py")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--model", default="pocket", help="or a folder; of short, long and turns")
    parser.add_argument("--repeats", type=int, default=2, help="of short and long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    measured = {}
    for part in args.parts.split(","):
        print(f"\n{part}: {PARTS[part].__doc__}")
        measured[part] = rows = []
        for row in PARTS[part](args):
            if not rows:
                print("".join(f"{name:>{_width(name)}}" for name in row))
            rows.append(row)
            print(
                "".join(f"{_text(value):>{_width(name)}}" for name, value in row.items()),
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


def short(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """64 episodes x 3 turns, prompts and observations of 20 tokens."""
    return against_generate(SHORT.of(args.model), args.repeats)


def long(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """64 episodes x 3 turns, prompts of 400 tokens, observations of 100."""
    return against_generate(LONG.of(args.model), args.repeats)


def gemma(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """8 episodes x 2 turns on random weights of Gemma 270M's shape (262,144 words)."""
    return against_generate(GEMMA, 1)


def turns(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """64 episodes of 1 to 16 turns, prompts and observations of 20 tokens."""
    for count in TURNS:
        case = SHORT.of(args.model, turns=count)
        *_, row = against_generate(case, 2 if count < 16 else 1)  # the first is a little slower
        yield {"turns": count, "our seconds": row["seconds"], "generate / ours": row["ratio"]}


def flight(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a rollout of the short case costs by how many are in flight at a time."""
    first = None
    for count in IN_FLIGHT:
        episodes = max(count, 64)
        case = SHORT.of(args.model, episodes=episodes, in_flight=count)
        seconds, peak_mb = alone(measure, ours, case, 1)
        each_ms = 1e3 * seconds / episodes
        first = first or each_ms
        yield {
            "in flight": count, "ms a rollout": each_ms, "ratio": each_ms / first,
            "peak MB": peak_mb,
        }  # fmt: skip


def tools(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """32 rollouts of the pocket student at a time, tools of 0 to 1 s: wall seconds."""
    slowest = None
    for way in ("all wait for all, each turn", "reproducible", "as soon as they can"):
        seconds, tokens, success = alone(played, way, SlowCalculator, 4)
        slowest = slowest or seconds
        yield {
            "way": way, "seconds": seconds, "ratio": slowest / seconds, "tokens": tokens,
            "success": success,
        }  # fmt: skip


def trl(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """64 rollouts of the pocket student at a time."""
    theirs = None
    ways = {
        "TRL's GRPOTrainer": (played_by_trl, 8),
        "ours": (played, "reproducible", Calculator, 8),
    }
    for name, way in ways.items():
        seconds, tokens, success = alone(*way)
        theirs = theirs or tokens / seconds
        yield {
            "way": name, "seconds": seconds, "tokens": tokens, "tokens / s": tokens / seconds,
            "ratio": tokens / seconds / theirs, "success": success,
        }  # fmt: skip


def against_generate(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    slowest = None
    for name, way in WAYS.items():
        seconds, peak_mb = alone(measure, way, case, repeats)
        slowest = slowest or seconds
        yield {"way": name, "seconds": seconds, "ratio": slowest / seconds, "peak MB": peak_mb}


def alone(job: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a process of its own, so that the peak of memory is its own, too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


def measure(way: Callable[..., Any], case: Case, repeats: int) -> tuple[float, float]:
    """Least seconds of all episodes, and the peak of memory in MB."""
    model, chat = load(case)
    now = clock_of(model)
    seconds = []
    for _ in range(repeats):
        started = now()
        transcripts = way(model, chat, case)
        seconds.append(now() - started)
        assert [len(ids) for ids in transcripts] == case.final_lengths()
    if model.device.type == "cuda":
        return min(seconds), torch.cuda.max_memory_allocated() / 2**20
    return min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _width(name: str) -> int:
    return 30 if name == "way" else 16


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    part.__name__: part for part in (short, long, turns, flight, tools, trl, gemma)
}

if __name__ == "__main__":
    main()
