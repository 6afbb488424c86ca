"""The example in `examples/`: forty lines, with which every command works, also from outside."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import evaluate, play, run, validate
from envs.types import Message, ToolCall

ROOT = Path(__file__).parents[1]
FILE, TOML = ROOT / "examples" / "letters.py", ROOT / "examples" / "letters.toml"
ADDRESS = "examples.letters:LettersEnv"
ENTRY_POINT = "letters = letters:LettersEnv"  # the one line that registers it, in a pyproject.toml


def test_file_toml_and_registration_have_forty_lines() -> None:
    lines = [*FILE.read_text().splitlines(), *TOML.read_text().splitlines(), ENTRY_POINT]
    assert len(lines) <= 40


def test_it_can_be_played_by_hand() -> None:
    env = envs.make(ADDRESS, level=2)
    observation, _ = env.reset(seed=0)
    word = observation[-1].content.removesuffix("?").split()[-1]
    call = ToolCall("call_0", "spell", json.dumps({"word": word}))
    (letters,), *_ = env.step(Message("assistant", "", (call,)))
    assert letters.content == " ".join(word)
    assert env.current_task is not None
    assert env.step(Message("assistant", env.current_task.answer))[1] == 1.0


def test_validate_finds_solutions_right_and_corrupted_ones_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate.main(["--env", ADDRESS, "--tasks", "60"]) == 0
    data = tmp_path / "words.jsonl"
    rows = [{"word": "banana", "letter": letter} for letter in "abn"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert validate.main(["--env", ADDRESS, "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["gold_passed"] == 3


def test_run_trains_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = ["--steps", "1", "--tasks-per-step", "1", "--group-size", "2"]
    sets = ["--set", "eval.tasks=2", "--set", "eval.samples=1"]
    assert run.main(["--config", str(TOML), *small, *sets, "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["env"] == ADDRESS


def test_evaluate_reports_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "letters.json"
    few = ["--samples", "1", "--tasks", "2", "--json", str(report)]
    assert evaluate.main(["--env", ADDRESS, *few]) == 0
    assert json.loads(report.read_text())["env"] == ADDRESS


def test_a_person_plays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "played.jsonl"
    monkeypatch.setattr(sys, "stdin", io.StringIO("/spell word=wxyz\n0\n"))
    assert play.main(["--env", ADDRESS, "--human", "--task", "0", "--out", str(out)]) == 0
    assert "w x y z" in capsys.readouterr().out
    assert out.exists()


def outside(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder that knows the suite only as an installed package."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_package_of_its_own_brings_it_by_name(tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(FILE.read_text())
    installed = tmp_path / "letters-1.0.dist-info"  # as an installer leaves it
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[mopd.envs]\n{ENTRY_POINT}\n")
    listed = outside(tmp_path, "envs.run", "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "  letters  " in listed.stdout
    summary: Any = outside(tmp_path, "envs.validate", "--env", "letters", "--tasks", "20")
    assert (summary.returncode, summary.stderr) == (0, "")
    assert json.loads(summary.stdout)["gold_passed"] == 20


def test_the_readme_shows_the_example_as_it_is() -> None:
    root = Path(__file__).parents[1]
    example = (root / "examples" / "letters.py").read_text(encoding="utf-8").rstrip()
    assert f"```python\n{example}\n```" in (root / "README.md").read_text(encoding="utf-8")
