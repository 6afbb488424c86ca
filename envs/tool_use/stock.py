"""The records of a generated world, drawn from a declaration."""

import random
from collections.abc import Mapping, Sequence

from envs.tool_use.acting import Store
from envs.tool_use.declaration import Choice, Code, Field, Flag, Kind, Number, Ref, Value
from envs.tool_use.world import Record
from envs.tool_use.worlds import FIRST, LAST


def draw_world(rng: random.Random, kinds: Sequence[Kind], foreign: Kind, level: int) -> Store:
    """Two or three records of each kind; from level 3 on, they share names."""
    counts = {kind.name: 2 if level < 3 or kind is foreign else 3 for kind in kinds}
    people = _people(rng, sum(counts[k.name] for k in kinds if k.people), shared=level > 2)
    ids = {
        kind.name: [f"{kind.prefix}{n}" for n in rng.sample(range(10, 100), counts[kind.name])]
        for kind in kinds
    }
    records: list[tuple[str, Record]] = []
    for kind in kinds:
        names = [people.pop() for _ in ids[kind.name]] if kind.people else _names(rng, kind, level)
        for id, name in zip(ids[kind.name], names, strict=False):
            values = {each.names[0]: draw_value(rng, each, ids) for each in kind.fields}
            records.append((id, {"kind": kind.name, "name": name, **values}))
    rng.shuffle(records)
    return Store((id, record.items()) for id, record in records)


def _people(rng: random.Random, count: int, *, shared: bool) -> list[str]:
    first = rng.sample(FIRST, 4) if shared else rng.sample(FIRST, count)
    if not shared:
        return [f"{name} {rng.choice(LAST)}" for name in first]
    return rng.sample([f"{name} {family}" for name in first for family in LAST], count)


def _names(rng: random.Random, kind: Kind, level: int) -> list[str]:
    names = rng.sample(kind.names, 3)
    refers = any(isinstance(each, Ref) for each in kind.fields)
    return [names[0], *names[:2]] if level > 2 and refers and rng.random() < 0.5 else names


def draw_value(rng: random.Random, each: Field, ids: Mapping[str, Sequence[str]]) -> Value:
    """A value for a field; `ids` are the records that it may refer to, by kind."""
    match each:
        case Choice():
            return rng.choice(each.values)
        case Flag():
            return rng.random() < 0.5
        case Number():
            usual = each.usual is not None and rng.random() < 0.5
            return each.usual if usual and each.usual is not None else _number(rng, each)
        case Code():
            return str(rng.randint(1000, 9999))
        case Ref():
            empty = each.optional and rng.random() < 0.5
            return "" if empty else rng.choice(ids[each.kind])


def _number(rng: random.Random, each: Number) -> int:
    return rng.randint(each.low, each.high)
