"""Rows of GSM8K, MATH, AIME, HMMT and DeepMath files as tasks."""

import re
from collections.abc import Mapping
from typing import Any

from envs.calculator.problems import identity
from envs.data import text_field
from envs.grading.number import boxed, plain_number
from envs.types import Task

FORMATS = ("GSM8K", "MATH", "AIME", "HMMT", "DeepMath")
_MARK = re.compile(r"<<([^<>=]{1,200})=[^<>]{0,200}>>")  # GSM8K's notes of what is computed
_IDS = ("id", "unique_id", "problem_idx")  # as AIME, MATH-500 and MathArena's HMMT call it


def read_row(row: Mapping[str, Any]) -> Task:
    """The task of a row, whose format is told by its fields.

    | format | fields |
    |---|---|
    | GSM8K | `question`, `answer` that ends with `#### number` |
    | MATH, AIME, HMMT | `problem`, and `answer` or a `solution` with a `\\boxed{}` |
    | DeepMath | `question`, `final_answer` |

    Raises:
        KeyError, ValueError: the row is none of them.
    """
    fields = {name.lower(): value for name, value in row.items()}  # some files have `Problem`
    if "problem" in fields:
        kind, prompt, answer = "math", text_field(fields, "problem"), _math_answer(fields)
    elif "final_answer" in fields:
        prompt = text_field(fields, "question")
        kind, answer = "deepmath", _written(fields, "final_answer")
    else:
        kind, prompt, answer = "gsm8k", text_field(fields, "question"), _gsm8k_answer(fields)
    payload: dict[str, Any] = {"kind": kind}
    if kind == "gsm8k":
        payload["steps"] = tuple(_MARK.findall(fields["answer"]))
    return Task(_id(fields) or identity(kind, prompt), prompt, answer, payload)


def _gsm8k_answer(fields: Mapping[str, Any]) -> str:
    _, mark, number = text_field(fields, "answer").rpartition("####")
    if not mark:
        raise ValueError("expected an 'answer' that ends with '#### number'")
    number = number.strip().replace(",", "")
    if plain_number(number) is None:
        raise ValueError(f"expected a number behind '####' in 'answer', got {number[:60]!r}")
    return number


def _math_answer(fields: Mapping[str, Any]) -> str:
    if "answer" in fields:
        return _written(fields, "answer")
    answer = boxed(text_field(fields, "solution"))
    if not answer:
        raise ValueError("expected an 'answer', or a 'solution' with a \\boxed{} answer")
    return answer


def _written(fields: Mapping[str, Any], field: str) -> str:
    """An answer that is a number or a text, which may stand between dollar signs or in a box."""
    value = fields[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = text_field(fields, field).strip()
    text = text.strip("$").strip() if text.count("$") == 2 else text
    return boxed(text) or text


def _id(fields: Mapping[str, Any]) -> str | None:
    for name in _IDS:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int | str) or isinstance(value, bool) or not str(value).strip():
            raise ValueError(f"expected a text or a number in {name!r}, got {value!r:.60}")
        return str(value)
    return None
