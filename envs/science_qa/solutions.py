"""What an agent says that solves a science task, and what looks like it and is wrong."""

import json
import random
from typing import Any

from envs.types import Message, Task, ToolCall

Messages = tuple[Message, ...]


def solution(task: Task) -> Messages:
    """The calls of the task's steps, one a turn, then the answer."""
    if task.payload["kind"] == "choice":
        return (_chosen(task.answer),)
    return (*_calls(task.payload["steps"]), _said(task.answer))


def corrupted(task: Task, rng: random.Random) -> Messages:
    """The same with another letter, or with a number or a unit that is wrong."""
    if task.payload["kind"] == "choice":
        letters = [a for a in task.payload["letters"] if a != task.answer]
        other = rng.choice(letters)
        # As published, a letter that is written otherwise is no letter.
        wrong = (other, other, f"{task.answer}, {other}", task.answer.lower(), f"({task.answer})")
        return (_chosen(rng.choice(wrong)),)
    return (*_calls(task.payload["steps"]), _said(_another(task, rng)))


def _another(task: Task, rng: random.Random) -> str:
    value, unit = float(task.payload["value"]), str(task.payload["unit"])
    factor = rng.choice((0.5, 0.9, 1.1, 2.0, 10.0, -1.0, 1.0))
    if factor != 1.0:
        named = unit or task.payload["counted"]
        return f"{value * factor:.8g} {named}".strip()
    wrong = rng.choice([other for other in ("kg", "s", "m", "K") if other not in unit])
    return f"{value:.8g} {wrong}"


def _calls(steps: Any) -> Messages:
    return tuple(
        Message("assistant", "", (ToolCall(f"call_{n}", tool, json.dumps(arguments)),))
        for n, (tool, arguments) in enumerate(steps)
    )


def _chosen(answer: str) -> Message:
    text = f"<reasoning>\nIt is {answer}.\n</reasoning>\n<answer>\n{answer}\n</answer>"
    return Message("assistant", text)


def _said(answer: str) -> Message:
    return Message("assistant", f"<answer>{answer}</answer>")
