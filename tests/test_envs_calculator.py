"""The calculator: exact and bounded arithmetic, its tasks, and how answers are graded."""

import json
import operator
import random
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs.base import ToolEnv
from envs.calculator.arithmetic import ArithmeticProblem, calculate, evaluate
from envs.calculator.solutions import another_answer
from envs.data import DataError
from envs.grading import math_worker
from envs.grading.math_worker import MathWorker
from envs.grading.number import boxed, equal_numbers, grade_number, plain_number
from envs.tools import WorldError
from envs.types import Message
from envs.validate import examine


def open_env(**options: Any) -> ToolEnv:
    return gymnasium.make("mopd/calculator-v0", **options).unwrapped  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "1/3 (about 0.333333)"),
        ("-1/3", "-1/3 (about -0.333333)"),
        ("1/3 + 1/6", "0.5"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2^10", "1024"),
        ("2**-2", "0.25"),
        ("-2**2", "-4"),
        ("(-1)**1000001", "-1"),
        ("0**0", "1"),
        ("9**0.5", "3"),
        ("sqrt(2.25)", "1.5"),
        ("sqrt(2)", "about 1.41421"),
        ("6 \u00d7 7 \u00f7 2", "21"),
        ("1_000 * 3", "3000"),
        ("-0.05", "-0.05"),
        ("1e3 + 1", "1001"),
        ("12345678901234567.5 * 2", "24691357802469135"),
        ("1.000000000000000000001 - 1", "about 1e-21"),
        ("max(1, 5/2, 2) - min(3, 4)", "-0.5"),
        ("abs(-3) + round(2.5) + floor(2.9) + ceil(2.1)", "10"),
        ("(" * 40 + "1" + ")" * 40, "1"),
        ("2**4000", str(2**4000)),
        ("  3 ", "3"),
    ],
)
def test_arithmetic_is_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "more than 4096 bits"),
        ("2**(2**40)", "more than 4096 bits"),
        ("0.5**99999999", "more than 4096 bits"),
        ("9" * 240 + "**6", "more than 4096 bits"),
        ("9" * 999 + "9" * 9_999_000, "at most 1000 are allowed"),
        ("1/0", "division by zero"),
        ("5 % (1 - 1)", "division by zero"),
        ("0**-1", "division by zero"),
        ("sqrt(-1)", "negative"),
        ("2**(1/3)", "whole number"),
        ("1e309", "too large"),
        ("1e-999999999", "too large or too small"),
        ("1e-99999999999999999999", "too large or too small"),
        ("+".join("(" * 60) + "1" + ")" * 60, "nested deeper|not an arithmetic"),
        ("-" * 200 + "1", "nested deeper"),
        ("not " * 180 + "1", "nested deeper|is not arithmetic"),
        ("(" * 500, "not an arithmetic expression"),
        ("x + 1", "'x' is not arithmetic"),
        ("__import__('os').system('true')", "is not arithmetic"),
        ("(1).real", "is not arithmetic"),
        ("[1][0]", "is not arithmetic"),
        ("'a' * 3", "is not arithmetic"),
        ("True + 1", "is not arithmetic"),
        ("1j", "is not arithmetic"),
        ("1 if 2 else 3", "is not arithmetic"),
        ("2,000 * 3", "is not arithmetic"),
        ("round(2.5, key=1)", "is not arithmetic"),
        ("round(1, 2)", "round does not take 2 values"),
        ("max()", "max does not take 0 values"),
        ("1 +", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("1\x002", "not an arithmetic expression"),
        ("\ud800", "not an arithmetic expression"),
    ],
)
def test_what_has_no_bounded_value_is_refused_at_once(expression: str, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(ArithmeticProblem, match=reason) as caught:
        calculate(expression)
    assert time.process_time() - started < 0.5
    assert len(str(caught.value)) < 300


def trees() -> st.SearchStrategy[tuple[str, Fraction | None]]:
    """Expressions as text with their value by Python's fractions; None: a division by zero."""
    operators = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

    def join(children: st.SearchStrategy[tuple[str, Fraction | None]]) -> Any:
        def combine(left: Any, sign: str, right: Any) -> tuple[str, Fraction | None]:
            text = f"({left[0]} {sign} {right[0]})"
            if left[1] is None or right[1] is None or (sign == "/" and right[1] == 0):
                return text, None
            return text, operators[sign](left[1], right[1])

        return st.builds(combine, children, st.sampled_from(sorted(operators)), children)

    decimals = st.decimals(-999, 999, places=3).map(lambda d: (str(d), Fraction(d)))
    integers = st.integers(-999, 999).map(lambda i: (str(i), Fraction(i)))
    return st.recursive(decimals | integers, join, max_leaves=12)


@given(trees())
def test_arithmetic_agrees_with_fractions(tree: tuple[str, Fraction | None]) -> None:
    text, value = tree
    if value is None:
        with pytest.raises(ArithmeticProblem, match="division by zero"):
            evaluate(text)
    else:
        assert evaluate(text) == value
        calculate(text)


@given(st.text(max_size=50) | st.text("0123456789.eE+-*/^%() sqrtmaxin,", max_size=60))
@settings(max_examples=300)
def test_any_text_has_a_value_or_a_reason(text: str) -> None:
    try:
        shown = calculate(text)
    except ArithmeticProblem as problem:
        shown = str(problem)
    assert shown


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_generated_answers_are_right(level: int) -> None:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    env = open_env(level=level)
    for seed in range(200):
        task = env.task(seed)
        if task.payload["kind"] == "expression":
            assert Fraction(task.answer) == evaluate(task.payload["expression"])
            continue
        from envs.calculator.problems import PHRASES

        value = Fraction(task.payload["start"])
        for phrase, number in zip(task.payload["phrases"], task.payload["numbers"], strict=True):
            assert phrase.format(n=number) in task.prompt
            value = signs[PHRASES[phrase].operation](value, number)
            assert value.denominator == 1
        assert task.answer == str(value)
        assert len(task.payload["phrases"]) == level


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{7}", "7"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} done}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("{ \\boxed{6} }}", "6"),
        ("\\boxed{}", ""),
        ("\\boxed 7", None),
        ("", None),
    ],
)
def test_the_last_whole_box_counts(text: str, content: str | None) -> None:
    assert boxed(text) == content


def test_a_million_open_boxes_take_no_time() -> None:
    started = time.process_time()
    assert boxed("\\boxed{" * 200_000) is None
    assert boxed("\\boxed{" * 100_000 + "}" * 100_000) == ""
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", Fraction(7)),
        (" -0.50 ", Fraction(-1, 2)),
        ("1,234,567", Fraction(1234567)),
        ("1\\,234", Fraction(1234)),
        ("1 234.5", Fraction(2469, 2)),
        ("\\$12", Fraction(12)),
        ("$3/4$", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("7.", Fraction(7)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("1 1/2", None),
        ("3,5", None),
        ("1e9", None),
        ("1/" + "0" * 9000 + "1", None),
        ("9" * 101, None),
        ("", None),
        ("seven", None),
    ],
)
def test_plain_numbers(text: str, value: Fraction | None) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize(
    ("text", "expected", "success"),
    [
        ("It is \\boxed{42}.", "42", True),
        ("It is \\boxed{42.0}.", "42", True),
        ("It is \\boxed{1,234}.", "1234", True),
        ("It is \\boxed{43}.", "42", False),
        ("42 \\boxed{41}", "42", False),
        ("First 3, then 42.", "42", True),
        ("First 42, then 3.", "42", False),
        ("It costs $1,234.50 in all.", "1234.5", True),
        ("From 10-7", "7", True),
        ("It is -7", "-7", True),
        ("No idea.", "42", False),
        ("", "42", False),
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{\\dfrac{84}{2}}", "42", True),
        ("\\boxed{\\frac{1}{3}}", "0.5", False),
        ("\\boxed{42 \\text{ apples}}", "42", True),
        ("\\boxed{x = 42}", "42", True),
        ("\\boxed{2^3 + 34}", "42", True),
        ("\\boxed{5!}", "120", True),
        ("\\boxed{12 dollars}", "12", True),
        ("\\boxed{3.5 hours a day}", "3.5", True),
        ("\\boxed{12 \\text{ m/s}}", "12", True),
        ("\\boxed{\\text{12 meters}}", "12", True),
        ("\\boxed{60^\\circ}", "60", True),
        ("\\boxed{12 million}", "12", False),
        ("\\boxed{12 x}", "12", False),
        ("\\boxed{12 minus one}", "12", False),
        ("\\boxed{5 1/2}", "5.5", True),
        ("\\boxed{-5 1/2}", "-5.5", True),
        ("\\boxed{5\\frac{1}{2}}", "5.5", True),
        ("\\boxed{41, 42}", "42", False),
        ("\\boxed{41 \\text{ or } 42}", "42", False),
        ("\\boxed{2, 1}", "1, 2", True),
        ("\\boxed{(2, 1)}", "(1, 2)", False),
        ("\\boxed{\\left(3, \\frac\\pi2\\right)}", "(3,\\frac{\\pi}{2})", True),
        ("\\boxed{\\sqrt{200}}", "10\\sqrt{2}", True),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", True),
        ("\\boxed{Evelyn}", "\\text{Evelyn}", True),
        ("\\boxed{6:00 PM}", "\\text{6:00 PM}", True),
        ("\\boxed{(C)}", "\\text{C}", True),
        ("\\boxed{x \\in [-2,7]}", "[-2,7]", True),
        ("\\boxed{[-2,7)}", "[-2,7]", False),
        ("\\boxed{\\varnothing}", "\\emptyset", True),
        ("So it is $\\frac{3\\pi}{2}$, or $x$.", "x", True),
        ("So it is \\(\\pi + 1\\).", "1+\\pi", True),
        ("So it is \\[\\frac{\\pi}{2}\\]", "\\frac{1}{2}\\pi", True),
        ("So it is $(1, 2)$, the $x$ and $y$ being \\((2, 1)\\).", "(2,1)", True),
        ("So it is 7.", "\\pi", False),
        ("\\boxed{}", "42", False),
        ("\\boxed{" + "9" * 5000 + "}", "42", False),
        ("\\boxed{" + "(" * 150 + "}", "42", False),
        ("\\boxed{\ud800}", "42", False),
    ],
)
def test_grading(text: str, expected: str, success: bool) -> None:
    verdict = grade_number(text, expected)
    assert verdict.success is success
    assert verdict.reward == float(success)
    assert verdict.feedback
    assert len(verdict.feedback) < 120


def test_the_feedback_never_tells_the_answer() -> None:
    assert "42" not in grade_number("\\boxed{41}", "42").feedback
    assert "42" not in grade_number("no idea", "42").feedback


@pytest.mark.parametrize("answer", ["2^{99^{9}}", "\\binom{99999999}{49999999}"])
def test_an_explosive_answer_is_wrong_and_the_next_one_is_graded(answer: str) -> None:
    started = time.monotonic()
    assert not equal_numbers(answer, "7")
    assert time.monotonic() - started < 10 * math_worker.CPU_S
    assert equal_numbers("\\frac{14}{2}", "7")


def test_threads_share_one_worker() -> None:
    worker = MathWorker()
    results: dict[int, bool] = {}

    def ask(i: int) -> None:
        results[i] = worker.equal(str(i % 3), "\\frac{2}{2}")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    worker.close()
    assert results == {i: i % 3 == 1 for i in range(12)}


def test_a_worker_that_was_killed_is_replaced_and_its_loss_is_the_worlds() -> None:
    worker = MathWorker()
    assert worker.equal("7", "3+4")
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker.equal("7", "3+4")
    asked = threading.Timer(0.5, worker._process.kill)
    asked.start()
    with pytest.raises(WorldError, match="exit code -9"):
        worker.equal("7", "2^{99^{9}}")
    assert worker.equal("7", "3+4")
    worker.close()


def test_the_worker_ends_with_its_owner() -> None:
    code = (
        "from envs.grading.number import _math_verify as w\n"
        "print(w.equal('7', '3+4'), w._process.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)"
    )
    owner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    equal, pid = owner.stdout.split()
    assert (equal, owner.stderr) == ("True", "")
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "math_worker" in cmdline(pid):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)


def cmdline(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_gsm8k_gold_answers_are_right_and_their_successors_wrong(shared_data: Path) -> None:
    for file in ("train.jsonl", "test_dev.jsonl"):
        env = open_env(data=shared_data / "gsm8k" / file)
        assert env.rows
        for task in env.rows:
            gold = Message("assistant", f"So it is \\boxed{{{task.answer}}}.")
            assert env.grade(task, gold).success, task
            number = plain_number(task.answer)
            assert number is not None, task
            wrong = Message("assistant", f"So it is \\boxed{{{number + 1}}}.")
            assert not env.grade(task, wrong).success, task
        assert len({task.id for task in env.rows}) == len(env.rows)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["{"], r"rows\.jsonl:1: broken JSON"),
        (["", '["a"]'], r"rows\.jsonl:2: expected a JSON object, got list"),
        (['{"question": "a"}'], r"rows\.jsonl:1: field 'answer' is missing"),
        (
            ['{"question": "a", "answer": 3}'],
            r"rows\.jsonl:1: expected a text in 'answer', got int",
        ),
        (['{"question": "a", "answer": "#### b"}'], r"expected a number behind '####'.* got 'b'"),
        (['{"problem": "a"}'], r"field 'solution' is missing; there are 'problem'"),
        (['{"problem": "a", "solution": "3"}'], r"expected an 'answer', or a 'solution' with"),
        (['{"problem": "a", "answer": [3]}'], r"expected a text in 'answer', got list"),
        (['{"problem": "a", "answer": true}'], r"expected a text in 'answer', got bool"),
        (['{"problem": "a", "answer": 3, "id": []}'], r"a text or a number in 'id', got \[\]"),
        (['{"question": "a", "final_answer": null}'], r"expected a text in 'final_answer', got"),
        (['{"question": "a", "answer": "3"}'], r"rows\.jsonl:1: .*#### number"),
        ([], r"rows\.jsonl: no tasks"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(
    tmp_path: Path, lines: list[str], reason: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=reason):
        open_env(data=file)


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "identity"),
    [
        ({"question": "Q?", "answer": "So <<6*7=42>>\n#### 4,200"}, "Q?", "4200", None),
        (  # MATH
            {"problem": "P?", "level": "Level 5", "type": "Algebra", "solution": "$\\boxed{x^2}$."},
            "P?",
            "x^2",
            None,
        ),
        (  # MATH-500
            {
                "problem": "P?",
                "solution": "$\\boxed{1}$",
                "answer": "\\frac12",
                "unique_id": "test/1",
            },
            "P?",
            "\\frac12",
            "test/1",
        ),
        (
            {"id": 60, "problem": "P?", "solution": "", "answer": "204", "url": ""},
            "P?",
            "204",
            "60",
        ),
        ({"ID": "2024-I-1", "Problem": "P?", "Solution": "", "Answer": 33}, "P?", "33", "2024-I-1"),
        (  # HMMT of MathArena
            {"problem_idx": 3, "problem": "P?", "answer": "$\\frac{1}{576}$", "problem_type": []},
            "P?",
            "\\frac{1}{576}",
            "3",
        ),
        (  # DeepMath
            {
                "question": "Q?",
                "final_answer": "\\infty",
                "difficulty": 6.0,
                "r1_solution_1": "...",
            },
            "Q?",
            "\\infty",
            None,
        ),
        ({"question": "Q?", "final_answer": "\\boxed{Yes}"}, "Q?", "Yes", None),
    ],
)
def test_each_published_format_is_read(
    row: dict[str, Any], prompt: str, answer: str, identity: str | None
) -> None:
    env = open_env()
    task = env.read_row(row)
    assert (task.prompt, task.answer) == (prompt, answer)
    assert task.id == identity or (identity is None and task.id.startswith("calculator/"))
    assert examine(env, env, task).reasons == ()


ANSWERS = (
    *(
        "42",
        "-3/4",
        "0.5",
        "\\frac{\\pi}{2}",
        "10\\sqrt{2}",
        "(3,\\frac{\\pi}{2})",
        "1,-2",
        "x^2+1",
    ),
    *(
        "[-2,7]",
        "(-\\infty,2)\\cup(3,\\infty)",
        "\\text{Evelyn}",
        "\\text{(C)}",
        "C",
        "\\pi",
        "-\\infty",
    ),
    *("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "6 - 5i", "y = 2x+3", "145_8", "\\emptyset", "50\\%"),
    *("90^\\circ", "5.4 \\text{ cents}", "\\text{6:00 PM}", "Yes", "No", "2^{10}", "a+b"),
)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_corrupted_answer_of_any_kind_is_wrong(answer: str) -> None:
    assert equal_numbers(answer, answer)
    for seed in range(8):
        other = another_answer(answer, random.Random(seed))
        assert not equal_numbers(other, answer), other


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        open_env(data=tmp_path / "none.jsonl")


def test_rows_may_hold_any_text_and_are_taken_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"a\u2028b\x85 {i}?", "answer": f"so\n#### 1,00{i}"} for i in range(3)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("\ufeff" + text + "\r\n\r\n", encoding="utf-8", newline="")
    env = open_env(data=file)
    assert [env.task(seed).answer for seed in range(4)] == ["1000", "1001", "1002", "1000"]
    assert env.task(1).prompt == "a\u2028b\x85 1?"
    assert envs.NAMES
