"""What a step costs without a model: `python benchmarks/stepping.py [ENV ...]`.

Each environment plays reference solutions, 1, 8 and 64 of them side by side in threads. A step is
split into what tools and verifiers take and the rest, which is the suite's own, LangChain's
calling of tools included. Beside other threads, times by the clock hold waiting for the
interpreter; the processor's time ("own cpu") does not.
"""

import argparse
import functools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envs
from envs.base import ToolEnv, Transcript
from envs.types import Task
from sandboxes.open import close_all

COUNTS = (1, 8, 64)
TASKS = 32  # of each environment, played over and over


@dataclass(frozen=True, slots=True)
class Span:
    """Time by the clock, and of the processor in this thread."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: "Span") -> "Span":
        return Span(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)

    def __add__(self, other: "Span") -> "Span":
        return Span(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


NONE = Span(0.0, 0.0)
_inside = threading.local()  # time of this thread in tools and verifiers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/stepping.py", description=__doc__)
    parser.add_argument("envs", nargs="*", default=envs.names(), metavar="ENV")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--level", type=int, help="of the tasks; by default the environment's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'':<12}{'envs':>5}{'steps':>8}{'steps/s':>9}  milliseconds a step, medians")
    heads = ("total", "inside", "own", "own cpu", "cpu mean", "cpu p99", "reset")
    print(" " * 34 + "".join(f"{head:>9}" for head in heads))
    for name in args.envs:
        for count in COUNTS:
            row = measure(name, count, args.seconds, args.level)
            rows.append(row)
            print(
                f"{name:<12}{count:>5}{row['steps']:>8}{row['steps_per_s']:>9.0f}"
                f"{row['total_ms']:>9.3f}{row['inside_ms']:>9.3f}{row['own_ms']:>9.3f}"
                f"{row['own_cpu_ms']:>9.3f}{row['own_cpu_mean_ms']:>9.3f}"
                f"{row['own_cpu_p99_ms']:>9.3f}{row['reset_ms']:>9.3f}",
                flush=True,
            )
    close_all()
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str, count: int, seconds: float, level: int | None) -> dict[str, Any]:
    """One row: `count` environments, each in a thread of its own."""
    with ExitStack() as stack:
        made = [stack.enter_context(closing(envs.make(name, level=level))) for _ in range(count)]
        source = made[0]
        tasks = [source.task(seed) for seed in range(TASKS)]
        episodes = [(task, source.solution(task)) for task in tasks]
        steps: list[tuple[Span, Span]] = []
        resets: list[float] = []
        begin = threading.Barrier(count + 1)
        errors: list[BaseException] = []

        def player(env: ToolEnv, offset: int) -> None:
            try:
                mine = episodes[offset % TASKS :] + episodes[: offset % TASKS]
                watch(env, *mine[0])
                list(play(env, mine[0]))  # sandboxes and indices open now
                begin.wait()
                until = time.perf_counter() + seconds
                while time.perf_counter() < until:
                    for episode in mine:
                        first, *rest = play(env, episode)
                        resets.append(first[0].wall_s)
                        steps.extend(rest)
                        if time.perf_counter() >= until:
                            break
            except BaseException as error:
                errors.append(error)
                begin.abort()

        threads = [
            threading.Thread(target=player, args=(env, offset)) for offset, env in enumerate(made)
        ]
        for thread in threads:
            thread.start()
        with suppress(threading.BrokenBarrierError):  # the error tells why
            begin.wait()
        started_s = time.perf_counter()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - started_s
        if errors:
            raise errors[0]
    own = [total - inside for total, inside in steps]
    own_cpu = [span.cpu_s for span in own]
    return {
        "env": name,
        "envs": count,
        "steps": len(steps),
        "steps_per_s": round(len(steps) / elapsed_s, 1),
        "total_ms": median_ms([total.wall_s for total, _ in steps]),
        "inside_ms": median_ms([inside.wall_s for _, inside in steps]),
        "own_ms": median_ms([span.wall_s for span in own]),
        "own_cpu_ms": median_ms(own_cpu),
        "own_cpu_mean_ms": round(statistics.fmean(own_cpu) * 1000, 3),
        "own_cpu_p99_ms": round(statistics.quantiles(own_cpu, n=100)[-1] * 1000, 3),
        "reset_ms": median_ms(resets),
    }


def play(env: ToolEnv, episode: tuple[Task, Transcript]) -> Iterator[tuple[Span, Span]]:
    """The total time of the reset and of each step, with its share inside."""
    task, messages = episode
    yield spent(lambda: env.reset(options={"task": task}))
    for message in messages:
        yield spent(lambda: env.step(message))  # noqa: B023 - called at once
    if env.verdict is None or not env.verdict.success:
        raise AssertionError(f"{task.id}: the reference solution failed: {env.verdict}")


def spent(action: Callable[[], Any]) -> tuple[Span, Span]:
    """Total time of an action, and what of it passed in tools and verifiers."""
    _inside.span = NONE
    before = now()
    action()
    return now() - before, _inside.span


def watch(env: ToolEnv, task: Task, _: Transcript) -> None:
    """Count the time in the verifier and in the tools' own functions."""
    env.grade = timed(env.grade)
    env.reset(options={"task": task})
    for tool in env.tools.values():
        with _watching:
            place = "func" if getattr(tool, "func", None) is not None else "_run"
            function = getattr(tool, place)
            if not hasattr(function, "watched"):  # some tools are shared by all instances
                tool.__dict__[place] = timed(function)


_watching = threading.Lock()


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, counting its time as inside."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        before = now()
        try:
            return function(*args, **kwargs)
        finally:
            _inside.span = _inside.span + (now() - before)

    counted.watched = True
    return counted


def now() -> Span:
    return Span(time.perf_counter(), time.thread_time())


def median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 3)


if __name__ == "__main__":
    main()
