"""What sandboxes cost: `python benchmarks/sandbox.py [BACKEND ...]`, beside bare interpreters."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from sandboxes.base import BackendOptions, Limits, Policy
from sandboxes.open import close_all, open_sandbox, probe
from sandboxes.pooled import PooledSandbox

PROGRAM, ANSWER = "print(sum(range(1000)))", "499500\n"
SESSIONS = 300
OPTIONS = BackendOptions(max_sessions=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=["jail", "landlock", "docker"])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    idle = idle_share()
    print(f"idle share of the processors in the second before: {idle:.2f}")
    rows = [bare(args.repeats)]
    show(rows[0])
    for backend in args.backends:
        for policy in (Policy(), Policy(network="loopback")):
            kind = "a network namespace" if policy.network == "loopback" else "no network"
            name = f"{backend}, {kind}"
            reason = probe(backend, policy, OPTIONS)
            if reason is not None:
                print(f"{name}: not measured, {reason}")
                continue
            with closing(open_sandbox(backend, Limits(), policy, OPTIONS)) as sandbox:
                for row in measure(sandbox, args.repeats, name):
                    if "per_s" in row and "exec" in str(row["what"]):
                        row["times_bare"] = round(row["per_s"] / rows[0]["per_s"], 2)
                    rows.append(row)
                    show(row)
            close_all()
    if args.json is not None:
        args.json.write_text(json.dumps({"idle": idle, "rows": rows}, indent=2) + "\n")


def bare(repeats: int) -> dict[str, object]:
    """The fresh interpreter that a sandbox of subprocesses would start."""

    def run(_: int = 0) -> None:
        command = [sys.executable, "-I", "-c", PROGRAM]
        assert subprocess.run(command, env={}, capture_output=True, text=True).stdout == ANSWER

    return {
        "what": "bare python -I, exec",
        **timed(run, repeats // 3),
        **throughput(run, workers=4, number=repeats // 2),
    }


def measure(sandbox: PooledSandbox, repeats: int, name: str) -> Iterator[dict[str, object]]:
    def program(_: int = 0) -> None:
        result = sandbox.run(PROGRAM)
        assert result.stdout == ANSWER, result

    for _ in range(20):
        program()

    def pause() -> None:  # both processes that wait are there again, and the caches cold
        time.sleep(0.02)

    def pause_and_one() -> None:
        pause()
        program()

    yield {"what": f"{name}: exec, a process waiting", **timed(program, repeats, pause)}
    second = timed(program, repeats, pause_and_one)
    yield {"what": f"{name}: exec, a process waiting, right after another", **second}
    yield {"what": f"{name}: exec, none waiting", **timed(program, repeats)}
    before_s = cpu_s()
    rate = throughput(program, workers=8, number=4 * repeats)
    yield {
        "what": f"{name}: execs, 8 threads",
        **rate,
        "cpu_ms_each": round((cpu_s() - before_s) / (4 * repeats) * 1000, 2),
    }
    session = sandbox.session()
    session.run("def f(a, b):\n    return a + b, [a, b]")

    def turn(_: int = 0) -> None:
        assert session.run("sum(range(1000))").stdout == "499500\n"

    yield {"what": f"{name}: REPL turn", **timed(turn, repeats)}
    cases = [(n, n + 1) for n in range(20)]

    def call(_: int = 0) -> None:
        assert all(result.ok for result in session.call("f", cases))

    yield {"what": f"{name}: 20 function cases", **timed(call, repeats)}
    session.close()
    before = memory_bytes()
    sessions = [sandbox.session() for _ in range(SESSIONS)]

    def begin(number: int) -> None:
        assert sessions[number].run("x = 1").ok

    opened = throughput(begin, workers=8, number=SESSIONS)
    each = {"mib_each": round((memory_bytes() - before) / SESSIONS / 2**20, 2)}
    yield {"what": f"{name}: {SESSIONS} sessions, opened", **opened, **each}

    def again(number: int) -> None:
        assert sessions[number % SESSIONS].run("x").stdout == "1\n"

    turns = throughput(again, workers=16, number=10 * SESSIONS)
    yield {"what": f"{name}: turns of {SESSIONS} sessions, 16 threads", **turns}
    started_s = time.perf_counter()
    for session in sessions:
        session.close()
    yield {"what": f"{name}: all closed", "s": round(time.perf_counter() - started_s, 3)}


def timed(
    action: Callable[[], None], number: int, prepare: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Milliseconds of one after another, without those that `prepare` takes before each."""
    times_ms = []
    for _ in range(number):
        prepare()
        started_s = time.perf_counter()
        action()
        times_ms.append((time.perf_counter() - started_s) * 1000)
    return {
        "min_ms": round(min(times_ms), 2),
        "p50_ms": round(statistics.median(times_ms), 2),
        "p99_ms": round(statistics.quantiles(times_ms, n=100)[-1], 2),
    }


def throughput(action: Callable[[int], None], workers: int, number: int) -> dict[str, float]:
    """How many a second, from several threads."""
    with ThreadPoolExecutor(workers) as threads:
        started_s = time.perf_counter()
        list(threads.map(action, range(number)))
        return {"per_s": round(number / (time.perf_counter() - started_s), 1)}


def idle_share() -> float:
    def ticks() -> tuple[int, int]:
        values = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]))
        return values[3] + values[4], sum(values)

    idle, total = ticks()
    time.sleep(1.0)
    later = ticks()
    return round((later[0] - idle) / (later[1] - total), 3)


def family() -> Iterator[Path]:
    """This process and all that come from it, in /proc."""
    children: dict[str, list[Path]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(parent, []).append(folder)
    left = [Path(f"/proc/{os.getpid()}")]
    while left:
        folder = left.pop()
        left += children.get(folder.name, [])
        yield folder


def cpu_s() -> float:
    """Processor time of this process and all that come from it, the ended ones too."""
    ticks = 0
    for folder in family():
        try:
            ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int:
    """Proportional share of memory of all that come from this process."""
    total = 0
    for folder in family():
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def show(row: dict[str, object]) -> None:
    rest = "  ".join(f"{name} {value}" for name, value in row.items() if name != "what")
    print(f"{row['what']:<72}{rest}", flush=True)


if __name__ == "__main__":
    main()
