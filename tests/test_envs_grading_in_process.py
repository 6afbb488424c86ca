"""The judge of last resort: what passes, what it says, and which tests it can run."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from envs.grading.in_process import judge_pytest, pytest_policy
from sandboxes.base import Limits, Sandbox, SandboxError
from sandboxes.open import open_sandbox

STACK = """
class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
    def pop(self):
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __contains__(self, item):
        return item in self.items
    def __eq__(self, other):
        return self.items == other.items
    def __repr__(self):
        return f"Stack({self.items})"
"""
TESTS = """
import unittest
import pytest
from solution import Stack

@pytest.fixture
def stack():
    return Stack([1])

def test_push(stack):
    stack.push(2)
    assert stack.pop() == 2, "the last in is the first out"
    assert len(stack) == 1 and stack and 1 in stack and 7 not in stack

@pytest.mark.parametrize(("items", "last"), [([1, 2], 2), ([3.0], 3.0)])
def test_pop(items, last):
    assert Stack(items).pop() == last

class TestEquality:
    def test_equal(self, stack):
        assert stack == Stack([1])
        assert not stack != Stack([1])
        assert [stack, 1] == [Stack([1]), 1]

    class TestInner:
        def test_empty(self):
            with pytest.raises(IndexError):
                Stack().pop()
            assert 0 <= len(Stack()) < 1

class Old(unittest.TestCase):
    def test_near(self):
        self.assertEqual(Stack([4]).pop(), 4)
        self.assertAlmostEqual(Stack([0.1]).pop() * 3, 0.3)
        assert Stack([0.1]).pop() * 3 == pytest.approx(0.3)

def test_output(stack, capsys, monkeypatch):
    monkeypatch.setattr(Stack, "__repr__", lambda self: "stack")
    print(stack)
    assert capsys.readouterr().out == "stack\\n"
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(open_sandbox("auto", Limits(wall_s=8.0), pytest_policy())) as sandbox:
        yield sandbox


def test_a_right_program_gets_the_whole_reward_and_the_verdict_tells_its_worth(
    sandbox: Sandbox,
) -> None:
    verdict = judge_pytest(sandbox, STACK, TESTS)
    assert (verdict.reward, verdict.success, verdict.feedback) == (1.0, True, "")
    assert verdict.parts == {"cases_passed": 1.0, "in_process": 1.0}


def test_the_feedback_reveals_no_more_of_the_tests_than_it_may(sandbox: Sandbox) -> None:
    tests = """
import pytest, solution
@pytest.mark.parametrize("x, y", [(1, 2), (3, 6)])
def test_double(x, y):
    assert solution.double(x) == y
"""
    wrong = "def double(x): return x + 1"
    expected = judge_pytest(sandbox, wrong, tests)
    assert expected.parts["cases_passed"] == 0.5
    assert expected.feedback == "test_double[3-6] failed: assert solution.double(x) == y (4 == 6)"
    call = judge_pytest(sandbox, wrong, tests, reveal="call")
    assert call.feedback == "test_double failed"
    call = judge_pytest(sandbox, "def double(x): return {}[x]", tests, reveal="call")
    assert call.feedback == "test_double failed with KeyError"
    nothing = judge_pytest(sandbox, wrong, tests, reveal="nothing")
    assert nothing.feedback == "1 of 2 hidden tests passed"


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        ("def f(x): return 1 / 0", "test_f failed: ZeroDivisionError: division by zero"),
        ("def g(x): return x", "cannot be loaded with this program: ImportError: cannot import"),
        ("def f(x", "the program raised SyntaxError: '(' was never closed"),
        ("raise SystemExit", "the program raised SystemExit"),
        ("import os\ndef f(x): os.abort()", "the program or a test of it crashed the process"),
    ],
)
def test_the_feedback_says_what_went_wrong_first(
    sandbox: Sandbox, program: str, feedback: str
) -> None:
    tests = "from solution import f\ndef test_f(): assert f(1) == 1"
    verdict = judge_pytest(sandbox, program, tests)
    assert verdict.reward == 0.0
    assert feedback in verdict.feedback


def test_a_program_that_does_not_finish_is_a_verdict() -> None:
    loop, tests = "def f():\n    while True: pass", "import solution\ndef test_f(): solution.f()"
    with closing(open_sandbox("auto", Limits(wall_s=2.0), pytest_policy())) as sandbox:
        for program in (loop, f"{loop}\nf()"):
            assert "did not finish in time" in judge_pytest(sandbox, program, tests).feedback


@pytest.mark.parametrize(
    "test",
    [
        "import pytest\n@pytest.mark.skip\ndef test_f(): pass",
        "import pytest\n@pytest.mark.xfail\ndef test_f(): assert False",
        "import pytest\n@pytest.mark.xfail\ndef test_f(): pass",
        "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_f(x): pass",
        "import pytest\npytest.importorskip('nowhere')\ndef test_f(): pass",
        "def test_f(no_such_fixture): pass",
        "class TestF:\n    def __init__(self): ...\n    def test_f(self): pass",
        "import pytest\n@pytest.fixture\ndef x():\n    yield\n    1 / 0\ndef test_f(x): pass",
    ],
)
def test_a_test_that_did_not_run_and_pass_is_no_pass(sandbox: Sandbox, test: str) -> None:
    assert judge_pytest(sandbox, "", test).reward == 0.0
    assert judge_pytest(sandbox, "", f"{test}\ndef test_g(): pass").reward == 0.0


@pytest.mark.parametrize(
    ("value", "comparison"),
    [
        *(("Liar()", "== 1"), ("[1, Liar()]", "== [1, 2]"), ("{'a': Liar()}", "== {'a': 2}")),
        *(("Liar()", "!= 1"), ("Liar()", "< 1"), ("Liar()", "in (1, 2)"), ("(Liar(),)", "== (1,)")),
        *(("Counter(a=Liar())", "== {'a': 2}"), ("deque([Liar()])", "== deque([1])")),
        *(("Point(1, 2)", "== (1, 2)"), ("approx(1, abs=9)", "== 2"), ("ANY", "== 2")),
    ],
)
def test_only_plain_data_compares_with_plain_data(
    sandbox: Sandbox, value: str, comparison: str
) -> None:
    program = f"""
from collections import Counter, deque, namedtuple
from unittest.mock import ANY
from pytest import approx
Point = namedtuple("Point", "x y")
class Liar:
    __eq__ = __ne__ = __lt__ = lambda self, other: True
    __hash__ = None
def f(): return {value}
"""
    tests = f"""
from collections import deque
import solution
def test_f():
    assert solution.f() {comparison}
"""
    assert "different classes" in judge_pytest(sandbox, program, tests).feedback


def test_containers_of_the_standard_library_are_plain(sandbox: Sandbox) -> None:
    program = """
from collections import Counter, OrderedDict, defaultdict, deque
def f(): return [Counter("aa"), OrderedDict(a=2), defaultdict(int, a=2)], deque([1])
"""
    tests = """
from collections import deque
from solution import f
def test_f():
    assert f() == ([{"a": 2}] * 3, deque([1]))
"""
    assert judge_pytest(sandbox, program, tests).success


def test_tests_that_test_nothing_are_the_tasks_fault(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="no test function"):
        judge_pytest(sandbox, STACK, "def check(): pass")


def test_a_sandbox_without_pytest_gives_no_verdict() -> None:
    with (
        closing(open_sandbox("auto", Limits())) as sandbox,
        pytest.raises(SandboxError, match="pytest_policy"),
    ):
        judge_pytest(sandbox, STACK, TESTS)
