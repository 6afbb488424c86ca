"""The judge of function-writing tasks: what passes, what it says, and what cannot fool it."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from envs.grading.feedback import Reveal
from envs.grading.program import extract_program, judge_cases, judge_script, matches
from sandboxes.base import Limits, Sandbox
from sandboxes.open import open_sandbox
from sandboxes.pooled import PooledSession

COUNT_CASES = [(([3, -1],), 1), (([1, 2],), 2)]
COUNT_TESTS = (
    "def check(candidate):\n    assert candidate([3, -1]) == 1\n    assert candidate([1, 2]) == 2"
)
COUNT = "def count(xs):\n    return sum(x > 0 for x in xs)"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(open_sandbox("auto", Limits(wall_s=2.0))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty() -> Iterator[Sandbox]:
    with closing(open_sandbox("auto", Limits(wall_s=0.3))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def problems(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "humaneval" / "dev.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_right_program_gets_the_whole_reward(sandbox: Sandbox) -> None:
    verdict = judge_cases(sandbox, COUNT, "count", COUNT_CASES)
    assert (verdict.reward, verdict.success, verdict.feedback) == (1.0, True, "")
    assert verdict.parts == {"cases_passed": 1.0}
    assert judge_script(sandbox, COUNT, "count", COUNT_TESTS).reward == 1.0


def test_a_partly_right_program_gets_no_reward_and_its_share_is_told(sandbox: Sandbox) -> None:
    verdict = judge_cases(sandbox, "def count(xs):\n    return 2", "count", COUNT_CASES)
    assert (verdict.reward, verdict.success) == (0.0, False)
    assert verdict.parts == {"cases_passed": 0.5}
    assert verdict.feedback == "count([3, -1]) returned 2, expected 1"


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        (
            "def count(xs): return 1 / 0",
            "count([3, -1]) raised ZeroDivisionError: division by zero",
        ),
        ("def count(): return 1", "count([3, -1]) raised TypeError: count() takes 0 positional"),
        ("def total(xs): return 1", "the program does not define count"),
        ("def count(xs):\n    return (", "syntax error in line 2: '(' was never closed"),
        ("def count(xs):\nreturn 1", "syntax error in line 2: expected an indented block"),
        ("import nowhere", "the program raised ModuleNotFoundError: No module named 'nowhere'"),
        ("def count(xs): return map(abs, xs)", "raised TypeError: returned an object of type map"),
        ("import os\ndef count(xs): os.abort()", "count([3, -1]) crashed the process"),
    ],
)
def test_the_feedback_says_what_went_wrong_first(
    sandbox: Sandbox, program: str, feedback: str
) -> None:
    by_cases = judge_cases(sandbox, program, "count", COUNT_CASES)
    by_script = judge_script(sandbox, program, "count", COUNT_TESTS)
    assert feedback in by_cases.feedback
    assert feedback in by_script.feedback
    assert by_cases.reward == by_script.reward == 0.0


def test_the_feedback_reveals_no_more_of_the_tests_than_it_may(sandbox: Sandbox) -> None:
    def told(program: str, reveal: Reveal) -> tuple[str, str]:
        return (
            judge_cases(sandbox, program, "count", COUNT_CASES, reveal=reveal).feedback,
            judge_script(sandbox, program, "count", COUNT_TESTS, reveal=reveal).feedback,
        )

    wrong, raising = "def count(xs): return 1", "def count(xs): return 1 / 0"
    happened = "count([1, 2]) returned 1, and a hidden test failed"
    assert told(wrong, "call") == (happened, happened)
    assert told(wrong, "nothing") == ("1 of 2 hidden tests passed", "a hidden test failed")
    happened = "count([3, -1]) raised ZeroDivisionError: division by zero"
    assert told(raising, "call") == (happened, f"{happened}, and a hidden test failed")
    assert told(raising, "nothing") == ("0 of 2 hidden tests passed", "a hidden test failed")
    broken = told("import nowhere", "nothing")  # no test is needed to see that
    assert all(text.startswith("the program raised ModuleNotFoundError") for text in broken)


def test_any_number_of_cases_costs_two_executions(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    executions = []
    for method in ("run", "call"):
        real = getattr(PooledSession, method)

        def counted(*given: Any, _real: Any = real, **options: Any) -> Any:
            executions.append(_real)
            return _real(*given, **options)

        monkeypatch.setattr(PooledSession, method, counted)
    cases = [(([n, -n],), 1) for n in range(1, 21)]
    assert judge_cases(sandbox, COUNT, "count", cases).success
    assert len(executions) == 2


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        *((1, 1), (math.nan, math.nan), ([math.nan], [math.nan]), ({math.nan}, {math.nan})),
        *(({"a": 1, "b": (2,)}, {"b": (2,), "a": 1}), (math.inf, math.inf), ({1, 2}, {2, 1})),
    ],
)
def test_equal_values_match(got: object, expected: object) -> None:
    assert matches(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        *(
            (True, 1),
            (1, 1.0),
            ((1,), [1]),
            ({1}, {True}),
            ({1: 0}, {True: 0}),
            ({1: 0}, {1: False}),
        ),
        *(([1, [2.0]], [1, [2]]), ("1", b"1"), ({1}, frozenset({1})), (None, 0), ([1], [1, 1])),
        *(({(1,)}, {(1.0,)}), (0.1 + 0.2, 0.3), (math.nan, 0.0), ({}, {1: 2})),
    ],
)
def test_values_of_other_type_or_size_do_not_match(got: object, expected: object) -> None:
    assert not matches(got, expected)
    assert not matches(expected, got)


def test_a_tolerance_is_relative_and_for_floats_only() -> None:
    assert matches([0.1 + 0.2, 1e9 + 1], [0.3, 1e9], tolerance=1e-6)
    assert not matches(1.0, 1, tolerance=1e-6)
    assert not matches(1e-3, 0.0, tolerance=1e-6)
    assert not matches(math.inf, 1.0, tolerance=1e-6)
    assert not matches(1.0, math.inf, tolerance=1e-6)
    assert not matches(math.nan, 1.0, tolerance=1e-6)


def test_the_function_of_a_hostile_namesake_is_the_programs_own_loss(sandbox: Sandbox) -> None:
    forged = COUNT + "\ndef check(candidate): pass\ncandidate = None"
    assert judge_script(sandbox, forged, "count", COUNT_TESTS).success


def test_changing_its_arguments_does_not_change_the_tests(sandbox: Sandbox) -> None:
    greedy = "def count(xs):\n    n = sum(x > 0 for x in xs)\n    xs.clear()\n    return n"
    script = "xs = [3, -1]\nassert count(xs) == 1\nassert xs == [3, -1]\nassert count(xs) == 1"
    assert judge_cases(sandbox, greedy, "count", [(([1],), 1)] * 3).success
    assert judge_script(sandbox, greedy, "count", script).success


ANSWERS = [
    ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
    ("```\nx = 1\n```", "x = 1\n"),
    ("```py\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1\n```\n```text\nout\n```\nand\n", "x = 1\n"),
    ("```json\n{}\n```\nwords\n```python\nx = 3\n```", "x = 3\n"),
    ("```python\n```", ""),
    ("def f(): pass", None),
    ("```python\nnever closed", None),
    ("```rust\nfn main() {}\n```", None),
    ("```python\nopen\n```python\nx = 1\n  ``` \n```\nopen", "open\n```python\nx = 1\n"),
    ("```python\r\nx = 1\r\n```\r\nDone.", "x = 1\r\n"),
    ("", None),
]


@pytest.mark.parametrize(("text", "program"), ANSWERS)
def test_the_program_is_the_last_python_block(text: str, program: str | None) -> None:
    assert extract_program(text) == program


def test_fences_left_open_cost_no_more_than_their_length() -> None:
    started = time.perf_counter()
    assert extract_program("```python\n" * 50_000) is None
    assert time.perf_counter() - started < 2.0  # 0.02 s; trying each fence anew took minutes


@pytest.mark.parametrize("where", ["function", "module"])
def test_half_a_surrogate_pair_is_told_as_a_question_mark(sandbox: Sandbox, where: str) -> None:
    program = "raise ValueError('\\ud800')"
    if where == "function":
        program = f"def count(xs): {program}"
    for verdict in (
        judge_cases(sandbox, program, "count", COUNT_CASES),
        judge_script(sandbox, program, "count", COUNT_TESTS),
    ):
        assert "raised ValueError: ?" in verdict.feedback
        assert verdict.feedback.encode("utf-8")


def test_every_canonical_humaneval_solution_passes(
    sandbox: Sandbox, problems: list[dict[str, Any]]
) -> None:
    def judged(problem: dict[str, Any]) -> tuple[str, str, bool]:
        program = problem["prompt"] + problem["canonical_solution"]
        verdict = judge_script(
            sandbox, program, problem["entry_point"], problem["test"], support=problem["prompt"]
        )
        return problem["task_id"], verdict.feedback, verdict.success

    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(judged, problems))
    assert len(verdicts) == 82
    assert [verdict for verdict in verdicts if not verdict[2]] == []


BROKEN = """
_right = {name}
def {name}(*args):
    def broken(x):
        if isinstance(x, bool): return not x
        if isinstance(x, (int, float)): return x + 1
        if isinstance(x, str): return x + "x"
        if isinstance(x, (list, tuple)): return type(x)([*x, 0])
        return 0
    return broken(_right(*args))
"""


def test_every_broken_humaneval_solution_fails(
    sandbox: Sandbox, problems: list[dict[str, Any]]
) -> None:
    def judged(problem: dict[str, Any]) -> tuple[str, str, float]:
        name, program = problem["entry_point"], problem["prompt"]
        if problems.index(problem) % 8:  # every eighth: the prompt alone, which returns None
            program += problem["canonical_solution"] + BROKEN.format(name=name)
        verdict = judge_script(sandbox, program, name, problem["test"], support=problem["prompt"])
        return problem["task_id"], verdict.feedback, verdict.reward

    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(judged, problems))
    assert len(verdicts) == 82
    assert [verdict for verdict in verdicts if verdict[2] or not verdict[1]] == []
