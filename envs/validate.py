"""`python -m envs.validate`: whether reference solutions succeed and corrupted ones fail."""

import argparse
import json
import os
import queue
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.base import ToolEnv, Transcript
    from envs.data import Rejected
    from envs.types import Task

# Whatever else is needed is imported after parsing: --help costs no time.

FORMATS = ("native", "text")
DEFAULT_TASKS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one task, by calling format."""

    task: str
    gold: dict[str, bool] = field(default_factory=dict)  # empty: there is no reference solution
    corrupted: dict[str, bool] = field(default_factory=dict)  # whether it failed, as it must
    reasons: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Validate; 0: all as it should be, 1: not so, 2: bad input, 130: Ctrl-C."""
    options = parse(argv)
    try:
        report = validate(
            options.env,
            data=options.data,
            tasks=options.tasks,
            level=options.level,
            strict=options.strict,
            workers=options.workers,
            options=dict(options.option),
        )
    except ValueError as error:  # EnvNameError, DataError, a level or an option
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if options.json:
        options.json.write_text(f"{text}\n", encoding="utf-8")
    return 0 if report["passed"] else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.validate",
        description="Play the reference solution and a corrupted one of each task, with native "
        "tool calls and with calls as text; print a summary as JSON. The exit code is 0 only where "
        "every reference solution succeeds and every corrupted one fails.",
        epilog="example: python -m envs.validate --env code --data tasks.jsonl",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="a name, or package.module:Class")
    add("--data", metavar="FILE", help="tasks of a file or hub:owner/name:split; else procedural")
    add(
        "--tasks",
        type=positive,
        metavar="N",
        help=f"how many (all rows of a file, {DEFAULT_TASKS} procedural ones of all levels)",
    )
    add("--level", type=int, metavar="L", help="only this level of procedural tasks")
    add("--strict", action="store_true", help="refuse data with a row that is no task")
    add("--json", type=Path, metavar="FILE", help="write the summary there, too")
    add("--workers", type=positive, metavar="N", help="episodes at once, where code is run")
    add(
        "--option",
        action="append",
        type=assignment,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the environment, such as reveal=nothing",
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 1 on")
    return int(text)


def assignment(text: str) -> tuple[str, Any]:
    """An option and its value: JSON, or text where it is none."""
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def validate(
    env: str,
    *,
    data: str | None = None,
    tasks: int | None = None,
    level: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of `python -m envs.validate`.

    Raises:
        ValueError: no such environment, level or option, or data that cannot be used.
    """
    from envs.registry import check_options, env_class

    started_s = time.monotonic()
    kind = env_class(env)
    given = options or {}
    check_options(kind, given)
    rejected: Sequence[Rejected] = ()
    if data is None:
        jobs = list(_procedural(kind, tasks or DEFAULT_TASKS, level, given))
    elif level is not None:
        raise ValueError("a level grades procedural tasks and does nothing with data; give one")
    else:
        jobs, rejected = _of_data(kind, data, tasks, strict, given)
    findings = _examine(kind, jobs, workers, given)
    for source in {id(source): source for source, _ in jobs}.values():
        source.close()
    summary = summarize(findings, rejected)
    return (
        {"env": env, "data": data, "level": level}
        | summary
        | {"seconds": round(time.monotonic() - started_s, 1)}
    )


def summarize(findings: Sequence[Finding], rejected: Sequence["Rejected"]) -> dict[str, Any]:
    """Counts over tasks, and what is wrong with which."""
    with_gold = [finding for finding in findings if finding.gold]
    gold_passed = sum(all(finding.gold.values()) for finding in with_gold)
    corrupted_failed = sum(all(finding.corrupted.values()) for finding in findings)
    return {
        "rows": len(findings) + len(rejected),
        "tasks": len(findings),
        "gold_passed": gold_passed,
        "corrupted_failed": corrupted_failed,
        "without_gold": len(findings) - len(with_gold),
        "formats": {
            name: {
                "gold_passed": sum(finding.gold[name] for finding in with_gold),
                "corrupted_failed": sum(finding.corrupted[name] for finding in findings),
            }
            for name in FORMATS
        },
        "rejected": [asdict(row) for row in rejected],
        "defective": [
            {"task": finding.task, "reasons": list(finding.reasons)}
            for finding in findings
            if finding.reasons
        ],
        # A file of tasks without any solution shows nothing.
        "passed": 0 < gold_passed == len(with_gold) and corrupted_failed == len(findings),
    }


_Job = tuple["ToolEnv", "Task"]  # the environment that has drawn the task, and so knows others


def _procedural(
    kind: "type[ToolEnv]", count: int, level: int | None, options: dict[str, Any]
) -> Iterator[_Job]:
    """Tasks of every level, or of one, in equal parts from the two splits."""
    levels = kind.levels if level is None else (level,)
    sources = [
        kind(level=each, split=split, **options)
        for each in levels
        for split in ("train", "held_out")
    ]
    for number in range(count):
        seed, place = divmod(number, len(sources))
        yield sources[place], sources[place].task(seed)


def _of_data(
    kind: "type[ToolEnv]", data: str, count: int | None, strict: bool, options: dict[str, Any]
) -> tuple[list[_Job], Sequence["Rejected"]]:
    from envs.data import NoTasks

    try:
        source = kind(data=data, strict=strict, **options)
    except NoTasks as error:
        return [], error.rejected
    return [(source, task) for task in (source.rows or ())[:count]], source.rejected


def _examine(
    kind: "type[ToolEnv]", jobs: Sequence[_Job], workers: int | None, options: dict[str, Any]
) -> list[Finding]:
    """The findings, in the order of the jobs; episodes that run code are played side by side."""
    if not kind.needs_sandbox:  # threads would not speed up Python
        return [examine(source, source, task) for source, task in jobs]
    free: queue.SimpleQueue[ToolEnv] = queue.SimpleQueue()
    count = min(workers or os.cpu_count() or 1, len(jobs) or 1)
    for _ in range(count):
        free.put(kind(**options))

    def examined(job: _Job) -> Finding:
        env = free.get()
        try:
            return examine(env, *job)
        finally:
            free.put(env)

    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(examined, jobs))
    finally:
        while not free.empty():
            free.get().close()


def examine(env: "ToolEnv", source: "ToolEnv", task: "Task") -> Finding:
    """Play both solutions of a task in both calling formats."""
    from envs.base import NoSolution
    from envs.tasks import stable_seed

    gold: dict[str, bool] = {}
    failed: dict[str, bool] = {}
    reasons = []
    try:
        solution = source.solution(task)
    except NoSolution:
        solution = None
    corrupted = source.corrupted(task, random.Random(stable_seed("corrupted", task.id)))
    for name in FORMATS:
        if solution is not None:
            success, why = play(env, task, solution, name)
            gold[name] = success is True
            if success is not True:
                reasons.append(f"{name}: the reference solution fails: {why}"[:500])
        success, why = play(env, task, corrupted, name)
        failed[name] = success is False
        if success is not False:
            what = "succeeds" if success else "is not judged"
            reasons.append(
                f"{name}: a corrupted solution {what}: {corrupted[-1].content or why}"[:500]
            )
    return Finding(task.id, gold, failed, tuple(reasons))


def play(
    env: "ToolEnv", task: "Task", messages: "Transcript", name: str
) -> tuple[bool | None, str]:
    """Whether the messages succeed, and why not; None where there can be no verdict."""
    from envs.text_actions import TextActions, write_actions
    from envs.tools import WORLD_ERRORS

    player: Any = env if name == "native" else TextActions(env)
    try:
        player.reset(options={"task": task})
        for message in messages:
            player.step(message if name == "native" else write_actions(message))
            if env.stop_reason is not None:
                break
    except (ValueError, *WORLD_ERRORS) as error:  # a test that no program can pass, or the world
        return None, f"there is no verdict: {type(error).__name__}: {error}"
    if env.verdict is None:
        return None, "the messages end without a final answer"
    return env.verdict.success, env.verdict.feedback


if __name__ == "__main__":
    sys.exit(main())
