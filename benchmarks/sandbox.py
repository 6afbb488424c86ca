"""What a sandbox costs: `python benchmarks/sandbox.py [BACKEND]`, in milliseconds."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

from sandboxes.base import Limits
from sandboxes.open import open_sandbox

REPEATS = 100


def main(backend: str = "local") -> None:
    sandbox = open_sandbox(backend, Limits())
    warm = sandbox.session()
    warm.run("def f(a, b):\n    return a + b, [a, b]")
    cases = [(n, n + 1) for n in range(20)]

    def bare_start() -> None:
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], env={}, check=True)

    def session_start() -> None:
        with closing(sandbox.session()) as session:
            assert session.run("").ok

    def turn() -> None:
        assert warm.run("sum(range(1000))").stdout == "499500\n"

    def calls() -> None:
        assert all(result.ok for result in warm.call("f", cases))

    measured: dict[str, Callable[[], None]] = {
        "bare python -I -S -c pass": bare_start,
        "session: start, first run, close": session_start,
        "REPL turn": turn,
        "20 function cases in one call": calls,
    }
    timings: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(REPEATS):  # interleaved, so that a busy moment strikes all alike
        for name, action in measured.items():
            started_s = time.perf_counter()
            action()
            timings[name].append((time.perf_counter() - started_s) * 1000)
    sandbox.close()

    bare_ms = statistics.median(timings["bare python -I -S -c pass"])
    print(f"{backend}, {REPEATS} repeats{'min':>21}{'p50':>9}{'p99':>9}{'p50 / bare':>12}")
    for name, times_ms in timings.items():
        p50_ms, p99_ms = statistics.median(times_ms), statistics.quantiles(times_ms, n=100)[-1]
        row = f"{min(times_ms):>9.2f}{p50_ms:>9.2f}{p99_ms:>9.2f}{p50_ms / bare_ms:>12.2f}"
        print(f"{name:<34}{row}")


if __name__ == "__main__":
    main(*sys.argv[1:])
