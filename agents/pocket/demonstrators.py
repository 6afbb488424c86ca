"""Noisy demonstrators, the pocket student's only teachers: they misread tasks on purpose.

A demonstrator reads each phrase of a task by its belief, a fixed distribution in which the
right meaning is only one candidate, and then acts on that reading without a further mistake.
Imitating them makes a student that knows the formats and is mediocre at the tasks.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import ToolEnv
from envs.calculator import CalculatorEnv, problems
from envs.calculator.arithmetic import ArithmeticProblem, calculate
from envs.code import CodeEnv
from envs.code import problems as pipelines
from envs.types import Message, Task, ToolCall

Belief = Mapping[str, float]  # candidate meaning -> probability
Reading = tuple[str, ...]  # one meaning for each phrase of the task
# Shares of the levels in the warm start, and what its calculator problems are made of: every
# kind of text at every level, so that the student knows the formats.
LEVELS = {1: 0.2, 2: 0.45, 3: 0.2, 4: 0.15}
CALCULATOR_MIX = problems.Mix(
    expressions={1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25},
    tricky={1: (0, 0), 2: (0, 0), 3: (0, 1), 4: (1, 2)},
)


class Demonstrator(ABC):
    """Somebody who plays one environment, badly on purpose."""

    def __init__(self) -> None:
        self.envs = {level: self.env_class(level=level) for level in LEVELS}

    @property
    @abstractmethod
    def env_class(self) -> type[ToolEnv]:
        """The environment that it plays."""

    @abstractmethod
    def beliefs(self, task: Task) -> Sequence[Belief]:
        """One distribution over meanings for each phrase."""

    @abstractmethod
    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """The transcript, observations included, of somebody who reads the task so."""

    @abstractmethod
    def feedback(self, task: Task, reading: Reading) -> str:
        """What the verifier would say of a wrong reading, without giving the answer away."""

    def draw(self, rng: random.Random) -> Task:
        """A task of the train families, at any level."""
        return self.draw_at(rng, rng.choices(list(LEVELS), list(LEVELS.values()))[0])

    def draw_at(self, rng: random.Random, level: int) -> Task:
        """A task of the train families at one level."""
        return self.envs[level].generate_task(rng)

    def read(self, rng: random.Random, task: Task) -> Reading:
        """Read every phrase by belief."""
        return tuple(rng.choices(list(b), list(b.values()))[0] for b in self.beliefs(task))

    def guess(self, rng: random.Random, task: Task) -> Reading:
        """Read every phrase at random, whatever it says."""
        return tuple(rng.choice(list(b)) for b in self.beliefs(task))


def belief(right: str, chance: float, confused_with: str, others: Sequence[str]) -> Belief:
    """Right with probability `chance`; most of the rest goes to one other meaning."""
    rest = [meaning for meaning in others if meaning not in (right, confused_with)]
    spread = 0.15 * (1 - chance) if rest else 0.0
    shares = {meaning: spread / len(rest) for meaning in rest}
    return {right: chance, confused_with: 1 - chance - spread, **shares}


def call(name: str, **arguments: Any) -> Message:
    """An assistant turn that only calls a tool."""
    return Message("assistant", "", (ToolCall("call_0", name, json.dumps(arguments)),))


def result(text: str) -> Message:
    """The observation of `call`."""
    return Message("tool", text, tool_call_id="call_0")


class CalculatorDemonstrator(Demonstrator):
    """Confuses operations, drops parentheses."""

    env_class = CalculatorEnv

    def draw_at(self, rng: random.Random, level: int) -> Task:
        """As the environment does, in another mix."""
        return problems.generate(rng, level, held=False, mix=CALCULATOR_MIX)

    _confusion = {"+": "*", "-": "/", "*": "+", "/": "-"}  # noqa: RUF012 - a constant

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
            found.append(belief(right, chance, self._confusion[right], "+-*/"))
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
                messages += self._use("(" + expression)
            messages += self._use(expression)
            value = messages[-1].content.split(" ")[0]  # 25/9 of "25/9 (about 2.77778)"
        return (*messages, Message("assistant", f"The answer is \\boxed{{{value}}}."))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The verifier only says which answer was wrong."""
        answer = self.act(random.Random(0), task, reading)[-1]
        return self.envs[1].grade(Task("", "", "-0.5"), answer).feedback

    def _use(self, expression: str) -> list[Message]:
        try:
            value = calculate(expression)
        except ArithmeticProblem as error:
            value = f"Error: {error}"
        return [call("calculate", expression=expression), result(value)]


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


DEMONSTRATORS: tuple[type[Demonstrator], ...] = (CalculatorDemonstrator, CodeDemonstrator)


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
