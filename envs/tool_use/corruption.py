"""Solutions with one thing changed, so that they look right and are not."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import ToolException
from pydantic import ValidationError

from envs.grading.calls import Call, grade_recorded
from envs.tool_use import generated_tools
from envs.tool_use.acting import Store
from envs.tool_use.desk import DAYS, TOOLS, Desk
from envs.tool_use.documentation import Api, problem
from envs.tool_use.toolbox import Toolbox, read_toolbox
from envs.tool_use.world import World, difference
from envs.types import Task

_TRIES = 1000


def corrupted_errand(
    task: Task, steps: Sequence[Call], rng: random.Random
) -> tuple[tuple[Call, ...], str]:
    """Steps and an answer of which the final state or the answer is wrong."""
    ids = list(Desk(task.payload["world"]).records)
    found = _corrupted(task, steps, rng, (TOOLS, ids), lambda calls: _played(task, calls))
    return found or ((*steps, *_needless(task, steps)), str(task.payload["asked"]))


def corrupted_chore(
    task: Task, steps: Sequence[Call], rng: random.Random
) -> tuple[tuple[Call, ...], str]:
    """As `corrupted_errand`, for a chore in a generated world."""
    box = read_toolbox(task.payload)
    values = [id for id, _ in task.payload["world"]]
    values += [value for tool in box.tools for value in tool.choices]
    names = [tool.name for tool in box.tools]
    found = _corrupted(task, steps, rng, (names, values), lambda calls: _done(task, box, calls))
    # Without its last call, a chore that changes something is not done, and one that asks is.
    return found or (tuple(steps[:-1]), _other(str(task.payload["asked"]), rng))


def _corrupted(
    task: Task,
    steps: Sequence[Call],
    rng: random.Random,
    names_and_values: tuple[Sequence[str], Sequence[str]],
    play: Callable[[Sequence[Call]], World],
) -> tuple[tuple[Call, ...], str] | None:
    asked = str(task.payload["asked"])
    for _ in range(_TRIES):
        changed = _changed(steps, rng, *names_and_values)
        if asked and rng.random() < 0.5:
            return tuple(steps), _other(asked, rng)
        if difference(play(changed), task.payload["goal"]):
            return changed, asked
    return None


def corrupted_calls(
    expected: Sequence[Call], apis: Sequence[Api] | None, rng: random.Random
) -> tuple[Call, ...]:
    """Calls that the rule refuses, also without those that native tools refuse to take."""
    names = [api.name for api in apis] if apis else [f"{call.name}Details" for call in expected]
    for _ in range(_TRIES):
        changed = _changed(expected, rng, names, ())
        counted = [c for c in changed if apis is None or not problem(c, apis)]
        if not grade_recorded(counted, expected).success:
            return changed
    return tuple(expected[:-1])


def _changed(
    calls: Sequence[Call], rng: random.Random, names: Sequence[str], values: Sequence[str]
) -> tuple[Call, ...]:
    """One call dropped, made twice, renamed, or with another argument, maybe one of `values`."""
    place = rng.randrange(len(calls))
    made = calls[place]
    changes: list[Callable[[], tuple[Call, ...]]] = [
        lambda: (),
        lambda: (made, made),
        lambda: (Call(rng.choice(names), made.arguments),),
    ]
    if made.arguments:
        key = rng.choice(list(made.arguments))
        known = values and rng.random() < 0.5
        value = rng.choice(values) if known else _other(made.arguments[key], rng)
        changes += [lambda: (Call(made.name, {**made.arguments, key: value}),)] * 3
    return (*calls[:place], *rng.choice(changes)(), *calls[place + 1 :])


def _other(value: Any, rng: random.Random) -> Any:
    """A value of the same type that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.randint(1, 3)
    if isinstance(value, list):
        return value[:-1] or ["other"]
    if isinstance(value, dict):
        return {**value, "other": 1}
    if value in DAYS:
        return rng.choice([day for day in DAYS if day != value])
    if value.isdecimal():
        return str(int(value) + rng.randint(1, 3))
    return "other" if value != "other" else "another"


def _played(task: Task, calls: Sequence[Call]) -> Desk:
    """The world after the calls; refused ones and unknown names change nothing."""
    world = Desk(task.payload["world"])
    for call in calls:
        try:
            getattr(world, call.name)(**call.arguments)
        except (ToolException, AttributeError, TypeError):
            continue
    return world


def _done(task: Task, box: Toolbox, calls: Sequence[Call]) -> Store:
    """The generated world after the calls; refused ones and unknown names change nothing."""
    store = Store(task.payload["world"])
    tools = {tool.name: tool for tool in box.tools}
    for made in calls:
        try:
            generated_tools.call(store, tools[made.name], made.arguments)
        except (ToolException, ValidationError):
            continue
    return store


def _needless(task: Task, steps: Sequence[Call]) -> tuple[Call, ...]:
    world = _played(task, steps)
    return tuple(
        Call("delete", {"id": id}) for id, r in world.records.items() if r["kind"] != "item"
    )[:1]
