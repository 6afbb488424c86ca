"""The code environment: a session that lasts for the episode, and hidden tests that decide."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import envs
from envs.base import ToolEnv
from envs.code import problems
from envs.data import DataError
from envs.grading.feedback import REVEALS
from envs.types import Message, Task, ToolCall
from sandboxes.base import Limits
from sandboxes.open import open_sandbox

DOUBLE_SUM = Task(
    "double-sum",
    "Write f(xs) that takes a list of integers, doubles each number, then returns the sum.",
    answer="def f(xs):\n    return 2 * sum(xs)",
    payload={"entry_point": "f", "cases": ((([1, 2],), 6), (([-1],), -2), (([],), 0))},
)


@pytest.fixture
def env() -> Iterator[ToolEnv]:
    made = envs.make("code", sandbox=lambda: open_sandbox("auto", Limits(wall_s=1.0)))
    made.reset(options={"task": DOUBLE_SUM})
    yield made
    made.close()


def run(env: ToolEnv, code: str) -> str:
    call = ToolCall("call_0", "run_python", json.dumps({"code": code}))
    (message,) = env.step(Message("assistant", "", (call,)))[0]
    return message.content


def answer(env: ToolEnv, program: str) -> Any:
    env.step(Message("assistant", f"Here it is.\n```python\n{program}\n```"))
    return env.verdict


def test_variables_live_from_turn_to_turn_and_a_last_expression_is_echoed(env: ToolEnv) -> None:
    assert run(env, "xs = [3, 4]\nprint(xs)") == "[3, 4]"
    assert run(env, "sum(xs)") == "7"
    assert run(env, "y = 1") == "(no output)"


def test_an_exception_is_an_observation_that_names_the_line(env: ToolEnv) -> None:
    text = run(env, "x = 1\nprint(x)\n1 / 0")
    assert text.startswith("1\n")
    assert "line 3" in text
    assert text.endswith("ZeroDivisionError: division by zero")


def test_a_hang_is_an_observation_and_the_episode_goes_on(env: ToolEnv) -> None:
    assert "timed out" in run(env, "while True: pass")
    assert run(env, "1 + 1") == "2"


def test_a_new_episode_has_a_new_session(env: ToolEnv) -> None:
    run(env, "secret = 5")
    env.reset(options={"task": DOUBLE_SUM})
    assert "NameError" in run(env, "secret")


def test_the_program_that_passes_every_hidden_case_is_a_success(env: ToolEnv) -> None:
    verdict = answer(env, "def f(xs):\n    return sum(2 * x for x in xs)")
    assert (verdict.reward, verdict.success) == (1.0, True)


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        ("def f(xs):\n    return sum(xs)", "f([1, 2]) returned 3, expected 6"),
        ("def f(xs):\n    return 2 * xs[0] + 2 * xs[1]", "f([-1]) raised IndexError"),
        ("def g(xs):\n    return 0", "f"),
    ],
)
def test_the_feedback_shows_the_first_failing_case(
    env: ToolEnv, program: str, feedback: str
) -> None:
    verdict = answer(env, program)
    assert not verdict.success
    assert feedback in verdict.feedback


def test_what_the_session_was_made_to_believe_does_not_reach_the_judge(env: ToolEnv) -> None:
    run(env, "import builtins\nbuiltins.sum = lambda xs: 6")
    assert answer(env, "def f(xs):\n    return 2 * sum(xs)").success


def test_an_answer_without_a_program_fails_and_says_so(env: ToolEnv) -> None:
    env.step(Message("assistant", "I do not know."))
    assert env.verdict is not None
    assert "```python" in env.verdict.feedback


def test_the_feedback_reveals_no_more_than_the_environment_is_set_to() -> None:
    feedbacks = []
    for reveal in REVEALS:
        made = envs.make("code", reveal=reveal, sandbox=open_sandbox)
        made.reset(options={"task": DOUBLE_SUM})
        feedbacks.append(answer(made, "def f(xs):\n    return sum(xs)").feedback)
        made.close()
    assert feedbacks == [
        "f([1, 2]) returned 3, expected 6",
        "f([1, 2]) returned 3, and a hidden test failed",
        "1 of 3 hidden tests passed",
    ]
    with pytest.raises(ValueError, match=r"env\.reveal='all': there are expected, call, nothing"):
        envs.make("code", reveal="all")


ROWS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"prompt": "Add the numbers of a line.", "stdin_cases": [["1 2\n", "3\n"], ["4\n", "4\n"]]},
        "print(sum(map(int, input().split())))",
        "print(3)",
    ),
    (
        {"prompt": "Halve a number.", "stdin_cases": [["1\n", "0.5\n"]], "tolerance": 1e-6},
        "print(f'{int(input()) / 2:.9f}')",
        "print(0.51)",
    ),
    (
        {"prompt": "Merge two lists.", "entry_point": "f", "cases": [[[[1], [2]], [1, 2]]]},
        "def f(xs, ys):\n    return xs + ys",
        "def f(xs, ys):\n    return (*xs, *ys)",
    ),
]


@pytest.mark.parametrize(("row", "right", "wrong"), ROWS)
def test_a_row_of_cases_is_judged_by_them(
    tmp_path: Path, row: dict[str, Any], right: str, wrong: str
) -> None:
    data = tmp_path / "tasks.jsonl"
    data.write_text(json.dumps(row))
    made = envs.make("code", data=data, sandbox=open_sandbox)
    for program, reward in ((right, 1.0), (wrong, 0.0)):
        (_, user), _ = made.reset(seed=0)
        assert row["prompt"] in user.content
        assert answer(made, program).reward == reward
    made.close()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("stdin_cases", [], r"pairs \[str, str\] in 'stdin_cases'"),
        ("stdin_cases", [["1", 2]], r"pairs \[str, str\] in 'stdin_cases'"),
        ("stdin_cases", [["1", "2", "3"]], r"pairs \[str, str\] in 'stdin_cases'"),
        ("cases", [[1, 2]], r"pairs \[list, object\] in 'cases'"),
        ("cases", {"1": 2}, r"pairs \[list, object\] in 'cases'"),
        ("prompt", "", "expected a text in 'prompt'"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused(
    tmp_path: Path, field: str, value: object, complaint: str
) -> None:
    row = {"prompt": "Add.", "entry_point": "f", field: value}
    data = tmp_path / "tasks.jsonl"
    data.write_text(json.dumps(row))
    with pytest.raises(DataError, match=complaint):
        envs.make("code", data=data)


@pytest.mark.parametrize("level", problems.LEVELS)
def test_reference_programs_pass_and_programs_without_their_first_step_fail(level: int) -> None:
    made = envs.make("code", level=level, sandbox=open_sandbox)
    for seed in range(4):
        task = problems.generate(random.Random(seed), level, held=False)
        made.reset(options={"task": task})
        assert answer(made, task.answer).success
        lines = task.answer.splitlines()
        made.reset(options={"task": task})
        verdict = answer(made, "\n".join([lines[0], "    xs = xs[:1]", *lines[1:]]))
        assert not verdict.success
    made.close()
