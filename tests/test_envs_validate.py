"""The command that plays solutions: what it counts, what it reports, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.validate import main, validate

ROOT = Path(__file__).parent.parent
GSM8K = [
    {"question": "6 times 7?", "answer": "It is 6*7=<<6*7=42>>42\n#### 42"},
    {"question": "1,000 plus half?", "answer": "#### 1,000.5"},
]


def write(path: Path, *rows: Any) -> str:
    path.write_text(
        "".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows)
    )
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_a_sound_file_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "rows.jsonl", *GSM8K)
    summary = tmp_path / "summary.json"
    code, report, _ = run(
        capsys, "--env", "calculator", "--data", data, "--strict", "--json", str(summary)
    )
    assert code == 0
    del report["seconds"]
    each = {"gold_passed": 2, "corrupted_failed": 2}
    assert report == {
        "env": "calculator",
        "data": data,
        "level": None,
        "rows": 2,
        "tasks": 2,
        **each,
        "without_gold": 0,
        "formats": {"native": each, "text": each},
        "rejected": [],
        "defective": [],
        "passed": True,
    }
    assert json.loads(summary.read_text()) == json.loads(summary.read_text()) | report


def test_a_rejected_row_is_reported_and_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("{\n", GSM8K[0], {"question": "?"}, GSM8K[0], GSM8K[1])
    data = write(tmp_path / "rows.jsonl", *rows)
    code, report, _ = run(capsys, "--env", "calculator", "--data", data)
    assert (code, report["rows"], report["gold_passed"]) == (0, 5, 2)
    assert [row["place"] for row in report["rejected"]] == [f"{data}:{n}" for n in (1, 3, 4)]
    assert report["rejected"][1]["reason"] == "field 'answer' is missing; there are 'question'"
    assert report["rejected"][2]["reason"].startswith("the id 'calculator/gsm8k/")
    code, report, err = run(capsys, "--env", "calculator", "--data", data, "--strict")
    assert (code, report) == (2, {})
    assert err.startswith(f"error: {data}:1: broken JSON")
    assert err.count("\n") == 1


def test_a_file_of_rejected_rows_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "rows.jsonl", "[]\n", "{}\n")
    code, report, _ = run(capsys, "--env", "calculator", "--data", data)
    assert (code, report["passed"], len(report["rejected"])) == (1, False, 2)


RIGHT = {
    "task_id": "right",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            RIGHT | {"canonical_solution": "    return x + 2\n"},
            "native: the reference solution fails: double(0) returned 2; failed: assert",
        ),
        (
            RIGHT | {"test": "def check(candidate):\n    candidate(1)\n"},
            "native: a corrupted solution succeeds: Here it is.",
        ),
        (
            RIGHT | {"test": "def check(candidate):\n    if 0:\n        candidate(1)\n"},
            "native: the reference solution fails: there is no verdict: ValueError: the test "
            "script never calls double",
        ),
    ],
)
def test_a_defective_row_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], reason: str
) -> None:
    data = write(tmp_path / "rows.jsonl", RIGHT, row | {"task_id": "wrong"})
    code, report, _ = run(capsys, "--env", "code", "--data", data, "--workers", "1")
    assert (code, report["passed"], report["tasks"]) == (1, False, 2)
    (defective,) = report["defective"]
    assert defective["task"] == "wrong"
    assert defective["reasons"][0].startswith(reason)


def test_a_row_without_a_solution_is_counted_and_shows_nothing_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Print a line.", "stdin_cases": [["a\n", "a\n"]]}
    with_gold = row | {"prompt": "Print it.", "canonical_solution": "print(input())"}
    data = write(tmp_path / "rows.jsonl", row)
    code, report, _ = run(capsys, "--env", "code", "--data", data)
    assert (code, report["without_gold"], report["corrupted_failed"]) == (1, 1, 1)
    data = write(tmp_path / "rows.jsonl", row, with_gold)
    code, report, _ = run(capsys, "--env", "code", "--data", data)
    assert (code, report["without_gold"], report["gold_passed"]) == (0, 1, 1)


def test_procedural_tasks_come_from_all_levels_and_both_splits() -> None:
    report = validate("calculator", tasks=40)
    assert (report["tasks"], report["gold_passed"], report["level"]) == (40, 40, None)
    report = validate("calculator", tasks=5, level=4)
    assert (report["tasks"], report["corrupted_failed"], report["level"]) == (5, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--env coed", "error: there is no environment 'coed'; expected "),
        ("--env code --level 9", "error: env.level=9: CodeEnv has levels 1 to 4"),
        ("--env code --data no.jsonl", "error: no.jsonl: cannot be read: no such file; "),
        ("--env code --data no.jsonl --level 1", "error: a level grades procedural tasks"),
        ("--env code --option revael=1", "error: CodeEnv has no option 'revael'; did you mean "),
        ("--env code --option reveal=all", "error: env.reveal='all': there are expected, call, "),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments.split())
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", ["", "--env code --tasks 0", "--env code --option reveal"])
def test_a_bad_command_line_ends_with_code_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    assert end.value.code == 2


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['validate', '--help']\n"
        "try: runpy.run_module('envs.validate', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'pydantic', 'langchain_core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "--strict" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("env", "file", "rows"),
    [
        ("calculator", "gsm8k/test_dev.jsonl", 400),
        ("code", "humaneval/dev.jsonl", 82),
        ("search", "xquad/en_dev.json", 632),
        ("science_qa", "sciknoweval/biology_train.jsonl", 450),
        ("science_qa", "sciknoweval/biology_test.jsonl", 50),
        ("science_qa", "sciknoweval/chemistry_train.jsonl", 1890),
        ("science_qa", "sciknoweval/chemistry_test.jsonl", 210),
        ("tool_use", "tooluse/test_dev.jsonl", 34),
    ],
)
def test_the_real_files_pass(shared_data: Path, env: str, file: str, rows: int) -> None:
    report = validate(env, data=str(shared_data / file), strict=True)
    assert report["passed"], report["defective"]
    assert (report["rows"], report["gold_passed"], report["corrupted_failed"]) == (rows, rows, rows)
