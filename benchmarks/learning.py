"""The README's table of what is learnt: `python benchmarks/learning.py`, runs what is missing."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVS = "code,calculator,search,science_qa,tool_use"
HEADER = (
    "| env | algo | seed | before | after | gain [95 % interval] | minutes | peak MB |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)


@dataclass(frozen=True)
class Run:
    """One combination, and its folder."""

    env: str
    algo: str
    seed: int
    folder: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run wrote at its end; None before."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def command(self, assignments: Sequence[str]) -> list[str]:
        """Starts the run, or goes on with one that was stopped."""
        if (self.folder / "config.toml").exists():
            options = ["--resume", str(self.folder)]
        else:
            options = ["--env", self.env, "--algo", self.algo, "--seed", str(self.seed)]
            options += ["--out", str(self.folder)]
            options += [part for assignment in assignments for part in ("--set", assignment)]
        return [sys.executable, "-m", "envs.run", *options]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    runs = [
        Run(env, algo, int(seed), args.out / f"{env}-{algo}-seed{seed}")
        for env, algo, seed in itertools.product(args.envs, args.algos, args.seeds)
    ]
    if not args.table_only:
        args.out.mkdir(parents=True, exist_ok=True)
        missing = [run for run in runs if run.summary is None]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda run: execute(run, args.set), missing))
    print("\n".join(table(runs)))
    return int(any(run.summary is None for run in runs))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python benchmarks/learning.py", description=__doc__)
    parser.add_argument("--envs", type=names, default=names(ENVS), metavar="A,B")
    parser.add_argument("--algos", type=names, default=names("mopd,grpo"), metavar="A,B")
    parser.add_argument("--seeds", type=names, default=names("0,1,2"), metavar="N,N")
    parser.add_argument("--out", type=Path, default=Path("runs/table"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    return parser.parse_args(argv)


def execute(run: Run, assignments: Sequence[str]) -> None:
    """Run it to its end; what it prints goes to a file beside its folder."""
    log = run.folder.with_name(run.folder.name + ".log")
    print(f"{run.folder} ... (see {log})", file=sys.stderr, flush=True)
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(
            run.command(assignments),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        ).returncode
    if code:
        lines = log.read_text(encoding="utf-8").splitlines()
        print(f"{run.folder}: exit code {code}: {(lines or [''])[-1]}", file=sys.stderr)


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Markdown, a row for each run that has a summary."""
    yield from HEADER
    for run in runs:
        summary = run.summary
        if summary is None:
            continue
        gain = summary["gain"]
        # The wall time of a resumed run is that of its last part only.
        minutes = "-" if summary["resumed_from_step"] else f"{summary['wall_s'] / 60:.1f}"
        yield (
            f"| {run.env} | {run.algo} | {run.seed} | {summary['eval_before']['mean']:.2f} "
            f"| {summary['eval_after']['mean']:.2f} | {gain['mean']:+.2f} "
            f"[{gain['ci_low']:+.2f}, {gain['ci_high']:+.2f}] | {minutes} "
            f"| {summary['peak_rss_mb']:,.0f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
