"""The judge of last resort: pytest in one process with the program, watched as well as can be."""

import ast
import random
import re
import secrets
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.grading.feedback import ENDINGS, Reveal, cut, failed, score
from envs.types import Verdict
from sandboxes.base import CallResult, Policy, Sandbox, SandboxError

_WORKER = Path(__file__).with_name("pytest_worker.py")
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
# Each fails, unless somebody has made failing impossible.
_CANARIES = (
    "assert False",
    "assert [1, 2] == [1, 3]",
    "raise ValueError",
    "import pytest\nwith pytest.raises(ValueError): pass",
    "import pytest\nassert 1.0 == pytest.approx(2.0)",
    "class Liar:\n    def __eq__(self, other): return True\nassert Liar() == 1",
)
_PASSED = {("setup", "passed"), ("call", "passed"), ("teardown", "passed")}
_FAILED = {("setup", "passed"), ("call", "failed"), ("teardown", "passed")}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_METHOD = re.compile(r"assert\w*(Equal|Less|Greater|In)")
_APPROXIMATION = re.compile(r"\bapprox\(")
_SOME_FAILED = 1  # pytest's exit code


def pytest_policy() -> Policy:
    """What a sandbox for `judge_pytest` has to allow: the host's own pytest, already imported.

    Raises:
        RuntimeError: there is no pytest on the host.
    """
    spec = find_spec("pytest")
    if spec is None or spec.origin is None:
        raise RuntimeError("judge_pytest needs pytest on the host: pip install 'mopd[dev]'")
    return Policy(packages=(str(Path(spec.origin).parents[1]),), preload=("pytest", "unittest"))


def judge_pytest(
    sandbox: Sandbox, program: str, tests: str, *, reveal: Reveal = "expected"
) -> Verdict:
    """Whether every test of a file passes, which imports the program as `solution`.

    Only for tests that cannot be had otherwise, such as those of classes: program and tests
    share a process, so `parts` says `in_process`. The verdict is still made on the host. It asks
    that every test of the source has run and passed, not skipped nor excused by xfail; that tests
    which must fail, scattered among them under names drawn here, have failed; that exit code and
    reports agree; and that no function of pytest has been replaced. A comparison in the tests
    holds only between plain data or objects of the same class, so no object of the program meets
    a plain value with its own `__eq__`.

    That stops whoever exits, skips, patches pytest or returns what equals everything. It does NOT
    stop a program that knows this judge: it can find tests, guard and reports in its own memory.
    And what a class under test says of its own objects, in `__eq__` or `__bool__`, is believed.
    Tests must work without files of their own, so without `tmp_path`, in a sandbox that has none.

    Raises:
        SandboxError: the sandbox failed, or has no pytest, so there is no verdict.
        ValueError: the source holds no test.
    """
    tree = ast.parse(tests)
    wanted = list(_tests_of(tree))
    if not wanted:
        raise ValueError("the tests hold no test function: a verdict needs at least one")
    canaries = _plant(tree)
    guard = f"guard_{secrets.token_hex(8)}"
    guarded = ast.unparse(ast.fix_missing_locations(_Guarding(guard).visit(tree)))
    with closing(sandbox.session()) as session:
        ready = session.run(_WORKER.read_text("utf-8"))
        if not ready.ok:
            raise SandboxError(f"no pytest in the sandbox, see pytest_policy(): {ready.stderr}")
        (loaded,) = session.call("load", [(program,)])  # without a test in its process, yet
        if not loaded.ok:
            return _failed(f"the program {_trouble(loaded)}")
        (result,) = session.call("examine", [(guarded, guard)])
    if not result.ok:
        return _failed(f"the program or a test of it {_trouble(result)}")
    match result.value:
        case ("unloadable", str(error)):
            told = f": {cut(error)}" if reveal == "expected" else ""
            return _failed(f"the tests cannot be loaded with this program{told}")
        case ("ran", int(code), bool(intact), list(ids), list(reports)) if _texts(ids) and all(
            isinstance(report, tuple) and len(report) == 4 and _texts(report) for report in reports
        ):
            return _judged(wanted, canaries, code, intact, ids, reports, reveal)
    return _failed("the run of the tests does not add up")


def _judged(
    wanted: Sequence[str],
    canaries: Set[str],
    exit_code: int,
    intact: bool,
    ids: Sequence[str],
    reports: Sequence[tuple[str, str, str, str]],
    reveal: Reveal,
) -> Verdict:
    phases: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    troubles: dict[str, str] = {}
    for test, phase, outcome, error in reports:
        phases[test].add((phase, outcome))
        if outcome != "passed":
            troubles.setdefault(test, error if outcome == "failed" else outcome)
    tests = [test for test in ids if test not in canaries]
    run = {_function(test) for test in tests}
    failures = {test: "it did not run" for test in wanted if test not in run}
    failures |= {
        test: troubles.get(test, "it was not run to its end")
        for test in tests
        if phases[test] != _PASSED
    }
    total = len(tests) + len(wanted) - len(run.intersection(wanted))
    share = (total - len(failures)) / total
    if failures:
        test, trouble = next(iter(failures.items()))
        kind = trouble.partition(": ")[0]  # of exception, or a part of the test itself
        raised = f" with {kind}" if kind.replace(".", "").isidentifier() else ""
        told = {
            "expected": f"{test} failed: {cut(trouble.removeprefix('AssertionError: '))}",
            "call": f"{_function(test)} failed{raised}",
            "nothing": score(total - len(failures), total),
        }
        return _failed(told[reveal], share)
    caught = all(phases[canary] == _FAILED for canary in canaries)
    if not (intact and caught and exit_code == _SOME_FAILED and set(phases) == set(ids)):
        return _failed("the run of the tests does not add up")
    return Verdict(1.0, True, parts={"cases_passed": 1.0, "in_process": 1.0})


def _function(test: str) -> str:
    """The test without its parameters, which may hold what is expected."""
    return test.partition("[")[0]


def _failed(feedback: str, share: float = 0.0) -> Verdict:
    return failed(feedback, cases_passed=share, in_process=1.0)


def _trouble(result: CallResult) -> str:
    return ENDINGS.get(result.status) or f"raised {cut(result.error)}"


def _texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _tests_of(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """The tests that pytest collects from the source."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test"):
                yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            if node.name.startswith("Test") or any(name.endswith("TestCase") for name in bases):
                yield from _tests_of(node, f"{prefix}{node.name}::")


def _plant(tree: ast.Module) -> set[str]:
    """Scatter the canaries among the tests."""
    generator = random.SystemRandom()
    names = set()
    for body in _CANARIES:
        name = f"test_{secrets.token_hex(8)}"
        canary = ast.parse(f"def {name}():\n{textwrap.indent(body, '    ')}").body
        places = [place for place, node in enumerate(tree.body) if isinstance(node, _DEFINITIONS)]
        place = generator.choice([*places, len(tree.body)])
        tree.body[place:place] = canary
        names.add(name)
    return names


class _Guarding(ast.NodeTransformer):
    """Puts every comparison of the tests behind the worker's `Guard`."""

    def __init__(self, guard: str) -> None:
        self._guard = guard

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """`a == b` becomes `guard.compare(["=="], [False, False], a, b)`."""
        self.generic_visit(node)
        operators = [_OPERATORS.get(type(operator)) for operator in node.ops]
        if None in operators:  # `is` asks no object
            return node
        values = [node.left, *node.comparators]
        return self._call("compare", operators, _approximate(values), *values)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """The first two arguments of unittest's assertEqual and its like are compared."""
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if _METHOD.fullmatch(name) and len(node.args) > 1:
            values = node.args[:2]
            operator = "in" if name.endswith("In") else "=="
            pair = self._call("pair", operator, _approximate(values), *values)
            node.args[:2] = [ast.Starred(pair, ast.Load())]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        """A failed assertion says which it was."""
        statement = ast.unparse(node)
        self.generic_visit(node)
        node.msg = self._call("failure", statement)
        return node

    def _call(self, method: str, *arguments: Any) -> ast.Call:
        function = ast.Attribute(ast.Name(self._guard, ast.Load()), method, ast.Load())
        nodes = [
            argument
            if isinstance(argument, ast.expr)
            else ast.parse(repr(argument), mode="eval").body
            for argument in arguments
        ]
        return ast.Call(function, nodes, [])


def _approximate(values: Sequence[ast.expr]) -> list[bool]:
    return [bool(_APPROXIMATION.search(ast.unparse(value))) for value in values]
