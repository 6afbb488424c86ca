"""Learning curves beside each other: `python benchmarks/curves.py FOLDER FOLDER ...`.

Each folder holds the runs of one way to do the same thing, such as the seeds that
`benchmarks/learning.py --out FOLDER` has run. Shown is the success of the training rollouts over
blocks of steps: the mean over the runs, and the least and the greatest run.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

Curve = tuple[float, ...]  # success of each step


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/curves.py", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--block", type=int, default=5, metavar="N", help="steps in a row")
    args = parser.parse_args(argv)
    ways = {folder.name: curves(folder) for folder in args.folders}
    for name, found in ways.items():
        if not found:
            parser.error(f"{name!r} holds no run; expected folders with a metrics.jsonl each")
    print("\n".join(table(ways, args.block)))
    return 0


def curves(folder: Path) -> list[Curve]:
    """Of each run in the folder."""
    return [
        tuple(json.loads(line)["success_rate"] for line in path.read_text("utf-8").splitlines())
        for path in sorted(folder.glob("*/metrics.jsonl"))
    ]


def table(ways: dict[str, list[Curve]], block: int) -> Iterator[str]:
    """Markdown, a row for each block of steps that all runs have."""
    yield (
        "| steps | "
        + " | ".join(f"{name} ({len(runs)} runs)" for name, runs in ways.items())
        + " |"
    )
    yield "| --- |" + " ---: |" * len(ways)
    steps = min(len(curve) for runs in ways.values() for curve in runs)
    for start in range(0, steps, block):
        end = min(start + block, steps)
        cells = []
        for runs in ways.values():
            means = [fmean(curve[start:end]) for curve in runs]
            cells.append(f"{fmean(means):.2f} [{min(means):.2f}, {max(means):.2f}]")
        yield f"| {start + 1} to {end} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
