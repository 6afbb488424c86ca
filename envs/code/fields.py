"""Fields of rows: each is what a reader needs, or a ValueError says what it is."""

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from envs.tasks import stable_seed
from envs.types import Task
from sandboxes.base import Limits

PROGRAM = "Write a program that reads standard input and writes standard output."


def task_of(
    row: Mapping[str, Any], kind: str, prompt: str, payload: dict[str, Any], answer: str = ""
) -> Task:
    """The task of a row, named by the row or by what it asks."""
    for field in ("task_id", "question_id", "id"):
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            name = value
            break
        if isinstance(value, int) and not isinstance(value, bool):
            name = f"{kind}/{value}"
            break
        if value is not None:
            raise ValueError(f"expected a text or a number in {field!r}, got {value!r:.60}")
    else:
        name = f"code/{kind}/{stable_seed(prompt):x}"
    given = row.get("canonical_solution")
    if given is not None and not isinstance(given, str):
        raise ValueError(f"expected a text in 'canonical_solution', got {type(given).__name__}")
    return Task(name, prompt, answer or given or "", payload)


def tree_of(text: str, field: str) -> ast.Module:
    """The syntax tree of Python code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in the texts of others
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"expected Python in {field!r}: {error}") from error


def python_of(text: str, field: str) -> str:
    """The code, which is Python."""
    tree_of(text, field)
    return text


def is_python(text: str) -> bool:
    """Whether the code is Python."""
    try:
        python_of(text, "")
    except ValueError:
        return False
    return True


def list_of(row: Mapping[str, Any], field: str) -> list[Any]:
    """A list that is not empty."""
    value = row[field]
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list that is not empty in {field!r}, got {value!r:.60}")
    return value


def parsed(row: Mapping[str, Any], field: str) -> Any:
    """A field that holds JSON, as text or already read."""
    value = row[field]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {field!r}: {error}") from error


def object_of(value: Any, field: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object in {field!r}, got {value!r:.60}")
    return value


def tests_of(tests: Any) -> list[dict[str, Any]]:
    """A list of JSON objects."""
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise ValueError(f"expected a list of tests, each with 'input' and 'output': {tests!r:.60}")
    return tests


def printable(expected: str) -> str:
    """An output that a sandbox keeps in full."""
    size, most = len(expected.encode("utf-8", "replace")), Limits().max_output_bytes
    if size > most:
        raise ValueError(f"a test expects an output of {size:,} bytes; a sandbox keeps {most:,}")
    return expected
