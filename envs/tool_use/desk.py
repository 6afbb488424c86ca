"""A small office as a world: contacts, events, files and shop items, and the tools on them."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import (
    BaseTool,
    StructuredTool,
    ToolException,
    create_schema_from_function,
)
from langchain_core.tools.base import ArgsSchema

from envs.tool_use.world import Record, World, cut, missing, words

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ARCHIVE = "archive"
_PHONE = re.compile(r"[0-9]{4}")
_FOLDER = re.compile(r"[a-z]{1,12}")


class Desk(World):
    """The office in use.

    The methods named in `TOOLS` are the tools: the docstring is the description, the arguments
    are the tool's.
    """

    def find(self, text: str) -> str:
        """List the records that have all words of text."""
        wanted = words(text)
        found = [
            f"{id} {record['kind']} {record['name']}"
            for id, record in self.records.items()
            if wanted and wanted <= words(id, *record.values())
        ]
        return "; ".join(found) if found else f"Nothing has {text!r}."

    def show(self, id: str) -> str:
        """Show all fields of a record."""
        fields = dict(self._record(id))
        head = f"{fields.pop('kind')} {fields.pop('name')}"
        return ", ".join((head, *(f"{field} {value}" for field, value in fields.items())))

    def set_phone(self, id: str, phone: str) -> str:
        """Change the phone of a contact."""
        contact = self._record(id, "contact")
        if not _PHONE.fullmatch(phone):
            raise ToolException(f"{cut(phone)} is not a phone; expected four digits")
        contact["phone"] = phone
        return f"{id} has the phone {phone}."

    def move(self, id: str, to: str) -> str:
        """Move an event to a day, or a file to a folder."""
        record = self._record(id, "event", "file")
        field, wanted = ("day", DAYS) if record["kind"] == "event" else ("folder", None)
        if wanted and to not in wanted:
            raise ToolException(f"{cut(to)} is not a day; expected one of {', '.join(wanted)}")
        if not wanted and not _FOLDER.fullmatch(to):
            raise ToolException(f"{cut(to)} is not a folder; expected a short word in a to z")
        record[field] = to
        return f"{id} is moved to {to}."

    def delete(self, id: str) -> str:
        """Delete a contact, an event or a file."""
        self._record(id, "contact", "event", "file")
        del self.records[id]
        return f"{id} is deleted."

    def archive(self, id: str) -> str:
        """Keep a file, but out of the way."""
        self._record(id, "file")["folder"] = ARCHIVE
        return f"{id} is archived."

    def buy(self, id: str, count: int) -> str:
        """Buy some of an item."""
        item = self._record(id, "item")
        stock, bought = int(item["stock"]), int(item["bought"])
        if not 1 <= count <= stock:
            raise ToolException(f"expected a count from 1 to {stock}, which are in stock")
        item["stock"], item["bought"] = stock - count, bought + count
        return f"{count} bought."

    def _record(self, id: str, *kinds: str) -> Record:
        if id not in self.records:
            raise missing(id, "find tells the ids")
        record = self.records[id]
        if kinds and record["kind"] not in kinds:
            raise ToolException(f"{id} is of the kind {record['kind']}; expected {_either(kinds)}")
        return record


TOOLS = ("find", "show", "set_phone", "move", "delete", "archive", "buy")


def make_tools(desk: Callable[[], Desk]) -> tuple[BaseTool, ...]:
    """The tools on the desk that is the current one whenever a tool is called."""
    return tuple(_tool(name, desk) for name in TOOLS)


def _tool(name: str, desk: Callable[[], Desk]) -> BaseTool:
    method = getattr(Desk, name)

    def run(**arguments: Any) -> str:
        return str(method(desk(), **arguments))

    return StructuredTool(
        name=name, description=str(method.__doc__), args_schema=_arguments(name), func=run
    )


@functools.cache
def _arguments(name: str) -> ArgsSchema:
    """The arguments of a method, made once: a model takes a millisecond."""
    return create_schema_from_function(name, getattr(Desk(()), name))


def _either(kinds: Sequence[str]) -> str:
    return " or ".join((", ".join(kinds[:-1]), kinds[-1]) if len(kinds) > 1 else kinds)
