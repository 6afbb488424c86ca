"""`python -m sandboxes.check` and `python -m sandboxes.reap`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxes import check
from sandboxes.open import BACKENDS, choose, probe

FOLDER = Path(__file__).parents[1]


def command(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=FOLDER,
        timeout=120,
    )


def test_check_says_what_works_and_why_the_rest_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.main([]) == 0
    text = capsys.readouterr().out
    for name in ("jail", "landlock", "docker"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")][:1]
        reason = probe(name)
        assert ("works" in line) if reason is None else (f"does not work: {reason}" in line)
    assert text.count("the one that `auto` takes") == 1
    assert "network" in text


def test_only_the_backend_that_auto_takes_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    for name in BACKENDS[:-1]:
        check.main(["--backend", name])
        called = "the one that `auto` takes" in capsys.readouterr().out
        assert called == (name == choose())


def test_check_as_json_is_one_list() -> None:
    done = command("sandboxes.check", "--json")
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert [report["backend"] for report in reports] == list(BACKENDS[:-1])
    for report in reports:
        assert report["works"] is (report["reason"] is None)
        assert set(report["isolation"].values()) <= {"hard", "per process", "none"}


def test_a_backend_that_was_asked_for_and_does_not_work_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "probe", lambda name, options: "not here")
    assert check.main(["--backend", "docker", "--json"]) == 1


def test_attacking_this_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--backend", "unsafe_local", "--attack"]) == 2
    assert "would really attack this machine" in capsys.readouterr().err


def test_an_attack_that_leaks_is_exit_code_1_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leak = check.Outcome("A05", "no file of the host is read", False, "read /etc/passwd")
    monkeypatch.setattr(check, "attack", lambda name, options: iter([leak]))
    monkeypatch.setattr(check, "probe", lambda name, options: None)
    assert check.main(["--backend", "landlock", "--attack"]) == 1
    assert "LEAKED A05 no file of the host is read: read /etc/passwd" in capsys.readouterr().out


def test_reap_says_how_much_there_was() -> None:
    done = command("sandboxes.reap")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("removed ")
