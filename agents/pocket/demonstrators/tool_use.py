"""Who plays `tool_use`: takes verbs for each other, and answers with the wrong field."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agents.pocket.demonstrators.base import Belief, Demonstrator, Reading, belief
from envs.tasks import stable_seed
from envs.tool_use import ToolUseEnv
from envs.types import Message, Task

# What can be done to a record of a kind, and so be taken for each other.
_ACTIONS = {
    "contact": ("set_phone", "show"),
    "event": ("move", "delete"),
    "file": ("move", "archive", "delete"),
    "item": ("buy", "show"),
}
_CHANGES = ("set_phone", "move", "delete", "archive", "buy")
_FIELDS = {"contact": "phone", "event": "day", "file": "folder", "item": "stock"}


class ToolUseDemonstrator(Demonstrator):
    """Finds and shows what it should; what it then does or says may be something else."""

    env_class = ToolUseEnv
    levels: ClassVar[Mapping[int, float]] = {1: 0.3, 2: 0.5, 3: 0.2}

    def beliefs(self, task: Task) -> Sequence[Belief]:
        """One for each change, one for the answer to the question."""
        found = []
        # The first word and the kind are the way in which something is said.
        way = task.prompt.split(" ")[0]
        for tool, arguments in self._steps(task):
            if tool in _CHANGES:
                kind = self._record(task, arguments["id"])["kind"]
                others = [other for other in _ACTIONS[kind] if other != tool]
                found.append(belief(tool, _chance(way, tool, kind), others[0], others))
        if task.payload["asked"]:
            kind = self._record(task, self._steps(task)[-1][1]["id"])["kind"]
            field = _FIELDS[kind]
            others = ["bought", "name"] if kind == "item" else ["name"]
            found.append(belief(field, _chance(way, field, kind), others[0], others))
        return found

    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """The solution's calls with other tools where a verb was taken for another."""
        self.env.reset(options={"task": task})
        meanings, messages, seen = iter(reading), [], ""
        for tool, arguments in self._steps(task):
            if tool in _CHANGES:
                tool, arguments = _changed(next(meanings), tool, arguments)
            messages += self.use(tool, **arguments)
            seen = arguments.get("id", seen)
        if not task.payload["asked"]:
            return (*messages, Message("assistant", "Done."))
        answer = self._record(task, seen)[next(meanings)]
        return (*messages, Message("assistant", f"\\boxed{{{answer}}}"))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The first thing that is not as it should be."""
        return self.judged(task, self.act(random.Random(0), task, reading))

    def _steps(self, task: Task) -> list[tuple[str, dict[str, Any]]]:
        calls = (c for message in self.env.solution(task) for c in message.tool_calls)
        return [(c.name, json.loads(c.arguments)) for c in calls]

    def _record(self, task: Task, id: str) -> dict[str, Any]:
        return dict(dict(task.payload["world"])[id])


def _chance(way: str, meaning: str, kind: str) -> float:
    """Fixed for each way of saying something."""
    return (0.68, 0.56, 0.44, 0.32)[stable_seed(way, meaning, kind) % 4]


def _changed(meaning: str, tool: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The call that `meaning` stands for, about the same record."""
    if meaning == tool:
        return tool, arguments
    id = arguments["id"]
    if meaning == "move":
        return meaning, {"id": id, "to": "Sun" if id.startswith("e") else "old"}
    return meaning, {"id": id}
