"""Published formats of programming tasks: what the agent sees of a row, and what judges it."""

import base64
import gzip
import json
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import envs
from envs.base import NoSolution, ToolEnv
from envs.code.packed import unpack
from envs.data import read_tasks
from envs.types import Message, Task, Verdict
from envs.validate import examine, validate


@pytest.fixture(scope="module")
def env() -> Iterator[ToolEnv]:
    made = envs.make("code")
    yield made
    made.close()


def judged(env: ToolEnv, task: Task, program: str) -> Verdict:
    env.reset(options={"task": task})
    env.step(Message("assistant", f"```python\n{program}\n```"))
    assert env.verdict is not None
    return env.verdict


def pack(tests: Any) -> str:
    """As LiveCodeBench publishes its private tests."""
    pickled = pickle.dumps(tests if isinstance(tests, (str, bytes)) else json.dumps(tests))
    return base64.b64encode(zlib.compress(pickled)).decode()


HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": "from typing import List\n\n\ndef mean(xs: List[float]) -> float:\n    '''Mean.'''\n",
    "entry_point": "mean",
    "canonical_solution": "    return sum(xs) / len(xs)\n",
}
NUMPY_TEST = """
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
"""
ROWS: dict[str, dict[str, Any]] = {
    "HumanEval": HUMANEVAL
    | {"test": "def check(candidate):\n    assert candidate([1.0, 2.0]) == 1.5\n"},
    "HumanEval+": HUMANEVAL
    | {"base_input": [[[1.0, 2.0]]], "plus_input": [[[0.1] * 3]], "atol": 0},
    "HumanEval+ of a hub": HUMANEVAL
    | {
        "test": NUMPY_TEST + "\n\ndef check(candidate):\n    inputs = [[[1.0, 2.0]], [[0.1] * 3]]\n"
        "    results = [1.5, 0.1]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "        assertion(candidate(*inp), exp, 0)\n"
    },
    "MBPP": {
        "task_id": 601,
        "text": "Write a function to pair every item with its place.",
        "code": "def places(xs):\r\n    return [(i, x) for i, x in enumerate(xs)]",
        "test_list": [
            "assert places(['a', 'b']) == [(0, 'a'), (1, 'b')]",
            "assert places([]) == []",
            "assert set(places('a')) == {(0, 'a')}",
        ],
        "test_setup_code": "",
        "challenge_test_list": ["assert len(places('abc')) == 3"],
    },
    "MBPP, sanitized": {
        "source_file": "x.ipynb",
        "task_id": 602,
        "prompt": "Write a function to find the root.",
        "code": "import math\ndef root(x):\n    return math.sqrt(x)",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(2), math.sqrt(2), rel_tol=1e-3)"],
    },
    "MBPP+": {
        "task_id": 603,
        "prompt": "Write a function to halve.",
        "code": "def halve(x):\n    return x / 2",
        "test_imports": [],
        "test_list": ["assert halve(2) == 1"],
        "test": NUMPY_TEST + "\ninputs = [[2], [5]]\nresults = [1.0, 2.5]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "    assertion(halve(*inp), exp, 0)\n",
    },
    "LiveCodeBench, stdin": {
        "question_title": "Sum",
        "question_content": "Print the sum of a line.\n\nSample: 1 2",
        "platform": "atcoder",
        "question_id": "abc900_a",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(
            [
                {"input": "1 2", "output": "3", "testtype": "stdin"},
                {"input": "4 4\n", "output": "8\n", "testtype": "stdin"},
            ]
        ),
        "private_test_cases": pack([{"input": "9 -9\n", "output": "0\n", "testtype": "stdin"}]),
        "metadata": "{}",
        "canonical_solution": "print(sum(map(int, input().split())))",
    },
    "LiveCodeBench, functional": {
        "question_title": "Pairs",
        "question_content": "Return the pairs.",
        "platform": "leetcode",
        "question_id": "3900",
        "starter_code": "class Solution:\n    def pairs(self, xs: List[int], k: int):\n        ",
        "public_test_cases": json.dumps(
            [{"input": "[1, 2]\n2", "output": "[1, 2, 2]", "testtype": "functional"}]
        ),
        "private_test_cases": pack(
            [{"input": "[]\n4", "output": "[4.0]", "testtype": "functional"}]
        ),
        "metadata": '{"func_name": "pairs"}',
        "canonical_solution": "from __future__ import annotations\n\nclass Solution:\n"
        "    def pairs(self, xs: List[int], k: int) -> List[int]:\n        return (*xs, k)",
    },
    "Codeforces": {
        "id": "900/A",
        "title": "Double",
        "description": "Double a number.",
        "input_format": "A number.",
        "output_format": "Its double.",
        "note": None,
        "time_limit": 1.0,
        "input_mode": "stdio",
        "interaction_format": None,
        "generated_checker": None,
        "official_tests_complete": True,
        "examples": [{"input": "1\n", "output": "2\n"}],
        "official_tests": [{"input": "1\n", "output": "2\n"}, {"input": "-4\n", "output": "-8\n"}],
        "canonical_solution": "print(2 * int(input()))",
    },
    "CodeContests": {
        "name": "901_B. Triple",
        "description": "Triple a number.",
        "public_tests": {"input": ["1\n"], "output": ["3\n"]},
        "private_tests": {"input": ["5\n"], "output": ["15\n"]},
        "generated_tests": {"input": ["0\n"], "output": ["0\n"]},
        "solutions": {"language": [2, 3], "solution": ["int main", "print(3 * int(input()))"]},
        "input_file": "",
        "output_file": "",
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format_has_a_solution_that_succeeds(env: ToolEnv, name: str) -> None:
    row = json.loads(json.dumps(ROWS[name]))
    task = env.read_row(row)
    finding = examine(env, env, task)
    assert finding.reasons == ()
    assert finding.gold == finding.corrupted == {"native": True, "text": True}
    assert task.id


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("HumanEval", "def mean(xs: List[float])", "1.5"),
        ("MBPP", "Write the function places. Write a function to pair", "challenge"),
        ("MBPP", "For example:\nassert places(['a', 'b']) ==", "places([])"),
        ("LiveCodeBench, stdin", "Example input:\n4 4\nExample output:\n8", "9 -9"),
        ("LiveCodeBench, functional", "def pairs(self, xs", "[4.0]"),
        ("Codeforces", "# Double\nDouble a number.\nInput: A number.\nOutput: Its", "-4"),
        ("Codeforces", "Example input:\n1\nExample output:\n2", "-8"),
        ("CodeContests", "Example input:\n1\nExample output:\n3", "15"),
    ],
)
def test_the_agent_sees_the_public_tests_only(
    env: ToolEnv, name: str, shown: str, hidden: str
) -> None:
    prompt = env.read_row(ROWS[name]).prompt
    assert shown in prompt
    assert hidden not in prompt
    assert "Sample: 1 2\nExample input:\n1 2" not in prompt  # the text shows it already


@pytest.mark.parametrize(
    ("name", "program", "feedback"),
    [
        ("LiveCodeBench, stdin", "print(sum(map(abs, map(int, input().split()))))", "'0'"),
        (
            "LiveCodeBench, functional",
            "class Solution:\n    pairs = lambda s, xs, k: xs",
            "[1, 2, 2]",
        ),
        ("LiveCodeBench, functional", "def pairs(xs, k):\n    return [*xs, 4]", "[1, 2, 2]"),
        ("LiveCodeBench, functional", "def pears(xs, k):\n    return [*xs, 4]", "raised TypeError"),
        ("Codeforces", "print(abs(2 * int(input())))", "expected '-8'"),
        ("HumanEval+", "def mean(xs):\n    return 1.5", "mean([0.1, 0.1, 0.1]) returned 1.5"),
        ("HumanEval+ of a hub", "def mean(xs):\n    return 1.5", "mean([0.1, 0.1, 0.1]) returned"),
    ],
)
def test_the_hidden_tests_decide(env: ToolEnv, name: str, program: str, feedback: str) -> None:
    verdict = judged(env, env.read_row(ROWS[name]), program)
    assert not verdict.success
    assert feedback in verdict.feedback


def test_a_plain_function_and_a_method_are_both_taken(env: ToolEnv) -> None:
    task = env.read_row(ROWS["LiveCodeBench, functional"])
    assert judged(env, task, "def pairs(xs, k):\n    return xs + [float(k)]").success
    program = (
        "class Solution:\n    def pairs(self, xs: List[int], k):\n        return deque([*xs, k])"
    )
    assert "JSON serializable" in judged(env, task, program).feedback


def test_a_polynomial_may_have_several_zeros(env: ToolEnv) -> None:
    row = {
        "task_id": "HumanEval/32",
        "prompt": "def find_zero(xs: list):\n    '''Zero of a polynomial.'''\n",
        "entry_point": "find_zero",
        "canonical_solution": "    return 1.0\n",
        "base_input": [[[-1, 0, 1]]],
        "plus_input": [[[-1, 0, 1]]],
        "atol": 0.0001,
    }
    task = env.read_row(row)
    assert judged(env, task, "def find_zero(xs):\n    return -1.0").success
    assert not judged(env, task, "def find_zero(xs):\n    return 0.5").success


def test_benchmarks_without_programs_have_no_solution(env: ToolEnv) -> None:
    for name in ("LiveCodeBench, stdin", "LiveCodeBench, functional", "Codeforces"):
        row = {key: value for key, value in ROWS[name].items() if key != "canonical_solution"}
        task = env.read_row(row)
        with pytest.raises(NoSolution, match="the data gives no program"):
            env.solution(task)
        finding = examine(env, env, task)
        assert (finding.gold, finding.reasons) == ({}, ())


def test_a_published_archive_is_read_and_validated(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in (ROWS["HumanEval"], ROWS["MBPP"]))
    path.write_bytes(gzip.compress(lines.encode()))
    report = validate("code", data=str(path), strict=True)
    assert report["passed"], report


def test_nested_tables_are_read(tmp_path: Path) -> None:
    rows = [ROWS["CodeContests"], ROWS["CodeContests"] | {"description": "Treble a number."}]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    report = validate("code", data=str(path), strict=True)
    assert (report["passed"], report["gold_passed"]) == (True, 2)


class Trap:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (
            base64.b64encode(zlib.compress(pickle.dumps(Trap()))).decode(),
            "more than a text: GLOBAL",
        ),
        (base64.b64encode(zlib.compress(pickle.dumps(Trap(), 4))).decode(), "more than a text"),
        (
            base64.b64encode(zlib.compress(pickle.dumps(["[]"]))).decode(),
            "more than a text: EMPTY_",
        ),
        (base64.b64encode(zlib.compress(pickle.dumps(7))).decode(), "more than a text: BININT1"),
        (base64.b64encode(zlib.compress(b"")).decode(), "cannot be read"),
        (base64.b64encode(zlib.compress(b"\x80\x04X\xff\xff\xff\x7f")).decode(), "cannot be read"),
        (base64.b64encode(zlib.compress(b"\x80\x04.")).decode(), "of 0 texts; expected one"),
        (base64.b64encode(zlib.compress(bytes(10**6))[:-40]).decode(), "cut off"),
        (base64.b64encode(zlib.compress(bytes(300 * 2**20), 1)).decode(), "more than 268,435,456"),
        (base64.b64encode(b"not zlib").decode(), "packed with base64 and zlib"),
        ("not base64!", "packed with base64 and zlib"),
        (pack("not JSON"), "tests that are no JSON"),
        ("[", "tests that are no JSON"),
    ],
)
def test_packed_tests_are_never_unpickled(
    packed: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "GLOBAL" in reason:
        packed = base64.b64encode(zlib.compress(pickle.dumps(Trap(), 2))).decode()
    with pytest.raises(ValueError, match=reason):
        unpack(packed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "text", ["[]", '[{"input": "\u00e9\\n", "output": "1"}]', json.dumps("x" * 10**5)]
)
def test_packed_tests_are_read_whatever_the_protocol(protocol: int, text: str) -> None:
    pickled = pickle.dumps(text, protocol)
    assert unpack(base64.b64encode(zlib.compress(pickled)).decode()) == json.loads(text)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("HumanEval", {"test": "def check(:"}, r"expected Python in 'test'"),
        ("HumanEval", {"test": "x = 1"}, r"expected 'test' to call candidate or mean"),
        ("HumanEval", {"test": "candidate(xs=[1])"}, r"'test' to call candidate without keywords"),
        ("HumanEval", {"prompt": "import\ndef mean(xs):\n"}, r"expected Python in 'prompt'"),
        ("HumanEval", {"test": 3}, r"expected a text in 'test', got int"),
        ("HumanEval", {"test": None}, r"expected a text in 'test', got NoneType"),
        ("HumanEval", {"canonical_solution": 5}, r"expected a text in 'canonical_solution'"),
        ("HumanEval", {"task_id": [1]}, r"expected a text or a number in 'task_id', got \[1\]"),
        ("HumanEval+", {"plus_input": [3]}, r"expected a list of argument lists in 'base_input'"),
        ("HumanEval+", {"plus_input": []}, r"expected a list that is not empty in 'plus_input'"),
        ("HumanEval+", {"atol": "x"}, r"expected a number in 'atol', got 'x'"),
        ("MBPP", {"test_list": "assert"}, r"a list that is not empty in 'test_list', got 'assert'"),
        ("MBPP", {"test_list": [1]}, r"expected a list of texts in 'test_list'"),
        ("MBPP", {"test_list": ["assert f() =="]}, r"expected Python in 'test_list'"),
        ("MBPP", {"test_list": ["assert f() == 1"]}, r"calls a function of 'code': \['places'\]"),
        ("MBPP", {"code": "def"}, r"expected Python in 'code'"),
        ("LiveCodeBench, stdin", {"private_test_cases": "?"}, r"packed with base64 and zlib"),
        ("LiveCodeBench, stdin", {"public_test_cases": "?"}, r"JSON in 'public_test_cases'"),
        ("LiveCodeBench, stdin", {"public_test_cases": "{}"}, r"expected a list of tests"),
        (
            "LiveCodeBench, stdin",
            {"public_test_cases": [{"input": "1", "output": 3, "testtype": "stdin"}]},
            r"expected texts in 'input' and 'output' of a test",
        ),
        (
            "LiveCodeBench, stdin",
            {"public_test_cases": [{"input": "1", "output": "3", "testtype": "functional"}]},
            r"expected tests of one 'testtype'",
        ),
        (
            "LiveCodeBench, stdin",
            {
                "private_test_cases": pack(
                    [{"input": "", "output": "x" * 2 * 10**6, "testtype": "stdin"}]
                )
            },
            r"expects an output of 2,000,000 bytes; a sandbox keeps 1,048,576",
        ),
        ("LiveCodeBench, functional", {"metadata": "{}"}, r"expected a name in 'func_name'"),
        ("LiveCodeBench, functional", {"metadata": "[]"}, r"expected an object in 'metadata'"),
        ("LiveCodeBench, functional", {"starter_code": ""}, r"expected a text in 'starter_code'"),
        (
            "LiveCodeBench, functional",
            {"public_test_cases": [{"input": "x", "output": "3", "testtype": "functional"}]},
            r"expected JSON in a functional test",
        ),
        ("Codeforces", {"generated_checker": "def check"}, r"several outputs may be right"),
        ("Codeforces", {"interaction_format": "Ask."}, r"the judge answers the program"),
        ("Codeforces", {"input_mode": "file"}, r"expected the 'input_mode' stdio, got 'file'"),
        ("Codeforces", {"official_tests": []}, r"not empty in 'official_tests', got \[\]"),
        ("Codeforces", {"official_tests": [7]}, r"expected a list of tests, each with 'input'"),
        ("Codeforces", {"examples": 7}, r"expected a list of tests"),
        (
            "CodeContests",
            {"private_tests": {}, "generated_tests": None},
            r"expected tests in 'priv",
        ),
        ("CodeContests", {"private_tests": {"input": ["1"]}}, r"as many outputs as inputs"),
        ("CodeContests", {"private_tests": [1]}, r"expected tests as \{'input'"),
        ("CodeContests", {"input_file": "a.txt"}, r"expected standard input"),
        ("CodeContests", {"solutions": [1]}, r"expected an object in 'solutions'"),
    ],
)
def test_a_row_that_cannot_be_judged_says_why(
    env: ToolEnv, tmp_path: Path, name: str, changes: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[name] | changes)}\n{json.dumps(ROWS['MBPP+'])}\n")
    loaded = read_tasks(path, env)
    assert len(loaded.tasks) == 1
    with pytest.raises(ValueError, match=reason):
        env.read_row(ROWS[name] | changes)


def test_a_row_of_no_format_is_told_the_formats(env: ToolEnv) -> None:
    with pytest.raises(
        ValueError, match=r"tells the format: 'stdin_cases', .*; got \['question'\]"
    ):
        env.read_row({"question": "?"})
