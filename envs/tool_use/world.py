"""Records by id: a world that tools change, and the same as data."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.tools import ToolException

_WORD = re.compile(r"\w+")
_SHOWN_CHARS = 40

Record = dict[str, str | int]
# The records by id, each as pairs of field and value: what a task's payload holds.
Frozen = tuple[tuple[str, tuple[tuple[str, str | int], ...]], ...]


class World:
    """A world in use; what is wrong with a call is told by a `ToolException`."""

    def __init__(self, records: Iterable[Sequence[Any]]) -> None:
        self.records: dict[str, Record] = {str(id): dict(fields) for id, fields in records}

    def freeze(self) -> Frozen:
        """The world as data that nothing changes any more."""
        return tuple((id, tuple(fields.items())) for id, fields in self.records.items())


def difference(world: World, goal: Iterable[Sequence[Any]]) -> str:
    """The first place where a world is not the wanted one; empty where it is."""
    wanted = World(goal).records
    for id, fields in wanted.items():
        if id not in world.records:
            return f"{id} is gone, expected it to be kept"
        for field, value in fields.items():
            if (got := world.records[id][field]) != value:
                return f"{field} of {id} is {got}, expected {value}"
    left = [id for id in world.records if id not in wanted]
    return f"{left[0]} is still there, expected it to be deleted" if left else ""


def words(*values: object) -> set[str]:
    """The words of values, in small letters."""
    return set(_WORD.findall(" ".join(map(str, values)).lower()))


def cut(text: str) -> str:
    """What an agent wrote, quoted, and shortened where it is long."""
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")


def missing(id: str, cure: str) -> ToolException:
    """The error of a call that names no record."""
    return ToolException(f"there is no record {cut(id)}; {cure}")
