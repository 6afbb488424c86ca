"""What the actions of declared domains do to records, and why they refuse."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.tools import ToolException

from envs.tool_use.declaration import Action, Choice, Code, Field, Flag, Kind, Number, Ref, Value
from envs.tool_use.world import Record, World, cut, missing, words
from envs.tool_use.worlds import DOMAINS, KINDS

MOST = 99  # what a number may be raised to
_CODE = re.compile(r"[0-9]{4}")


class Store(World):
    """A generated world in use.

    `said` has the words of its tools for kinds and fields (`lamp`, `lamp.colour`), `tools` their
    names by what they do: `find`, `show`, both maybe with a kind behind, or `domain/action`.
    """

    def __init__(
        self,
        records: Iterable[Sequence[Any]],
        said: Mapping[str, str] | None = None,
        tools: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(records)
        self._said = said or {}
        self._tools = tools or {}

    def act(self, does: str, form: str, arguments: Mapping[str, Any]) -> str:
        """Do something with arguments by their roles: text, id, ids, value, proof.

        Args:
            does: as in `tools`.
            form: `one` record, `many`, `every` one of its kind, or `check`, which changes nothing.

        Raises:
            ToolException: it cannot be done; the text says why and what would help.
        """
        verb, _, kind = does.partition(" ")
        if verb == "find":
            return self._find(arguments["text"], kind)
        if verb == "show":
            return self._show(arguments["id"], kind)
        domain, _, name = does.partition("/")
        return self._do(domain, DOMAINS[domain].action[name], form, arguments)

    def matching(self, text: str, kind: str = "") -> list[str]:
        """The ids of the records that have all words of text."""
        wanted = words(text)
        return [
            id
            for id, record in self.records.items()
            if wanted and kind in ("", record["kind"]) and wanted <= self._words(id, record)
        ]

    def shown(self, field: Field, value: Value) -> str:
        """A value as tools say it."""
        if isinstance(field, Flag):
            return field.words[bool(value)]
        return "none" if value == "" else str(value)

    def _find(self, text: str, kind: str) -> str:
        found = [
            f"{id} {self._noun(self.records[id])} {self.records[id]['name']}"
            for id in self.matching(text, kind)
        ]
        return "; ".join(found) if found else f"Nothing has {cut(text)}."

    def _show(self, id: str, kind: str) -> str:
        record = self._record(id, kind)
        fields = (
            f"{self._word(record, field)} {self.shown(field, record[field.names[0]])}"
            for field in _kind(record).fields
        )
        return ", ".join((f"{self._noun(record)} {record['name']}", *fields))

    def _do(self, domain: str, action: Action, form: str, arguments: Mapping[str, Any]) -> str:
        ids = self._ids(action, form, arguments)
        after = [self._after(domain, action, id, arguments) for id in ids]  # all, or none
        if form == "check":
            return "That would work; nothing is changed."
        if action.how == "remove":
            del self.records[ids[0]]
            return f"{ids[0]} is removed."
        for id, value in zip(ids, after, strict=True):
            self.records[id][action.field] = value
        first = self.records[ids[0]]
        field = KINDS[action.kind].field(action.field)
        told = f"{self._word(first, field)} {self.shown(field, after[0])}"
        return f"{', '.join(ids)}: {told}."

    def _ids(self, action: Action, form: str, arguments: Mapping[str, Any]) -> list[str]:
        if form == "every":
            return [id for id, r in self.records.items() if r["kind"] == action.kind]
        ids: list[str] = arguments["ids"] if form == "many" else [arguments["id"]]
        if not ids or len(ids) > len(self.records):
            raise ToolException(f"got {len(ids)} ids; expected from 1 to {len(self.records)}")
        return ids

    def _after(self, domain: str, action: Action, id: str, arguments: Mapping[str, Any]) -> Value:
        """What the action makes of the field of a record, if it may."""
        record = self._record(id, action.kind)
        if action.proof and arguments["proof"] != record[action.proof]:
            proof = self._word(record, KINDS[action.kind].field(action.proof))
            cure = self._tool("show", action.kind)
            raise ToolException(
                f"{cut(arguments['proof'])} is not the {proof} of {id}{cure and f'; {cure} tells'}"
            )
        value = arguments.get("value", action.value)
        if action.takes_value:
            value = self._allowed(action, record, value)
        for need in action.needs:
            holder = str(value) if need.of_value else id
            self._check(domain, holder, need.field, need.wanted, need.cure)
        return "" if value is None else value

    def _allowed(self, action: Action, record: Record, value: Value) -> Value:
        """What the argument makes of the field, where it may be that."""
        field = KINDS[action.kind].field(action.field)
        if isinstance(field, Ref):
            self._record(str(value), field.kind)
        elif isinstance(field, Code):
            if not _CODE.fullmatch(str(value)):
                raise ToolException(f"{cut(str(value))} is no code; expected four digits")
        elif isinstance(field, Number):
            before = int(record[action.field])
            low, high = {
                "set": (field.low, field.high),
                "add": (1, MOST - before),
                "take": (1, before),
            }[action.how]
            if not low <= int(value) <= high:
                word = self._word(record, field)
                raise ToolException(f"expected from {low} to {high}, as the {word} is {before}")
            value = int(value)
            return {"set": value, "add": before + value, "take": before - value}[action.how]
        return value

    def _check(self, domain: str, id: str, name: str, wanted: Value, cure: str) -> None:
        record = self.records[id]
        if record[name] == wanted:
            return
        field = _kind(record).field(name)
        tool = self._tools.get(f"{domain}/{cure}")
        raise ToolException(
            f"the {self._word(record, field)} of {id} is {self.shown(field, record[name])}; it "
            f"has to be {self.shown(field, wanted)} first{f', with {tool}' if tool else ''}"
        )

    def _record(self, id: str, kind: str) -> Record:
        if id not in self.records:
            tool = self._tool("find", kind)
            raise missing(id, f"{tool} tells the ids" if tool else "there are others")
        record = self.records[id]
        if kind and record["kind"] != kind:
            got, expected = self._noun(record), self._said.get(kind, kind)
            raise ToolException(f"{id} is of the kind {got}; expected {expected}")
        return record

    def _tool(self, does: str, kind: str) -> str:
        return self._tools.get(f"{does} {kind}", self._tools.get(does, ""))

    def _noun(self, record: Record) -> str:
        kind = str(record["kind"])
        return self._said.get(kind, kind)

    def _word(self, record: Record, field: Field) -> str:
        return self._said.get(f"{record['kind']}.{field.names[0]}", field.names[0])

    def _words(self, id: str, record: Record) -> set[str]:
        values = (self.shown(f, record[f.names[0]]) for f in _kind(record).fields)
        return words(id, self._noun(record), record["name"], *values)


def type_of(action: Action) -> Choice | type:
    """What the argument of an action is: one of a choice, bool, int or str."""
    field = KINDS[action.kind].field(action.field)
    if isinstance(field, Choice):
        return field
    return {Flag: bool, Number: int}.get(type(field), str)


def _kind(record: Record) -> Kind:
    return KINDS[str(record["kind"])]
