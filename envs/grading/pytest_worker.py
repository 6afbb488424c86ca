"""Tests and the program in one process, run by pytest: sent into a sandbox as source."""

import collections
import contextlib
import io
import operator
import sys
import unittest  # noqa: F401 - so that it is there before the program can change it

# The program may change builtins, but not what this module has taken from there before.
from builtins import all, any, dict, id, isinstance, map, set, sorted, type, vars, zip  # noqa: UP029
from collections.abc import Callable, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pytest

_ARGUMENTS = (
    *("--noconftest", "-c", "/dev/null", "--rootdir=/", "--disable-plugin-autoload"),
    # Not the capture of descriptors, which writes files, and there may be no place for files.
    *("-p", "no:cacheprovider", "-p", "no:faulthandler", "--capture=sys", "--assert=plain", "-q"),
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, type)
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_APPROXIMATION = type(pytest.approx(0.0)).__mro__[-2]
_JUDGING = ("_pytest", "builtins", "collections", "operator", "pytest", "unittest")
_CODE = (FunctionType, BuiltinFunctionType, type, classmethod, staticmethod, property)


def _code() -> dict[tuple[int, str], Any]:
    """The functions and classes that the judging modules are made of."""
    owners: list[Any] = [
        module for name, module in sys.modules.items() if name.partition(".")[0] in _JUDGING
    ]
    owners += [value for module in owners for value in vars(module).values() if type(value) is type]
    return {
        (id(owner), name): value
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, _CODE)
    }


_CODE_BEFORE = _code()


def load(program: str) -> None:
    """Make the program the module `solution`; what it raises is the caller's to know."""
    _load("solution", program, {})


def examine(tests: str, guard_name: str) -> tuple[Any, ...]:
    """What became of the tests, which reach their guard under a name that is the host's choice.

    ("unloadable", error) where they cannot be loaded with this program, else ("ran", exit code,
    whether the judging modules are as they were, tests, reports of test, phase, outcome, error).
    """
    try:
        watch = _Watch(_load("tests", tests, {guard_name: Guard()}))
    except BaseException as error:  # also SystemExit, and pytest's own way to skip
        return "unloadable", f"{type(error).__name__}: {error}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        exit_code = pytest.main(list(_ARGUMENTS), plugins=[watch])
    code_after = _code()
    intact = all(code_after.get(place) is code for place, code in _CODE_BEFORE.items())
    return "ran", int(exit_code), intact, watch.collected, watch.reports


def _load(name: str, source: str, given: dict[str, Any]) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(given)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module


class Guard:
    """Comparisons that an object of the program cannot decide by a lie.

    Where one side holds objects of classes that are not plain, the other has to hold objects of
    the same classes. `approximate` tells for each value whether the test itself makes a
    `pytest.approx` there; from the program, that would be a lie like any other.
    """

    def __init__(self) -> None:
        self._said = ""

    def compare(self, operators: Sequence[str], approximate: Sequence[bool], *values: Any) -> Any:
        """The value of `values[0] operators[0] values[1] ...`."""
        result: Any = True
        for name, left, right, *approximations in zip(
            operators, values, values[1:], approximate, approximate[1:], strict=False
        ):
            self.check(name, left, right, *approximations)
            result = _OPERATORS[name](left, right)
            if result is False:
                self._said = f"{left!r} {name} {right!r}"[:500]
                break
        return result

    def pair(
        self, operator: str, approximate: Sequence[bool], left: Any, right: Any
    ) -> tuple[Any, Any]:
        """The two arguments of a method such as unittest's assertEqual."""
        self.check(operator, left, right, *approximate)
        return left, right

    def check(self, name: str, left: Any, right: Any, *approximate: bool) -> None:
        """Refuse to compare what is not comparable."""
        strange, expected = map(_strange_classes, (left, right), approximate)
        if not (strange <= expected if name.endswith("in") else strange == expected):
            kinds = " and ".join(sorted({type(left).__name__, type(right).__name__}))
            raise AssertionError(f"{name} between objects of different classes ({kinds})")

    def failure(self, statement: str) -> str:
        """What a failed assertion says."""
        said, self._said = self._said, ""
        return statement + (f" ({said})" if said else "")


def _strange_classes(value: Any, approximate: bool) -> set[int]:
    """The classes of the objects in `value` that are not plain, by id: a class may lie, too."""
    strange, seen, todo = set(), set(), [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if id(item) in seen or any(kind is plain for plain in _PLAIN):
            continue
        seen.add(id(item))
        if any(kind is mapping for mapping in _MAPPINGS):
            todo += (part for pair in dict.items(item) for part in pair)
        elif any(kind is sequence for sequence in _SEQUENCES):
            todo += item
        elif not (approximate and _APPROXIMATION in kind.__mro__):
            strange.add(id(kind))
    return strange


class _Module(pytest.Module):
    """A module of tests that has no file."""

    tests: ModuleType

    def _getobj(self) -> ModuleType:
        return self.tests


class _Watch:
    """The plugin that hands pytest the tests and notes what becomes of them."""

    def __init__(self, tests: ModuleType) -> None:
        self._tests = tests
        self.collected: list[str] = []
        self.reports: list[tuple[str, str, str, str]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool:
        module = _Module.from_parent(session, path=Path("/tests.py"))
        module.tests = self._tests
        items = session.items = list(session.genitems(module))
        self.collected = [_name(item.nodeid) for item in items]
        session.testscollected = len(items)
        session.config.hook.pytest_collection_modifyitems(
            session=session, config=session.config, items=items
        )
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = "expected failure" if hasattr(report, "wasxfail") else str(report.outcome)
        crash = getattr(report.longrepr, "reprcrash", None)
        error = str(crash.message if crash else report.longrepr or "")[:2000]
        self.reports.append((_name(report.nodeid), str(report.when), outcome, error))


def _name(node: str) -> str:
    return str(node).partition("::")[2]
