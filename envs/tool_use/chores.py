"""Procedural chores in generated worlds: what is to be done, and what is then true."""

import json
import random
import re
from collections.abc import Sequence

from envs.tasks import held_out, stable_seed
from envs.tool_use.acting import Store
from envs.tool_use.declaration import Domain, Kind, Ref
from envs.tool_use.errands import CALLS
from envs.tool_use.planning import Chore, Planner, played
from envs.tool_use.stock import draw_world
from envs.tool_use.toolbox import Toolbox, draw_style, draw_toolbox
from envs.tool_use.worlds import DOMAINS
from envs.types import Task

NEAR = {1: 1, 2: 2, 3: 3, 4: 3}  # tools of the domain that are not needed
_TRIES = 8  # of chores in one world
_MOST_TURNS = 7  # with the refusals that tell what has to be done first
_NUMBER = re.compile(r"\b[0-9]+\b")


def generate(rng: random.Random, level: int, held: bool) -> Task:
    """Draw a chore of a level, with tools of its own, from the train or the held-out families.

    Level 1 names records by their ids and needs one call; level 2 names one and needs two. Level 3
    needs three calls: a relation leads to the record, a code has to be looked up, something has
    to be done first, or a list of records is meant. Level 4 needs four to six: the new value
    stands in another record, another order or a question follows. From level 3 on, names are
    shared, verbs may be tricky, and values stand there that do not count.

    A family is a prompt but for its numbers; one in four is held out, and so is one domain with
    all its words. Held-out tasks also name their tools in ways that train never does.
    """
    fewest, most = CALLS[level]
    domains = [domain for domain in DOMAINS.values() if held or not domain.held_out]
    while True:
        domain, style = rng.choice(domains), draw_style(rng, held)
        foreign = _foreign(rng, [other for other in domains if other is not domain])
        store = draw_world(rng, (*domain.kinds, foreign[1]), foreign[1], level)
        for _ in range(_TRIES):
            chore = Planner(rng, domain, style, store, level).plan()
            if (
                chore is not None
                and fewest <= len(chore.steps) <= most
                and len(chore.steps) + chore.refusals <= _MOST_TURNS
                and _is_held_out(domain, chore.prompt) == held
                and (goal := played(store, chore)) is not None
            ):
                does = [step.does for step in chore.steps]
                toolbox = draw_toolbox(rng, style, domain, foreign, does, NEAR[level])
                return _task(store, goal, chore, toolbox)


def _task(store: Store, goal: Store, chore: Chore, toolbox: Toolbox) -> Task:
    calls = (toolbox.call(step.does, step.roles) for step in chore.steps)
    payload = {
        "kind": "chore",
        "world": store.freeze(),
        "goal": goal.freeze(),
        "asked": chore.asked,
        "steps": tuple((name, json.dumps(arguments)) for name, arguments in calls),
        **toolbox.data(),
    }
    seed = stable_seed(chore.prompt, payload["world"], payload["tools"])
    return Task(
        f"tool_use/chore/{seed % 16**10:010x}", chore.prompt, chore.asked or "Done.", payload
    )


def _is_held_out(domain: Domain, prompt: str) -> bool:
    return domain.held_out or held_out(_NUMBER.sub("#", prompt))


def _foreign(rng: random.Random, domains: Sequence[Domain]) -> tuple[Domain, Kind]:
    """A kind of another domain that refers to nothing and with which something can be done."""
    return rng.choice(
        [
            (domain, kind)
            for domain in domains
            for kind in domain.kinds
            if not any(isinstance(each, Ref) for each in kind.fields)
            and any(action.kind == kind.name and not action.needs for action in domain.actions)
        ]
    )
