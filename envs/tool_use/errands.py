"""Procedural errands in graded difficulty: a world, what to do in it, and what is then true."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from envs.tasks import held_out, stable_seed
from envs.tool_use.desk import DAYS, Desk
from envs.tool_use.wording import (
    FIRST,
    FOLDERS,
    INVERSE,
    ITEMS,
    LAST,
    QUESTIONS,
    RELATIONS,
    SWAPS,
    TOPICS,
    VERBS,
    Verb,
)
from envs.tool_use.world import Record
from envs.types import Task

LEVELS = range(1, 5)
CALLS = {1: (1, 1), 2: (2, 2), 3: (3, 3), 4: (4, 6)}  # the fewest and the most of a level
ASKING = {1: 0.3, 2: 0.3, 3: 0.25, 4: 0.0}  # the share of errands that change nothing
SWAPPING = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.1}
_S = TypeVar("_S")


@dataclass(frozen=True, slots=True)
class _Step:
    """One call of the solution."""

    tool: str
    arguments: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class _Said:
    """A record or a value as the prompt says it, and the calls that find it out."""

    text: str
    value: str
    steps: tuple[_Step, ...] = ()
    family: str = ""


@dataclass(frozen=True, slots=True)
class _Errand:
    """A prompt with its solution; `asked` is the answer to its question, if it has one."""

    prompt: str
    family: str
    steps: tuple[_Step, ...]
    asked: str = ""


def generate(rng: random.Random, level: int, held: bool) -> Task:
    """Draw an errand of a level from the train or the held-out families.

    Level 1 names a record by its id and needs one call; level 2 names it and needs two. Level 3
    tells its relation to another record, or wants a number that has to be looked up: three calls,
    each with a result of the one before. Level 4 needs four to six: the new value stands in
    another record, two records swap theirs, or a question follows. From level 3 on, names are
    shared and verbs may be tricky.

    A family is the way in which verb, records and question are said, most of the time without the
    new value; one family in four is held out.
    """
    fewest, most = CALLS[level]
    while True:
        desk = _world(rng, level)
        if rng.random() < ASKING[level]:
            errand: _Errand | None = _question(rng, desk, level)
        elif rng.random() < SWAPPING[level]:
            errand = _swap(rng, desk)
        else:
            errand = _order(rng, desk, level)
        if (
            errand is not None
            and fewest <= len(errand.steps) <= most
            and held_out(errand.family) == held
        ):
            return _task(desk, errand)


def _task(desk: Desk, errand: _Errand) -> Task:
    world = desk.freeze()
    goal = Desk(world)
    for step in errand.steps:
        getattr(goal, step.tool)(**step.arguments)
    payload = {
        "kind": "errand",
        "world": world,
        "goal": goal.freeze(),
        "asked": errand.asked,
        "steps": tuple((s.tool, json.dumps(dict(s.arguments))) for s in errand.steps),
    }
    identity = f"tool_use/errand/{stable_seed(errand.prompt, world) % 16**10:010x}"
    return Task(identity, errand.prompt, errand.asked or "Done.", payload)


def _world(rng: random.Random, level: int) -> Desk:
    """Contacts, events, files and items, few at level 1 and with shared names from level 3 on."""
    people = _people(rng, 2 if level < 3 else 3 if level == 3 else 4, shared=level > 2)
    topics = rng.sample(TOPICS, 4)
    events, files = topics[:2], topics[2:]
    if level > 2:
        files = [rng.choice(events), files[0]]
    phones = rng.sample(range(1000, 10000), len(people))
    records: list[Record] = [
        {"kind": "contact", "name": name, "phone": str(phone)}
        for name, phone in zip(people, phones, strict=True)
    ]
    records += [{"kind": "event", "name": n, "day": rng.choice(DAYS)} for n in events]
    records += [{"kind": "file", "name": n, "folder": rng.choice(FOLDERS)} for n in files]
    records += [
        {"kind": "item", "name": n, "stock": rng.randint(6, 15), "bought": 0}
        for n in rng.sample(ITEMS, 1 if level < 3 else 2)
    ]
    numbers = {kind: rng.sample(range(1, 10), 4) for kind in ("contact", "event", "file", "item")}
    ids = [f"{str(r['kind'])[0]}{numbers[str(r['kind'])].pop()}" for r in records]
    if level > 2:
        _relate(rng, dict(zip(ids, records, strict=True)))
    named = list(zip(ids, records, strict=True))
    rng.shuffle(named)
    return Desk((id, record.items()) for id, record in named)


def _people(rng: random.Random, count: int, *, shared: bool) -> list[str]:
    if not shared:
        return rng.sample(FIRST, count)
    first, last = rng.sample(FIRST, count - 1), rng.sample(LAST, count)
    return [f"{name} {family}" for name, family in zip([*first, first[0]], last, strict=True)]


def _relate(rng: random.Random, records: Mapping[str, Record]) -> None:
    contacts = [id for id, record in records.items() if record["kind"] == "contact"]
    for id, record in records.items():
        if record["kind"] in RELATIONS:
            relation, _ = RELATIONS[str(record["kind"])]
            record[relation] = rng.choice([other for other in contacts if other != id])


def _order(rng: random.Random, desk: Desk, level: int) -> _Errand | None:
    """Something to change; at level 4 to what another record has, or with a question behind it."""
    linked = level > 3 and rng.random() < 0.5
    verb = rng.choice([verb for verb in VERBS if not linked or verb.argument in ("phone", "to")])
    tricky = level > 2 and rng.random() < 0.5
    template = rng.choice(verb.tricky if tricky else verb.plain)
    target = _target(rng, desk, verb.kind, level)
    given = _given(rng, desk, verb, target, template, level, linked=linked)
    if given is None:
        return None
    slots = {"target": target.text, "value": given.text, "rest": given.text}
    order = template.format(**slots)
    call: dict[str, str | int] = {"id": target.value}
    if verb.argument:
        call[verb.argument] = int(given.value) if verb.argument == "count" else given.value
    steps = joined(given.steps, target.steps, (_Step(verb.tool, call),))
    family = "|".join((template, target.family, given.family))
    if level < 4 or linked:
        return _Errand(order, family, steps)
    if len(steps) < CALLS[3][0]:
        return None
    kinds = [kind for kind in QUESTIONS if kind != verb.kind]
    asked = _question(rng, desk, 2, rng.choice(kinds))
    prompt = f"{order} {asked.prompt}"
    return _Errand(prompt, f"{family}|{asked.family}", (*steps, *asked.steps), asked.asked)


def _swap(rng: random.Random, desk: Desk) -> _Errand | None:
    """Two records get each other's phone, day or folder."""
    kind = rng.choice(list(RELATIONS))
    name, _ = QUESTIONS[kind]
    ids = [id for id, record in desk.records.items() if record["kind"] == kind]
    one, other = (_named(desk, id) for id in rng.sample(ids, 2))
    values = [str(desk.records[said.value][name]) for said in (other, one)]
    if values[0] == values[1]:
        return None
    template = rng.choice(SWAPS)
    tool, argument = ("set_phone", "phone") if kind == "contact" else ("move", "to")
    steps = joined(
        *((*said.steps, _show(said)) for said in (one, other)),
        [
            _Step(tool, {"id": said.value, argument: value})
            for said, value in zip((one, other), values, strict=True)
        ],
    )
    return _Errand(
        template.format(field=name, one=one.text, other=other.text),
        "|".join((template, name, *sorted((one.family, other.family)))),
        steps,
    )


def _question(rng: random.Random, desk: Desk, level: int, kind: str = "") -> _Errand:
    kind = kind or rng.choice([*RELATIONS] if level > 2 else [*QUESTIONS])
    field_name, templates = QUESTIONS[kind]
    template = rng.choice(templates)
    target = _target(rng, desk, kind, level)
    return _Errand(
        template.format(target=target.text),
        f"{template}|{target.family}",
        joined(target.steps, (_Step("show", {"id": target.value}),)),
        str(desk.records[target.value][field_name]),
    )


def _target(rng: random.Random, desk: Desk, kind: str, level: int) -> _Said:
    """A record of a kind: by its id, by its name, or from level 3 on by a relation to it."""
    if level == 1:
        id = _draw(rng, desk, kind)
        return _Said(f"the {kind} {id}", id, family=id)
    if level > 2 and kind in RELATIONS and rng.random() < 0.8:
        related = _boss_or_other(rng, desk) if kind == "contact" else _inverse(rng, desk, kind)
        if related is not None:
            return related
    return _named(desk, _draw(rng, desk, kind))


def _boss_or_other(rng: random.Random, desk: Desk) -> _Said:
    """A contact by what it is to another record."""
    source = rng.choice(list(RELATIONS))
    relation, said = RELATIONS[source]
    known = _named(desk, _draw(rng, desk, source))
    return _Said(
        said.format(known.text),
        str(desk.records[known.value][relation]),
        (*known.steps, _show(known)),
        f"{relation} {known.family}",
    )


def _inverse(rng: random.Random, desk: Desk, kind: str) -> _Said | None:
    """An event or a file by its contact; None where the contact has several."""
    id = _draw(rng, desk, kind)
    relation, _ = RELATIONS[kind]
    contact = desk.records[id][relation]
    alike = [r for r in desk.records.values() if r["kind"] == kind and r[relation] == contact]
    if len(alike) > 1:
        return None
    known = _named(desk, str(contact))
    steps = (*known.steps, _Step("find", {"text": known.value}))
    return _Said(INVERSE[kind].format(known.text), id, steps, f"{kind} {known.family}")


def _given(
    rng: random.Random,
    desk: Desk,
    verb: Verb,
    target: _Said,
    template: str,
    level: int,
    *,
    linked: bool,
) -> _Said | None:
    """The second argument: said as it is, or as what another record has."""
    record = desk.records[target.value]
    if not verb.argument:
        return _Said("", "")
    if verb.argument == "count":
        stock = int(record["stock"])
        rest = rng.randint(1, stock - 1)
        if "{rest}" not in template:
            return _Said(str(stock - rest), str(stock - rest))
        return _Said(str(rest), str(stock - rest), (*target.steps, _show(target)))
    name, _ = QUESTIONS[verb.kind]
    if linked:
        other = _target(rng, desk, verb.kind, level)
        value = str(desk.records[other.value][name])
        if other.value == target.value or value == record[name]:
            return None
        text = f"the {name} of {other.text}"
        return _Said(text, value, (*other.steps, _show(other)), f"{name} {other.family}")
    draw: Callable[[], str] = {
        "phone": lambda: str(rng.randint(1000, 9999)),
        "day": lambda: rng.choice(DAYS),
        "folder": lambda: rng.choice(FOLDERS),
    }[name]
    value = draw()
    if value == record[name]:
        return None
    text = f"the folder {value}" if name == "folder" else value
    # At level 1 there are few ids, so that a day or a folder has to tell families apart.
    return _Said(text, value, family=value if level == 1 and name != "phone" else "")


def _show(record: _Said) -> _Step:
    return _Step("show", {"id": record.value})


def _named(desk: Desk, id: str) -> _Said:
    kind, name = desk.records[id]["kind"], str(desk.records[id]["name"])
    text = name if kind == "contact" else f"the {kind} {name}"
    return _Said(text, id, (_Step("find", {"text": name}),), text)


def _draw(rng: random.Random, desk: Desk, kind: str) -> str:
    return rng.choice([id for id, record in desk.records.items() if record["kind"] == kind])


def joined(*parts: Sequence[_S]) -> tuple[_S, ...]:
    """The steps one after the other, none of them twice."""
    steps: list[_S] = []
    for step in (step for part in parts for step in part):
        if step not in steps:
            steps.append(step)
    return tuple(steps)
