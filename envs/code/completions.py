"""Rows of HumanEval, HumanEval+, MBPP and MBPP+: functions that a script of asserts judges."""

import ast
import builtins
from collections.abc import Iterable, Mapping
from typing import Any

from envs.code.fields import is_python, list_of, python_of, task_of, tree_of
from envs.code.scripts import evalplus_script, without_numpy
from envs.data import text_field
from envs.types import Task


def read_humaneval(row: Mapping[str, Any]) -> Task:
    """The function of `prompt` to complete; `test` defines check()."""
    text_field(row, "prompt")
    return _completion(row, text_field(row, "test"))


def read_humaneval_plus(row: Mapping[str, Any]) -> Task:
    """The same with inputs and a reference program instead of a script."""
    inputs = [*list_of(row, "base_input"), *list_of(row, "plus_input")]
    reference = text_field(row, "prompt") + text_field(row, "canonical_solution")
    return _completion(
        row,
        evalplus_script(text_field(row, "entry_point"), reference, inputs, row.get("atol", 0)),
    )


def _completion(row: Mapping[str, Any], test: str) -> Task:
    """Complete the function of `prompt`; `test` defines check()."""
    prompt, entry_point = text_field(row, "prompt"), text_field(row, "entry_point")
    # Imports and helpers of the prompt, so that an answer which omits them still runs.
    preamble, _, _ = prompt.partition(f"def {entry_point}")
    payload = {
        "entry_point": entry_point,
        "test": without_numpy(_test_script(test, "test", entry_point)),
        # The tests may use what the prompt defines. Without a docstring it has no body.
        "support": prompt if is_python(prompt) else python_of(preamble, "prompt"),
        "preamble": preamble,
    }
    asked = f"Complete this function.\n```python\n{prompt.rstrip()}\n```"
    solution = row.get("canonical_solution")
    answer = prompt + solution if isinstance(solution, str) and solution.strip() else ""
    return task_of(row, "humaneval", asked, payload, answer)


def read_mbpp(row: Mapping[str, Any]) -> Task:
    """A function to write from its description; the agent sees the first assert."""
    asserts = list_of(row, "test_list")
    if not all(isinstance(line, str) for line in asserts):
        raise ValueError("expected a list of texts in 'test_list'")
    code = python_of(text_field(row, "code"), "code")
    first = asserts[0].strip()
    entry_point = _entry_point(code, asserts)
    if "test" in row:  # MBPP+
        test = without_numpy(_test_script(text_field(row, "test"), "test", entry_point))
    else:
        imports = row.get("test_imports") or ()
        setup = row.get("test_setup_code") or ""
        more = row.get("challenge_test_list") or ()
        script = "\n".join([*imports, setup, *asserts, *more])
        test = _test_script(script, "test_list", entry_point)
    payload = {"entry_point": entry_point, "test": test, "support": "", "preamble": ""}
    text = text_field(row, "text" if "text" in row else "prompt")
    asked = f"Write the function {entry_point}. {text.strip()}\nFor example:\n{first}"
    return task_of(row, "mbpp", asked, payload, code)


def _entry_point(code: str, asserts: Iterable[str]) -> str:
    """The function of `code` that the asserts call."""
    defined = {
        node.name
        for node in tree_of(code, "code").body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree_of("\n".join(asserts), "test_list")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in defined and not hasattr(builtins, name):
                return name
    raise ValueError(f"expected a 'test_list' that calls a function of 'code': {sorted(defined)}")


def _test_script(text: str, field: str, entry_point: str) -> str:
    """Python that calls the function, by position: what `judge_script` can judge."""
    nodes = tuple(ast.walk(tree_of(text, field)))
    names = ("candidate", entry_point)
    if not any(isinstance(node, ast.Name) and node.id in names for node in nodes):
        raise ValueError(f"expected {field!r} to call candidate or {entry_point}")
    for node in nodes:
        called = node.func if isinstance(node, ast.Call) and node.keywords else None
        if isinstance(called, ast.Name) and called.id in names:
            raise ValueError(f"expected {field!r} to call {called.id} without keywords")
    return text
