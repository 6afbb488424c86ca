"""What an agent says that solves a programming task, and what looks like it and is wrong."""

import json
import random
from collections.abc import Mapping
from typing import Any

from envs.base import NoSolution
from envs.types import Message, Task, ToolCall

# Appended to a right function: whatever it returns becomes something else of the same type.
_ALTERED = """

_right_{name} = {name}

def {name}(*args, **kwargs):
    return _altered(_right_{name}(*args, **kwargs))

def _altered(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + {number}
    if isinstance(value, str):
        return value + {letter!r}
    if isinstance(value, (list, tuple)):
        return type(value)([*value, {number}])
    return {number}
"""


def solution(task: Task) -> tuple[Message, ...]:
    """The program, tried with `run_python`, then handed in."""
    if not task.answer.strip():
        raise NoSolution(f"{task.id}: the data gives no program that solves it")
    return _handed_in(task.answer, task.payload)


def corrupted(task: Task, rng: random.Random) -> tuple[Message, ...]:
    """The program with other results; without a program, one that answers the same to all."""
    payload, number, letter = task.payload, rng.randint(1, 9), rng.choice("xyz")
    if "stdin_cases" in payload:
        program = task.answer or "import sys\nprint(sys.stdin.read())"
        return _handed_in(f"{program}\nprint({letter!r})", payload)
    name = str(payload["entry_point"])
    if task.answer and "epilogue" not in payload:
        return _handed_in(
            task.answer + _ALTERED.format(name=name, number=number, letter=letter), payload
        )
    constant = f"def {name}(*args):\n    return {[letter] * number!r}"
    if "epilogue" in payload:
        constant = f"class Solution:\n    {name} = lambda *args: {[letter] * number!r}"
    return _handed_in(constant, payload)


def _handed_in(program: str, payload: Mapping[str, Any]) -> tuple[Message, ...]:
    final = Message("assistant", f"Here it is.\n```python\n{program}\n```")
    if "stdin_cases" in payload:  # run_python has no input
        return (final,)
    code = str(payload.get("preamble", "")) + program
    call = ToolCall("call_0", "run_python", json.dumps({"code": code}))
    return Message("assistant", "", (call,)), final
