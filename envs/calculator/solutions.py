"""What an agent says that solves a calculator task, and what looks like it and is wrong."""

import json
import random
import re
from collections.abc import Sequence

from envs.calculator.arithmetic import ArithmeticProblem, calculate
from envs.calculator.problems import PHRASES
from envs.grading.number import plain_number
from envs.types import Message, Task, ToolCall

_DIGIT = re.compile(r"(?<!_)(?<!_\{)\d")  # math-verify does not see subscripts


def solution(task: Task) -> tuple[Message, ...]:
    """Each computation that the task's data tells of, then the answer."""
    calls = tuple(
        ToolCall(f"call_{number}", "calculate", json.dumps({"expression": expression}))
        for number, expression in enumerate(_steps(task))
    )
    # A story is computed step by step; the marks of a rationale are known at once.
    turns = [(call,) for call in calls] if task.payload.get("kind") == "story" else [calls]
    return (*(Message("assistant", "", turn) for turn in turns if turn), final(task.answer))


def corrupted(task: Task, rng: random.Random) -> tuple[Message, ...]:
    """The solution with another answer."""
    return (*solution(task)[:-1], final(another_answer(task.answer, rng)))


def final(answer: str) -> Message:
    """The message that answers."""
    return Message("assistant", f"The answer is \\boxed{{{answer}}}.")


def another_answer(answer: str, rng: random.Random) -> str:
    """An answer that is written much like the given one and means something else."""
    number = plain_number(answer)
    if number is not None:
        others = (number + 1, number - 1, number * 10 + 1, -number - 1, number / 2 + 3)
        return str(rng.choice([other for other in others if other != number]))
    if answer in ("A", "B", "C", "D", "E"):
        return rng.choice("ABCDE".replace(answer, ""))
    digits = list(_DIGIT.finditer(answer))
    if digits:
        digit = rng.choice(digits)
        other = rng.choice([new for new in "123456789" if new != digit.group()])
        return answer[: digit.start()] + other + answer[digit.end() :]
    if answer.startswith("\\text{"):
        return answer.replace("\\text{", "\\text{not ", 1)
    return answer.removeprefix("-") if answer.startswith("-") else f"-{answer}"


def _steps(task: Task) -> Sequence[str]:
    payload = task.payload
    if payload.get("kind") == "expression":
        return (str(payload["expression"]),)
    if payload.get("kind") != "story":
        # An environment allows 16 calls; some marks are no arithmetic, such as `5%*20`.
        return [step for step in payload.get("steps", ())[:12] if _computable(step)]
    steps, value = [], str(payload["start"])
    for phrase, number in zip(payload["phrases"], payload["numbers"], strict=True):
        steps.append(f"{value} {PHRASES[phrase].operation} {number}")
        value = calculate(steps[-1])
    return steps


def _computable(expression: str) -> bool:
    try:
        calculate(expression)
    except ArithmeticProblem:
        return False
    return True
