"""Who plays `calculator`: confuses operations, drops parentheses."""

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from agents.pocket.demonstrators.base import Belief, Demonstrator, Reading, belief, call, result
from envs.calculator import CalculatorEnv, problems
from envs.calculator.arithmetic import ArithmeticProblem, calculate
from envs.types import Message, Task

# Every kind of text at every level, so that the student knows the formats.
MIX = problems.Mix(
    expressions={1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25},
    tricky={1: (0, 0), 2: (0, 0), 3: (0, 1), 4: (1, 2)},
)
_CONFUSED_WITH = {"+": "*", "-": "/", "*": "+", "/": "-"}


class CalculatorDemonstrator(Demonstrator):
    """Confuses operations, drops parentheses."""

    env_class = CalculatorEnv
    levels: ClassVar[Mapping[int, float]] = {1: 0.2, 2: 0.45, 3: 0.2, 4: 0.15}

    def draw_at(self, rng: random.Random, level: int) -> Task:
        """As the environment does, in another mix."""
        return problems.generate(rng, level, held=False, mix=MIX)

    def beliefs(self, task: Task) -> Sequence[Belief]:
        """A story's phrases read as operations; an expression read as one of its corruptions."""
        if task.payload["kind"] == "expression":
            right = task.payload["expression"]
            wrong = [w for w in _corruptions(right) if w != right]
            return [{right: 0.55, **{w: 0.45 / len(wrong) for w in wrong}}]
        found = []
        for text in task.payload["phrases"]:
            right = problems.PHRASES[text].operation
            plain = problems.PHRASES[text] in problems.PLAIN
            # Spread by a fixed rule, so that some phrases are nearly known and some are not.
            order = list(problems.PHRASES).index(text) % 4
            chance = (0.68, 0.6, 0.52, 0.44)[order] if plain else (0.35, 0.25)[order % 2]
            found.append(belief(right, chance, _CONFUSED_WITH[right], "+-*/"))
        return found

    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """One call for the whole or one a step, then the boxed answer."""
        if task.payload["kind"] == "expression":
            expressions = list(reading)
        else:
            start, numbers = task.payload["start"], task.payload["numbers"]
            if len(reading) <= 2 and rng.random() < 0.5:
                expressions = [_nested(start, reading, numbers)]
            else:
                expressions = [f"{{}} {o} {n}" for o, n in zip(reading, numbers, strict=True)]
        value = str(task.payload.get("start", ""))
        messages: list[Message] = []
        for expression in expressions:
            expression = expression.replace("{}", value)
            if rng.random() < 0.01:  # a slip of the pen, noticed and repaired
                messages += self._try("(" + expression)
            messages += self._try(expression)
            value = messages[-1].content.split(" ")[0]  # 25/9 of "25/9 (about 2.77778)"
        return (*messages, Message("assistant", f"The answer is \\boxed{{{value}}}."))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The verifier only says which answer was wrong."""
        answer = self.act(random.Random(0), task, reading)[-1]
        return self.env.grade(Task("", "", "-0.5"), answer).feedback

    def _try(self, expression: str) -> list[Message]:
        try:
            value = calculate(expression)
        except ArithmeticProblem as error:
            value = f"Error: {error}"
        return [call("calculate", expression=expression), result(value)]


def _nested(start: int, operations: Reading, numbers: Sequence[int]) -> str:
    text = str(start)
    for i, (operation, number) in enumerate(zip(operations, numbers, strict=True)):
        text = f"({text}) {operation} {number}" if i else f"{text} {operation} {number}"
    return text


def _corruptions(expression: str) -> list[str]:
    """Parentheses dropped, or one operator replaced."""
    found = [expression.replace("(", "").replace(")", "")]
    for i, character in enumerate(expression):
        if character in "+-*":
            found += [expression[:i] + o + expression[i + 1 :] for o in "+-*" if o != character]
    return found
