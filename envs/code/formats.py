"""Which format a row of a programming benchmark has."""

from collections.abc import Callable, Mapping
from typing import Any

from envs.code.completions import read_humaneval, read_humaneval_plus, read_mbpp
from envs.code.contests import read_codecontests, read_codeforces, read_livecodebench
from envs.code.fields import PROGRAM, printable, task_of
from envs.data import text_field
from envs.types import Task


def read_row(row: Mapping[str, Any]) -> Task:
    """The task of a row, whose format is told by the first field of these that it has.

    | format | field | other fields |
    |---|---|---|
    | stdin cases | `stdin_cases`: [input, output] | `prompt`, `tolerance`? |
    | cases | `cases`: [arguments, expected] | `prompt`, `entry_point`, `tolerance`? |
    | LiveCodeBench | `private_test_cases` | `question_content`, `public_test_cases`, ... |
    | Codeforces | `official_tests` | `description`, `examples`, ... |
    | CodeContests | `private_tests` | `description`, `public_tests`, `solutions` |
    | MBPP | `test_list` | `text` or `prompt`, `code` |
    | MBPP+ | `test_list` and `test` | as MBPP |
    | HumanEval+ | `plus_input` | as HumanEval, `base_input`, `atol` |
    | HumanEval | `entry_point` | `prompt`, `test`, `canonical_solution`? |

    Raises:
        KeyError, ValueError: the row is none of them.
    """
    for mark, read in _READERS.items():
        if mark in row:
            return read(row)
    marks = ", ".join(map(repr, _READERS))
    raise ValueError(f"expected a field that tells the format: {marks}; got {list(row)!r:.200}")


def _stdin_cases(row: Mapping[str, Any]) -> Task:
    cases = _pairs(row, "stdin_cases", str, str)
    payload = {"stdin_cases": tuple((given, printable(out)) for given, out in cases)}
    payload |= _tolerance(row)
    return task_of(row, "file", f"{PROGRAM}\n{text_field(row, 'prompt')}", payload)


def _cases(row: Mapping[str, Any]) -> Task:
    prompt, entry_point = text_field(row, "prompt"), text_field(row, "entry_point")
    payload = {"entry_point": entry_point, "cases": _pairs(row, "cases", list, object)}
    payload |= _tolerance(row)
    return task_of(row, "file", f"Write the function {entry_point}.\n{prompt}", payload)


def _tolerance(row: Mapping[str, Any]) -> dict[str, Any]:
    value = row.get("tolerance", 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"expected a number from 0 to 1 in 'tolerance', got {value!r:.60}")
    return {"tolerance": float(value)}


def _pairs(row: Mapping[str, Any], field: str, *kinds: type) -> tuple[tuple[Any, ...], ...]:
    cases = row[field]
    if not (isinstance(cases, list) and cases) or not all(
        isinstance(case, list) and len(case) == 2 and all(map(isinstance, case, kinds))
        for case in cases
    ):
        kind, other = (kind.__name__ for kind in kinds)
        raise ValueError(f"expected a list of pairs [{kind}, {other}] in {field!r}")
    return tuple(map(tuple, cases))


_READERS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
    "stdin_cases": _stdin_cases,
    "cases": _cases,
    "private_test_cases": read_livecodebench,
    "official_tests": read_codeforces,
    "private_tests": read_codecontests,
    "test_list": read_mbpp,
    "plus_input": read_humaneval_plus,
    "entry_point": read_humaneval,
}
FORMATS = (
    *("HumanEval", "HumanEval+", "MBPP", "MBPP+", "LiveCodeBench", "Codeforces", "CodeContests"),
    *("cases", "stdin cases"),
)
