"""The judge of function-writing tasks: the program runs in a sandbox, the comparison here.

No expected value, and no test, ever enters the process that runs the program. What comes out of
it is plain data (see `sandboxes.wire`), so a returned object cannot bring its own `__eq__`, and a
program that takes over its whole process has still only chosen what it returns.

The judges, the strongest first; a task takes the first that suits it:

| judge | what the program's process sees | who compares |
|---|---|---|
| `stdio.judge_stdio` | the input | the host |
| `judge_cases` | the arguments | the host |
| `judge_script` | the arguments | the tests, in a process of their own |
| `in_process.judge_pytest` | everything: its verdict says `in_process` | the tests |
"""

import ast
import builtins
import re
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from envs.grading.feedback import (
    ENDINGS,
    Reveal,
    cut,
    failed,
    outcome,
    revealed,
    score,
    shown,
    why_ended,
)
from envs.types import Verdict
from sandboxes.base import ExecResult, ExecStatus, Sandbox, Session

_FENCE = re.compile(r"^[ \t]*```([^`\n]*)$", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


def extract_program(text: str) -> str | None:
    """The last whole fenced block of `text` that is Python or names no language."""
    program, language, start = None, "", None
    for fence in _FENCE.finditer(text):  # fence by fence: linear, whatever is left open
        words = fence.group(1).strip().lower()
        if start is None:
            language, start = words, fence.end() + 1
        elif not words:
            if language in _PYTHON:
                program = text[start : fence.start()]
            start = None
    return program


def judge_cases(
    sandbox: Sandbox,
    program: str,
    entry_point: str,
    cases: Sequence[tuple[Sequence[Any], Any]],
    *,
    tolerance: float = 0.0,
    reveal: Reveal = "expected",
) -> Verdict:
    """Whether `entry_point` of the program returns what is expected in every case.

    A case is the arguments and the expected value; the limits hold for all of them together.

    Raises:
        SandboxError: the sandbox failed, so there is no verdict.
    """
    if not cases:
        raise ValueError(f"no cases for {entry_point}: a verdict needs at least one")
    with closing(sandbox.session()) as session:
        defined = session.run(program)
        if not defined.ok:
            return failed(why_ended(defined))
        results = session.call(entry_point, [arguments for arguments, _ in cases])
    passed = [
        result.ok and matches(result.value, expected, tolerance)
        for result, (_, expected) in zip(results, cases, strict=True)
    ]
    share = sum(passed) / len(cases)
    if all(passed):
        return Verdict(1.0, True, parts={"cases_passed": share})
    first = passed.index(False)
    arguments, expected = cases[first]
    happened = outcome(entry_point, arguments, results[first])
    expectation = f", expected {shown(expected)}" if results[first].ok else ""
    counted = score(sum(passed), len(cases))
    return failed(revealed(reveal, happened, expectation, counted), cases_passed=share)


def judge_script(
    sandbox: Sandbox,
    program: str,
    entry_point: str,
    test_script: str,
    *,
    support: str = "",
    reveal: Reveal = "expected",
) -> Verdict:
    """Whether the asserts of `test_script` hold for `entry_point` of the program.

    The script calls the function as `candidate` or under its own name, at its top level or in a
    function `check(candidate)`. It runs in a second session, from which every call is relayed to
    the program's. `support` is trusted code that the script builds on, such as the helpers in a
    HumanEval prompt; the program's own helpers are not visible to the script.

    Raises:
        SandboxError: the sandbox failed, so there is no verdict.
        ValueError: the script cannot be a test, whatever the program.
    """
    tree = ast.parse(test_script)
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        test_script += "\ncheck(candidate)\n"
    with closing(sandbox.session()) as subject, closing(sandbox.session()) as examiner:
        defined = subject.run(program)
        if not defined.ok:
            return failed(why_ended(defined))
        supported = examiner.run(support)
        if not supported.ok:
            raise ValueError(f"the support code of {entry_point} failed: {supported.stderr}")
        relay = _Relay(subject, entry_point)
        callbacks = {"candidate": relay, entry_point: relay}
        examined = examiner.run(test_script, callbacks=callbacks)
    if relay.misuse or not relay.outcome:
        raise ValueError(relay.misuse or f"the test script never calls {entry_point}")
    if examined.ok and not relay.broken:
        return Verdict(1.0, True)
    if relay.broken:
        expectation = ""
    elif examined.status is ExecStatus.EXCEPTION:
        expectation = f"; failed: {_failing_statement(tree, examined)}"
    else:
        expectation = f"; the tests {ENDINGS.get(examined.status, 'failed')}"
    return failed(revealed(reveal, relay.outcome, expectation, "a hidden test failed"))


def matches(got: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Equality of plain data with exact types; floats may differ by a relative `tolerance`.

    True is not 1, 1 is not 1.0, a tuple is not a list, and nan equals nan. The tolerance is
    absolute below 1, and holds for floats outside of sets and of dictionary keys.
    """
    if type(got) is not type(expected):
        return False
    if isinstance(expected, float):
        return bool(
            got == expected
            or (got != got and expected != expected)
            or abs(got - expected) <= tolerance * max(1.0, abs(expected)) < float("inf")
        )
    if isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(
            matches(*pair, tolerance) for pair in zip(got, expected, strict=True)
        )
    if isinstance(expected, set | frozenset):
        return bool(_typed(got) == _typed(expected))
    if isinstance(expected, dict):
        values = {_typed(key): value for key, value in got.items()}
        return len(got) == len(expected) and all(
            _typed(key) in values and matches(values[_typed(key)], value, tolerance)
            for key, value in expected.items()
        )
    return bool(got == expected)


def _typed(value: Any) -> Any:
    """A hashable that equals another exactly where type and value do."""
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(_typed, value))
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    return type(value), "nan" if value != value else value


class _Relay:
    """The program's function as the tests call it; remembers how the last call went."""

    def __init__(self, subject: Session, entry_point: str) -> None:
        self._subject = subject
        self._entry_point = entry_point
        self.outcome = ""
        self.broken = False  # the program's process is lost or stuck: no test can make that good
        self.misuse = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            self.misuse = f"the test script calls {self._entry_point} with keyword arguments"
        if self.broken or self.misuse:
            raise RuntimeError(self.misuse or self.outcome)
        (result,) = self._subject.call(self._entry_point, [args])
        self.outcome = outcome(self._entry_point, args, result)
        if result.ok:
            return result.value
        self.broken = result.status is not ExecStatus.EXCEPTION or not _raisable(result.error)
        raise _exception(result.error)


def _raisable(error: str) -> type[Exception] | None:
    """The built-in exception that `error` names, if it may be raised among the tests.

    One that ends a loop, or the interpreter, could skip the asserts.
    """
    kind = vars(builtins).get(error.split(":")[0])
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    return None if issubclass(kind, StopIteration | StopAsyncIteration) else kind


def _exception(error: str) -> Exception:
    kind = _raisable(error) or RuntimeError
    try:
        return kind(error.partition(": ")[2])
    except TypeError:  # UnicodeDecodeError and its like want more than a text
        return RuntimeError(error)


def _failing_statement(tree: ast.Module, examined: ExecResult) -> str:
    where = re.findall(r'File "<cell \d+>", line (\d+)', examined.stderr)
    line = int(where[-1]) if where else 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or line):
            return cut(ast.unparse(node))
    return cut(examined.stderr.strip().rpartition("\n")[2])
