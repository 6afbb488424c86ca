"""Rows of LiveCodeBench, Codeforces and CodeContests: programs that inputs and outputs judge."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from envs.code.fields import PROGRAM, list_of, object_of, parsed, printable, task_of, tests_of
from envs.code.packed import unpack
from envs.data import text_field
from envs.types import Task

Case = tuple[Any, Any]
# What LiveCodeBench imports before a program.
LIBRARY = (
    "".join(
        f"from {name} import *\n"
        for name in (
            *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math"),
            *("random", "statistics", "itertools", "functools", "operator", "io", "sys", "json"),
            *("builtins", "typing"),
        )
    )
    + "import bisect, collections, copy, datetime, functools, heapq, itertools, json, math\n"
    + "import operator, random, re, string, sys\nsys.setrecursionlimit(50000)\n"
)


def hidden_cases(payload: Mapping[str, Any]) -> Sequence[Case]:
    """All cases of a task that is judged by cases, those that are kept packed included."""
    cases = payload["stdin_cases"] if "stdin_cases" in payload else payload["cases"]
    if "packed" not in payload:
        return cases  # type: ignore[no-any-return] # a payload holds anything
    return (*cases, *livecodebench_cases(unpack(payload["packed"]), "cases" in payload))


def read_livecodebench(row: Mapping[str, Any]) -> Task:
    """A program, or a method of the class Solution."""
    question, packed = text_field(row, "question_content"), text_field(row, "private_test_cases")
    public = parsed(row, "public_test_cases")
    private = unpack(packed)  # only to see that it is whole: a row can have 100 MB of tests
    kinds = {case.get("testtype") for case in [*tests_of(public), *tests_of(private)]}
    if kinds not in ({"stdin"}, {"functional"}):
        raise ValueError(f"expected tests of one 'testtype', stdin or functional, got {kinds}")
    functional = kinds == {"functional"}
    visible = tuple(livecodebench_cases(public, functional))
    for _ in livecodebench_cases(private, functional):
        pass
    payload: dict[str, Any] = {"packed": packed, "preamble": LIBRARY}
    if functional:
        name = object_of(parsed(row, "metadata"), "metadata").get("func_name")
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"expected a name in 'func_name' of 'metadata', got {name!r:.60}")
        payload |= {"entry_point": name, "cases": visible, "epilogue": _method(name)}
        starter = text_field(row, "starter_code").rstrip()
        asked = f"Write the class Solution.\n{question.strip()}\n```python\n{starter}\n```"
    else:
        payload |= {"stdin_cases": visible, "tolerance": 0.0}
        asked = f"{PROGRAM}\n{question.strip()}{_examples(visible, question)}"
    return task_of(row, "livecodebench", asked, payload)


def livecodebench_cases(tests: Any, functional: bool) -> Iterator[Case]:
    """Inputs and outputs as texts, or as arguments and a value."""
    for test in tests_of(tests):
        given, expected = test.get("input"), test.get("output")
        if not isinstance(given, str) or not isinstance(expected, str):
            raise ValueError("expected texts in 'input' and 'output' of a test")
        if functional:
            try:
                arguments = [json.loads(line) for line in given.split("\n")]
                yield arguments, _whole(json.loads(expected))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"expected JSON in a functional test: {error}") from error
        else:
            yield given, printable(expected)


def _whole(value: Any) -> Any:
    """JSON in which 2.0 is 2, as it is for `==`, by which LiveCodeBench compares."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _method(name: str) -> str:
    """The method as a function whose value is compared as JSON: a tuple is a list, 2.0 is 2."""
    return f"""

_given = globals().get({name!r})

def {name}(*arguments):
    import json
    function = getattr(Solution(), {name!r}) if "Solution" in globals() else _given
    return _whole(json.loads(json.dumps(function(*arguments))))

def _whole(value):
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {{key: _whole(item) for key, item in value.items()}}
    return int(value) if isinstance(value, float) and value.is_integer() else value
"""


# Codeforces and CodeContests: standard input.


def read_codeforces(row: Mapping[str, Any]) -> Task:
    """A program with one right output for each input."""
    for field, cure in (
        ("generated_checker", "several outputs may be right, which needs a checker"),
        ("interaction_format", "the judge answers the program"),
    ):
        if row.get(field):
            raise ValueError(f"got a task with {field!r}: {cure}; expected one of fixed outputs")
    if row.get("input_mode", "stdio") != "stdio":
        raise ValueError(f"expected the 'input_mode' stdio, got {row['input_mode']!r:.60}")
    hidden = tuple(_texts(list_of(row, "official_tests")))
    examples = tuple(_texts(row.get("examples") or []))
    parts = [
        f"{heading}{value.strip()}"
        for field, heading in (
            ("title", "# "),
            ("description", ""),
            ("input_format", "Input: "),
            ("output_format", "Output: "),
            ("note", "Note: "),
        )
        if (value := row.get(field)) and isinstance(value, str)
    ]
    text_field(row, "description")
    asked = "\n".join([PROGRAM, *parts]) + _examples(examples)
    payload = {"stdin_cases": tuple(dict.fromkeys((*examples, *hidden))), "tolerance": 0.0}
    return task_of(row, "codeforces", asked, payload)


def read_codecontests(row: Mapping[str, Any]) -> Task:
    """A program; of the solutions, the first in Python 3 is kept."""
    if row.get("input_file") or row.get("output_file"):
        raise ValueError("got a task that reads or writes a file; expected standard input")
    sets = [row.get(name) for name in ("public_tests", "private_tests", "generated_tests")]
    public, private, generated = (tuple(_columns(tests)) for tests in sets)
    if not (private or generated):
        raise ValueError("expected tests in 'private_tests' or 'generated_tests', got none")
    solutions = object_of(row.get("solutions") or {}, "solutions")
    python = [
        text
        for kind, text in zip(
            solutions.get("language", ()), solutions.get("solution", ()), strict=False
        )
        if kind in (3, "PYTHON3")
    ]
    payload = {
        "stdin_cases": tuple(dict.fromkeys((*public, *private, *generated))),
        "tolerance": 0.0,
    }
    text = text_field(row, "description")
    asked = f"{PROGRAM}\n{text.strip()}{_examples(public, text)}"
    return task_of(row, "codecontests", asked, payload, python[0] if python else "")


def _columns(tests: Any) -> Iterator[tuple[str, str]]:
    if tests is None:
        return
    if not isinstance(tests, dict):
        raise ValueError(
            f"expected tests as {{'input': [...], 'output': [...]}}, got {tests!r:.60}"
        )
    given, expected = tests.get("input") or [], tests.get("output") or []
    if not isinstance(given, list) or not isinstance(expected, list):
        raise ValueError(f"expected lists in 'input' and 'output' of tests, got {tests!r:.60}")
    if len(given) != len(expected):
        raise ValueError(f"expected as many outputs as inputs, got {len(expected)}, {len(given)}")
    pairs = zip(given, expected, strict=True)
    yield from _texts([{"input": text, "output": output} for text, output in pairs])


def _texts(tests: Any) -> Iterator[tuple[str, str]]:
    yield from livecodebench_cases(tests, functional=False)


def _examples(cases: Sequence[Case], text: str = "") -> str:
    """The visible tests, as far as the text does not show them."""
    return "".join(
        f"\nExample input:\n{given.rstrip()}\nExample output:\n{expected.rstrip()}"
        for given, expected in cases
        if given.strip() not in text
    )
