"""Which task comes when: seeds, splits, and the order of a data file's rows."""

import hashlib
import random
from collections.abc import Sequence
from typing import Protocol

from envs.types import Task


def stable_seed(*parts: object) -> int:
    """A seed that depends on the parts only (`hash()` differs between processes)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def held_out(family: str, share: int = 4) -> bool:
    """Whether a family of tasks belongs to the held-out split: one family in `share`."""
    return stable_seed("family", family) % share == 0


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
