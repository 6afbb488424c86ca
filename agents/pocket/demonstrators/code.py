"""Who plays `code`: confuses list steps with others of their kind."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agents.pocket.demonstrators.base import Belief, Demonstrator, Reading, belief, call, result
from envs.code import CodeEnv
from envs.code import problems as pipelines
from envs.types import Message, Task

# What each tricky step looks like to a hasty reader.
_NAIVE = {
    "leaves out the even numbers": "[x for x in xs if x % 2 == 0]",
    "leaves out the negative numbers": "[x for x in xs if x < 0]",
    "puts the largest first": "sorted(xs)",
    "multiplies each number by itself": "[x * 2 for x in xs]",
    "replaces each number by its successor": "[x - 1 for x in xs]",
    "turns the signs around": "[abs(x) for x in xs]",
}
# Meanings that can be taken for each other: the codes of one kind of step.
_POOLS: tuple[tuple[str, ...], ...] = (
    (*(s.code for s in pipelines.KEEP), "[x for x in xs if x >= 0]"),
    tuple(s.code for s in pipelines.CHANGE),
    (*(s.code for s in pipelines.ORDER), "sorted(xs)[::-1]"),
    tuple(s.code for s in pipelines.RETURN),
)


class CodeDemonstrator(Demonstrator):
    """Confuses list steps with others of their kind."""

    env_class = CodeEnv
    levels: ClassVar[Mapping[int, float]] = {1: 0.2, 2: 0.45, 3: 0.2, 4: 0.15}
    _examples = ("[3, -1, 4, -2]", "[2, 7, -6, -3]", "[-8, 1, 6, 9]")

    def beliefs(self, task: Task) -> Sequence[Belief]:
        """Each step read as one of its kind."""
        found = []
        for text in task.payload["steps"]:
            right = pipelines.STEPS[text].code
            pool = next(pool for pool in _POOLS if right in pool)
            at = pool.index(right)
            if text in _NAIVE:
                found.append(belief(right, (0.35, 0.25)[at % 2], _NAIVE[text], pool))
            else:
                # The next of its kind, the last with the first: a learnable confusion.
                chance = (0.82, 0.74, 0.66, 0.58)[at % 4]
                found.append(belief(right, chance, pool[(at + 1) % len(pool)], pool))
        return found

    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """A trial run, or from three steps on one run a step; then the program."""
        program = pipelines.program(reading)
        messages: list[Message] = []
        example = rng.choice(self._examples)
        if len(reading) <= 3:
            if rng.random() < 0.9:
                messages += self._trial(program, example)
        else:
            messages += self._steps(reading, example)
        return (*messages, Message("assistant", f"```python\n{program}\n```"))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The first case that differs, as the judge words it."""
        function = pipelines.compiled(reading)
        for (xs,), expected in task.payload["cases"]:
            try:
                value = function(list(xs))
            except (ValueError, IndexError) as error:
                return f"f({xs}) raised {type(error).__name__}: {error}"
            if value != expected:
                return f"f({xs}) returned {value!r}, expected {expected!r}"
        return ""

    def _trial(self, program: str, example: str) -> list[Message]:
        scope: dict[str, Any] = {}
        exec(program, scope)
        try:
            value = repr(scope["f"](json.loads(example)))
        except (ValueError, IndexError):
            return []
        return [call("run_python", code=f"{program}\nprint(f({example}))"), result(value)]

    def _steps(self, reading: Reading, example: str) -> list[Message]:
        xs: Any = json.loads(example)
        messages: list[Message] = []
        for i, code in enumerate(reading[:-1]):
            xs = eval(code, {"xs": xs})
            start = f"xs = {example}\n" if i == 0 else ""
            messages += [
                call("run_python", code=f"{start}xs = {code}\nprint(xs)"),
                result(repr(xs)),
            ]
        return messages
