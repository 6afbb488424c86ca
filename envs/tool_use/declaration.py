"""How a domain is declared: kinds of records, their fields, and what may be done to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Value = str | int  # yes and no are integers to Python, too


@dataclass(frozen=True, slots=True)
class Choice:
    """A field with one of a few values."""

    names: tuple[str, ...]  # prompts say the first one, tools any
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flag:
    """A field that holds or does not."""

    names: tuple[str, ...]
    words: tuple[str, str]  # how "does not" and "does" are said


@dataclass(frozen=True, slots=True)
class Number:
    """A field that counts or measures, from `low` to `high`."""

    names: tuple[str, ...]
    low: int
    high: int
    usual: int | None = None  # what about half of the records have


@dataclass(frozen=True, slots=True)
class Code:
    """A field with four digits that only looking tells."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """A field with the id of a record of another kind."""

    names: tuple[str, ...]
    kind: str
    tail: str  # how a record is said by what it refers to: "in {}", "lent to {}"
    optional: bool = False  # whether it may be empty


Field = Choice | Flag | Number | Code | Ref


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of records; the first noun is its own name."""

    nouns: tuple[str, ...]
    prefix: str  # of ids
    names: tuple[str, ...]
    fields: tuple[Field, ...]
    people: bool = False  # called by their names alone

    @property
    def name(self) -> str:
        """What the declaration calls it."""
        return self.nouns[0]

    def field(self, name: str) -> Field:
        """A field by its first name."""
        return next(field for field in self.fields if field.names[0] == name)


@dataclass(frozen=True, slots=True)
class Need:
    """What a field has to be before something can be done, and the action that makes it so.

    The record is the one acted on, or the one that the action's value refers to.
    """

    field: str
    wanted: Value
    cure: str
    of_value: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a tool may do to one field of a record of a kind.

    `value` is what the field becomes, or None where it is an argument. `proof` is a field of the
    record that the call has to name. `plain` says what is to be done; each of `tricky` reads at
    first like something else. `{rest}` in it is what a number should be in the end.
    """

    name: str
    kind: str
    field: str
    verbs: tuple[str, ...]
    tells: tuple[str, ...]
    plain: tuple[str, ...]
    tricky: tuple[str, ...] = ()
    how: Literal["set", "add", "take", "remove"] = "set"
    value: Value | None = None
    proof: str = ""
    needs: tuple[Need, ...] = ()
    many: bool = False  # may be done to several records at once
    says_field: bool = False  # its tools are named after the field, too

    @property
    def takes_value(self) -> bool:
        """Whether the value is an argument."""
        return self.value is None and self.how != "remove"


@dataclass(frozen=True)
class Domain:
    """A world as data: what there is, and what can be done."""

    name: str
    kinds: tuple[Kind, ...]
    actions: tuple[Action, ...]
    held_out: bool = False  # not in the tasks of the split "train"

    @cached_property
    def kind(self) -> Mapping[str, Kind]:
        """The kinds by name."""
        return {kind.name: kind for kind in self.kinds}

    @cached_property
    def action(self) -> Mapping[str, Action]:
        """The actions by name."""
        return {action.name: action for action in self.actions}

    def field(self, action: Action) -> Field:
        """The field that an action changes."""
        return self.kind[action.kind].field(action.field)
