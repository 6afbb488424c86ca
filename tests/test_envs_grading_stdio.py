"""The judge of whole programs: which outputs are the same, and what it says of others."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from envs.grading.stdio import first_difference, judge_stdio
from sandboxes.base import Limits, Sandbox
from sandboxes.open import open_sandbox

CASES = [("3 -1\n", "1\n"), ("1 2\n", "2\n"), ("\n", "0\n")]
COUNT = "print(sum(int(x) > 0 for x in input().split()))"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(open_sandbox("auto", Limits(wall_s=2.0))) as sandbox:
        yield sandbox


def test_a_right_program_gets_the_whole_reward(sandbox: Sandbox) -> None:
    verdict = judge_stdio(sandbox, COUNT, CASES)
    assert (verdict.reward, verdict.success, verdict.feedback) == (1.0, True, "")
    assert verdict.parts == {"cases_passed": 1.0}


@pytest.mark.parametrize(
    ("program", "passed", "feedback"),
    [
        ("print(1)", 1, "for the input '1 2\\n' line 1 of the output is '1', expected '2'"),
        ("print()", 0, "for the input '3 -1\\n' line 1 of the output is '', expected '1'"),
        ("print('1\\n2')", 0, "line 2 of the output is '2', expected no such line"),
        (
            "x = 5\nprint(1 // (2 - len(input().split()) or x))\n1 / 0",
            0,
            "for the input '3 -1\\n' the program raised ZeroDivisionError: division by zero in "
            "line 3",
        ),
        ("print(", 0, "for the input '3 -1\\n' syntax error in line 1: '(' was never closed"),
        ("import sys\nprint(1)\nsys.exit(2)", 0, "'3 -1\\n' the program ended with an error"),
        ("import os\nprint(1)\nos.abort()", 0, "'3 -1\\n' the program crashed the process"),
    ],
)
def test_the_feedback_tells_the_first_failing_case(
    sandbox: Sandbox, program: str, passed: int, feedback: str
) -> None:
    verdict = judge_stdio(sandbox, program, CASES)
    assert (verdict.reward, verdict.success) == (0.0, False)
    assert verdict.parts == {"cases_passed": passed / 3}
    assert feedback in verdict.feedback


def test_the_feedback_reveals_no_more_of_the_tests_than_it_may(sandbox: Sandbox) -> None:
    call = judge_stdio(sandbox, "print(1)", CASES, reveal="call").feedback
    assert call == ("for the input '1 2\\n' line 1 of the output is '1', and a hidden test failed")
    nothing = judge_stdio(sandbox, "print(1)", CASES, reveal="nothing").feedback
    assert nothing == "1 of 3 hidden tests passed before one that failed"
    leak = "raise ValueError(input())"
    assert "3 -1" not in judge_stdio(sandbox, leak, CASES, reveal="nothing").feedback


def test_no_case_is_run_after_one_that_failed(sandbox: Sandbox) -> None:
    endless = [("1", "1"), *[("", "1")] * 1000]  # at half a minute a hundred, if all were run
    assert judge_stdio(sandbox, "print(input())", endless).parts == {"cases_passed": 1 / 1001}


def test_a_program_may_end_itself_and_finds_itself_the_main_one(sandbox: Sandbox) -> None:
    program = "import sys\nif __name__ == '__main__':\n    print(sys.stdin.read())\n    sys.exit(0)"
    assert judge_stdio(sandbox, program, [("a\nb\n", "a\nb")]).success


def test_a_task_that_no_program_can_pass_is_no_task(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="no cases"):
        judge_stdio(sandbox, COUNT, [])
    with pytest.raises(ValueError, match=r"output of 1048577 bytes.* keeps 1048576: raise Limits"):
        judge_stdio(sandbox, COUNT, [("", "x" * (2**20 + 1))])
    assert judge_stdio(sandbox, "print('x' * (2**20 - 1))", [("", "x" * (2**20 - 1))]).success


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("1", "1\n"),
        ("1  \n2\t\n\n\n", "1\n2"),
        ("1\r\n2\r\n", "1\n2"),
        ("", "\n\n"),
        ("nan", "nan"),
    ],
)
def test_space_at_the_ends_of_lines_and_of_the_output_does_not_count(
    got: str, expected: str
) -> None:
    assert first_difference(got, expected) is None


@pytest.mark.parametrize(
    ("got", "expected", "line"),
    [
        *(
            ("1", "2", 1),
            (" 1", "1", 1),
            ("1 2", "1  2", 1),
            ("1\n\n2", "1\n2", 2),
            ("1.0", "1", 1),
        ),
        *(("\n1", "1", 1), ("a\x0bb", "a\nb", 1), ("A", "a", 1), ("1", "1\n2", 2), ("1 2", "1", 1)),
    ],
)
def test_everything_else_counts(got: str, expected: str, line: int) -> None:
    difference = first_difference(got, expected)
    assert difference is not None
    assert difference[0] == line


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        *(("0.3333333", "0.33333333", True), ("1", "1.0", True), ("-0.0", "0", True)),
        *(("x 1.00000001", "x 1", True), ("1e9", "1000000001.0", True), (" 1  .5", "1 0.5", True)),
        *(("0.34", "0.33", False), ("1000000001", "1000000000", False), ("y 1.0", "x 1.0", False)),
        *(("nan", "1.0", False), ("inf", "1e400", False), ("1e400", "1e401", False)),
        *(("1_0.0", "10.0", False), ("1.0 1.0", "1.0", False), ("0x1", "1.0", False)),
    ],
)
def test_a_tolerance_is_for_numbers_of_which_one_is_no_integer(
    got: str, expected: str, same: bool
) -> None:
    assert (first_difference(got, expected, tolerance=1e-6) is None) is same
