"""Where tasks come from: JSONL files, and seeds of procedural generators."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from envs.types import Task


class DataError(ValueError):
    """A data file that cannot be used; the text names file, line and what was expected."""


def stable_seed(*parts: object) -> int:
    """A seed that depends on the parts only (`hash()` differs between processes)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def held_out(family: str, share: int = 4) -> bool:
    """Whether a family of tasks belongs to the held-out split: one family in `share`."""
    return stable_seed("family", family) % share == 0


def read_jsonl(path: Path, read_row: Callable[[Mapping[str, Any]], Task]) -> tuple[Task, ...]:
    """Read one task a line.

    Raises:
        DataError: no such file, an empty one, broken JSON, or a row that `read_row` refuses.
    """
    tasks: list[Task] = []
    try:
        # Not splitlines(): texts may hold other line separators, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, got {type(row).__name__}")
            tasks.append(read_row(row))
        except KeyError as error:
            raise DataError(f"{path}:{number}: field {error} is missing") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not tasks:
        raise DataError(f"{path}: no tasks; expected one JSON object a line")
    return tuple(tasks)


class TaskSource(Protocol):
    """Part of `ToolEnv`: tasks by seed, or by row where there is a data file."""

    @property
    def rows(self) -> Sequence[Task] | None:
        """The tasks of the data file, if there is one."""
        ...

    def task(self, seed: int) -> Task:
        """The task of a seed."""
        ...


def draw_tasks(source: TaskSource, seed: int, step: int, count: int) -> tuple[Task, ...]:
    """The tasks of training step `step` (from 1); depends on nothing but its arguments.

    A data file is gone through in epochs, each in an order of its own.
    """
    places = range((step - 1) * count, step * count)
    if source.rows is None:
        return tuple(source.task(stable_seed(seed, "task", place)) for place in places)
    size = len(source.rows)
    tasks = []
    for place in places:
        epoch, offset = divmod(place, size)
        order = random.Random(stable_seed(seed, "epoch", epoch)).sample(range(size), size)
        tasks.append(source.task(order[offset]))
    return tuple(tasks)
