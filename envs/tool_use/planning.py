"""Draws what is to be done in a generated world: how it is said, and the calls that do it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.tools import ToolException

from envs.tool_use.acting import MOST, Store
from envs.tool_use.declaration import Action, Choice, Code, Domain, Flag, Kind, Number, Ref, Value
from envs.tool_use.errands import ASKING, joined
from envs.tool_use.stock import draw_value
from envs.tool_use.toolbox import Style
from envs.tool_use.worlds import KINDS

QUESTIONS = (
    "What is the {field} of {target}?",
    "Which {field} has {target}?",
    "Tell the {field} of {target}.",
)
DECOYS = (" Not {decoy}, whatever the note says.", " The {decoy} of yesterday no longer holds.")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the solution, by the roles of its arguments."""

    does: str
    roles: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """Records or a value as the prompt says them, and the calls that find them out."""

    text: str
    ids: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Chore:
    """A prompt with its solution; `asked` is the answer to its question, if it has one."""

    prompt: str
    steps: tuple[Step, ...]
    asked: str = ""
    about: tuple[str, ...] = ()  # ids of the records that it names
    sets: str = ""  # kind and field that it changes
    refusals: int = 0  # how much has to be done first


def played(store: Store, chore: Chore) -> Store | None:
    """The world after the chore; None where it cannot be done or comes to nothing."""
    goal = Store(store.freeze())
    try:
        for step in chore.steps:
            goal.act(step.does, "many" if "ids" in step.roles else "one", step.roles)
    except ToolException:
        return None
    return goal if chore.asked or goal.records != store.records else None


@dataclass(frozen=True, slots=True)
class Planner:
    """Draws chores in one world; None is what cannot be meant or comes to nothing."""

    rng: random.Random
    domain: Domain
    style: Style
    store: Store
    level: int

    def plan(self) -> Chore | None:
        """A question, an order, or at level 4 also an order with something behind it."""
        if self.rng.random() < ASKING[self.level]:
            return self._question()
        if self.level < 4 or self.rng.random() < 0.4:
            return self._order()
        return self._two()

    def _two(self) -> Chore | None:
        """An order, and in the world after it another one or a question."""
        first = self._order(tail=True)
        after = None if first is None else played(self.store, first)
        if first is None or after is None:
            return None
        later = replace(self, store=after)
        asks = self.rng.random() < 0.5
        second = later._question() if asks else later._order(tail=True)
        if second is None or second.sets == first.sets or set(first.about) & set(second.about):
            return None
        if any(step in first.steps and self._changed(step, after) for step in second.steps):
            return None
        prompt = second.prompt if asks else f"Then {second.prompt[0].lower()}{second.prompt[1:]}"
        return Chore(
            f"{first.prompt} {prompt}",
            joined(first.steps, second.steps),
            second.asked,
            refusals=first.refusals + second.refusals,
        )

    def _changed(self, step: Step, after: Store) -> bool:
        """Whether a call does something or would now tell something else."""
        if "/" in step.does:
            return True
        return self.store.act(step.does, "one", step.roles) != after.act(
            step.does, "one", step.roles
        )

    def _question(self) -> Chore | None:
        kind = self.rng.choice(self.domain.kinds)
        fields = [f for f in kind.fields if isinstance(f, (Choice, Number, Code))]
        target = self._target(kind)
        if target is None:
            return None
        name = self.rng.choice(fields).names[0]
        (id,) = target.ids
        return Chore(
            self.rng.choice(QUESTIONS).format(field=name, target=target.text),
            joined(target.steps, (_show(kind, id),)),
            str(self.store.records[id][name]),
            target.ids,
        )

    def _order(self, *, tail: bool = False) -> Chore | None:
        action = self._action()
        kind = self.domain.kind[action.kind]
        many = self.level > 2 and action.many and self.rng.random() < 0.3
        target = self._group(kind) if many else self._target(kind)
        tricky = self.level > 2 and action.tricky and self.rng.random() < 0.5
        template = self.rng.choice(action.tricky if tricky else action.plain)
        if target is None:
            return None
        linked = self.level > 3 and not tail and self.rng.random() < 0.5
        given = self._linked(action, target) if linked else self._given(action, target, template)
        if given is None or not self._changes(action, target, given):
            return None
        acts = self._acts(action, target.ids, given.value)
        if acts is None:
            return None
        slots = {"target": target.text, "value": given.text, "rest": given.text}
        prompt = (action.plain[0] if linked else template).format(**slots)
        if action.takes_value and not linked and "{rest}" not in template:
            prompt += self._decoy(action, given)
        steps, refusals = acts
        return Chore(
            prompt,
            joined(given.steps, target.steps, steps),
            about=(*target.ids, *given.ids),
            sets=f"{kind.name}.{action.field}",
            refusals=refusals,
        )

    def _action(self) -> Action:
        """What to do; from level 3 on, rather what may need something to be done first."""
        needy = [action for action in self.domain.actions if action.needs]
        rather = self.level > 2 and self.rng.random() < 0.5
        return self.rng.choice(needy if rather else self.domain.actions)

    # Records.

    def _target(self, kind: Kind) -> Said | None:
        """A record of a kind: by its id, by its name, or from level 3 on by a relation to it."""
        id = self._draw(kind)
        if self.level == 1:
            return Said(f"the {kind.name} {id}", (id,))
        if self.level > 2 and self.rng.random() < 0.6:
            return self._inverse(kind, id) if self.rng.random() < 0.6 else self._forward(kind)
        return self._named(id)

    def _named(self, id: str) -> Said | None:
        """By its name, where no other one of its kind has it."""
        record = self.store.records[id]
        kind, name = KINDS[str(record["kind"])], str(record["name"])
        if self.store.matching(name, kind.name) != [id]:
            return None
        text = name if kind.people else f"the {kind.name} {name}"
        return Said(text, (id,), (_find(kind, name),))

    def _inverse(self, kind: Kind, id: str) -> Said | None:
        """By what it refers to; with its name, too, where others refer to the same."""
        record = self.store.records[id]
        refs = [each for each in kind.fields if isinstance(each, Ref) and record[each.names[0]]]
        if not refs:
            return None
        ref = self.rng.choice(refs)
        other = self._named(str(record[ref.names[0]]))
        if other is None:
            return None
        for text, query in (
            (kind.name, other.ids[0]),
            (f"{kind.name} {record['name']}", f"{record['name']} {other.ids[0]}"),
        ):
            if self.store.matching(query, kind.name) == [id]:
                said = f"the {text} {ref.tail.format(other.text)}"
                return Said(said, (id,), (*other.steps, _find(kind, query)))
        return None

    def _forward(self, kind: Kind) -> Said | None:
        """By what refers to it."""
        known = self._known()
        if known is None:
            return None
        source = KINDS[str(self.store.records[known.ids[0]]["kind"])]
        refs = [each for each in source.fields if isinstance(each, Ref) and each.kind == kind.name]
        if not refs:
            return None
        name = self.rng.choice(refs).names[0]
        id = str(self.store.records[known.ids[0]][name])
        steps = (*known.steps, _show(source, known.ids[0]))
        return Said(f"the {name} of {known.text}", (id,), steps) if id else None

    def _known(self) -> Said | None:
        referring = [k for k in self.domain.kinds if any(isinstance(f, Ref) for f in k.fields)]
        return self._named(self._draw(self.rng.choice(referring)))

    def _group(self, kind: Kind) -> Said | None:
        """All records of a kind that refer to the same one."""
        ref = self.rng.choice([each for each in kind.fields if isinstance(each, Ref)] or [None])
        if ref is None:
            return None
        other = self._named(self._draw(KINDS[ref.kind]))
        if other is None:
            return None
        ids = [
            id
            for id, record in self.store.records.items()
            if record["kind"] == kind.name and record[ref.names[0]] == other.ids[0]
        ]
        if len(ids) < 2 or self.store.matching(other.ids[0], kind.name) != ids:
            return None
        steps = (*other.steps, _find(kind, other.ids[0]))
        return Said(f"all {kind.name}s {ref.tail.format(other.text)}", tuple(ids), steps)

    def _draw(self, kind: Kind) -> str:
        records = self.store.records.items()
        return self.rng.choice([id for id, record in records if record["kind"] == kind.name])

    # Values.

    def _given(self, action: Action, target: Said, template: str) -> Said | None:
        """The value, said as it is; another record for a field that refers to one."""
        if not action.takes_value:
            return Said("")
        each, id = self.domain.field(action), target.ids[0]
        if isinstance(each, Ref):
            other = self._target(self.domain.kind[each.kind])
            if other is not None and self.level == 2 and self.rng.random() < 0.5:
                other = Said(f"the {each.kind} {other.ids[0]}", other.ids)
            return other and replace(other, value=other.ids[0])
        if action.how == "set" or not isinstance(each, Number):
            value = draw_value(self.rng, each, {})
            return Said(self.store.shown(each, value), value=value)
        before = int(self.store.records[id][action.field])
        most = before if action.how == "take" else MOST - before
        if most < 2:
            return None
        value = self.rng.randint(1, most - 1)
        if "{rest}" not in template:
            return Said(str(value), value=value)
        rest = before - value if action.how == "take" else before + value
        steps = (*target.steps, _show(KINDS[action.kind], id))
        return Said(str(rest), steps=steps, value=value)

    def _linked(self, action: Action, target: Said) -> Said | None:
        """The value that another record of the kind has."""
        if not action.takes_value or action.how != "set":
            return None
        kind = self.domain.kind[action.kind]
        other = self._target(kind)
        if isinstance(self.domain.field(action), (Ref, Flag)):
            return None
        if other is None or other.ids[0] in target.ids:
            return None
        return Said(
            f"the {action.field} of {other.text}",
            other.ids,
            (*other.steps, _show(kind, other.ids[0])),
            self.store.records[other.ids[0]][action.field],
        )

    def _changes(self, action: Action, target: Said, given: Said) -> bool:
        value = action.value if given.value is None else given.value
        records = [self.store.records[id] for id in target.ids]
        return action.how != "set" or any(record[action.field] != value for record in records)

    def _decoy(self, action: Action, given: Said) -> str:
        """From level 3 on, maybe another value that does not count."""
        each = self.domain.field(action)
        if self.level < 3 or isinstance(each, (Ref, Flag)) or self.rng.random() < 0.7:
            return ""
        decoy = str(draw_value(self.rng, each, {}))
        return self.rng.choice(DECOYS).format(decoy=decoy) if decoy != given.text else ""

    # Calls.

    def _acts(
        self, action: Action, ids: Sequence[str], value: Value | None
    ) -> tuple[tuple[Step, ...], int] | None:
        """The calls that do it to records, with what has to be done first, and how much that is."""
        if self.style.lists and len(ids) > 1:
            unmet = any(self._unmet(action, id, value) for id in ids)
            does = f"{self.domain.name}/{action.name}"
            given = {} if value is None else {"value": value}
            return None if unmet else ((Step(does, {"ids": list(ids), **given}),), 0)
        done = [self._act(action, id, value) for id in ids]
        refusals = sum(count for _, count in done)
        # Before level 3, and for several records, everything can be done at once.
        if refusals and (self.level < 3 or len(ids) > 1):
            return None
        return tuple(step for steps, _ in done for step in steps), refusals

    def _act(self, action: Action, id: str, value: Value | None) -> tuple[tuple[Step, ...], int]:
        steps: list[Step] = []
        refusals = 0
        for cure, holder, wanted in self._unmet(action, id, value):
            record = self.store.records[holder]
            amount: Value | None = wanted
            if cure.how == "take":
                steps.append(_show(KINDS[cure.kind], holder))
                amount = int(record[cure.field]) - int(wanted)
            first, count = self._act(cure, holder, amount if cure.takes_value else None)
            steps += first
            refusals += 1 + count
        roles: dict[str, Any] = {"id": id}
        if action.proof:
            steps.append(_show(KINDS[action.kind], id))
            roles["proof"] = self.store.records[id][action.proof]
        if action.takes_value:
            roles["value"] = value
        return (*steps, Step(f"{self.domain.name}/{action.name}", roles)), refusals

    def _unmet(
        self, action: Action, id: str, value: Value | None
    ) -> list[tuple[Action, str, Value]]:
        """What has to be done first: the action, its record, and what is wanted."""
        unmet = []
        for need in action.needs:
            holder = str(value) if need.of_value else id
            if self.store.records[holder][need.field] != need.wanted:
                unmet.append((self.domain.action[need.cure], holder, need.wanted))
        return unmet


def _find(kind: Kind, text: str) -> Step:
    return Step(f"find {kind.name}", {"text": text})


def _show(kind: Kind, id: str) -> Step:
    return Step(f"show {kind.name}", {"id": id})
