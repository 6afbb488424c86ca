"""Whole runs of the training command: what they leave behind, and what a stop costs (nothing)."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agents import pocket
from envs.run import main
from mopd.run_folder import RunFolder, trajectory_from_record
from mopd.scoring import Scored, sampled_hidden, sampled_ids

ROOT = Path(__file__).parent.parent
STEPS, ROLLOUTS = 9, 8
SETTINGS = shlex.split(
    "--env calculator --tasks-per-step 2 --group-size 4 --set env.level=1 --set eval.tasks=4 "
    "--set eval.samples=2 --set checkpoint.every=3 --set optim.micro_batch=4 "
    "--set peers.without_evidence=anchor"  # so that every rollout of such small groups is scored
)
ESTIMATE = {"mean", "ci_low", "ci_high"}


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "envs.run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(*arguments: object) -> str:
    """What the command prints; nothing may come on stderr."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out + err
    return out


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = RunFolder(folder).metrics_path
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(
    process: subprocess.Popen[str], condition: Callable[[], bool], timeout_s: float = 200
) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(*SETTINGS, "--steps", STEPS, "--out", folder)
    return folder


def assert_equal_runs(folder: Path, whole: Path) -> None:
    """To the last digit, but for what is measured in seconds."""
    ours, theirs = (
        [{k: v for k, v in line.items() if k != "timing"} for line in metrics(path)]
        for path in (folder, whole)
    )
    assert ours == theirs
    for name in ("rollouts", "eval"):
        files = {p.name: p.read_bytes() for p in (whole / name).iterdir()}
        assert {p.name: p.read_bytes() for p in (folder / name).iterdir()} == files
    weights = Path("adapter", "adapter_model.safetensors")
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, whole)]
    for key in ("eval_before", "eval_after", "gain", "rollouts", "seed"):
        assert summaries[0][key] == summaries[1][key]


def test_a_run_leaves_the_folder_that_the_architecture_names(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.toml", "metrics.jsonl", "summary.json", "rollouts", "eval", "checkpoints", "adapter"
    } <= names  # fmt: skip
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["rollouts"] == ROLLOUTS
        assert line["loss"] > 0
        assert line["mixed"] + line["all_success"] + line["all_failure"] == pytest.approx(1)
    for step in range(1, STEPS + 1):
        text = RunFolder(whole).rollouts_path(step).read_text()
        records = [json.loads(line) for line in text.splitlines()]
        assert len(records) == ROLLOUTS
        for record in records:
            trajectory = trajectory_from_record(record)
            assert trajectory.adapter_version == f"step-{step - 1}"
            assert trajectory.index not in record["peers"]
            assert len(record["teacher_logprobs"]) == sum(record["sampled_mask"])
            assert max(record["teacher_logprobs"]) <= 0
    checkpoints = sorted(path.name for path in (whole / "checkpoints").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-6", "checkpoint-9"]


def test_the_summary_has_what_the_command_promises(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert {key: summary[key] for key in ("env", "algo", "model", "seed", "steps", "rollouts")} == {
        "env": "calculator", "algo": "mopd", "model": "pocket", "seed": 0, "steps": STEPS,
        "rollouts": STEPS * ROLLOUTS,
    }  # fmt: skip
    for name in ("eval_before", "eval_after"):
        assert ESTIMATE | {"pass_at_k", "tasks", "samples"} <= set(summary[name])
        assert (summary[name]["tasks"], summary[name]["samples"]) == (4, 2)
        assert summary[name]["pass_at_k"]["1"] == pytest.approx(summary[name]["mean"])
    assert set(summary["gain"]) == ESTIMATE
    difference = summary["eval_after"]["mean"] - summary["eval_before"]["mean"]
    assert summary["gain"]["mean"] == pytest.approx(difference)
    assert 0 < summary["wall_s"] < 300
    assert summary["cpu_s"] > 0
    assert 100 < summary["peak_rss_mb"] < 3000


def test_plain_peft_loads_the_adapter_and_gives_the_probabilities_that_were_recorded(
    whole: Path,
) -> None:
    base = AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)
    rollouts = json.loads((whole / "eval" / "after.json").read_text())["rollouts"]
    played = [trajectory_from_record(record) for record in rollouts]
    assert {t.adapter_version for t in played} == {f"step-{STEPS}"}
    rows = [Scored(t.token_ids[: t.prompt_length], t.response_ids, t.response_mask) for t in played]
    ids = sampled_ids(rows, torch.device("cpu"))
    recorded = torch.tensor(
        [p for t in played for p, m in zip(t.logprobs, t.sampled_mask, strict=True) if m]
    )

    @torch.no_grad()
    def logprobs(model: Any) -> torch.Tensor:
        logits = model.get_output_embeddings()(sampled_hidden(model, rows))
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    bare = logprobs(base)
    adapted = logprobs(PeftModel.from_pretrained(base, whole / "adapter"))
    torch.testing.assert_close(adapted, recorded, atol=1e-4, rtol=0)
    assert (bare - recorded).abs().max() > 0.01


def test_killed_inside_step_7_and_resumed_a_run_equals_one_that_nothing_disturbed(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(*SETTINGS, "--steps", STEPS, "--out", folder)
    wait_until(process, lambda: len(metrics(folder)) >= 6)
    time.sleep(random.uniform(0.0, 0.8) * metrics(folder)[5]["timing"]["seconds"])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(metrics(folder)) == 6
    # What a kill in the middle of saving leaves, and of writing a line.
    half = folder / "checkpoints" / "partial" / "checkpoint-9"
    half.mkdir(parents=True)
    (half / "optimizer.pt").write_bytes(b"PK half")
    (folder / "adapter.partial").mkdir()
    for unfinished in (half, folder / "adapter.partial"):
        (unfinished / "README.md").touch()  # PEFT would read it, and complain
    with RunFolder(folder).metrics_path.open("a") as file:
        file.write('{"step": 7, "lo')

    run("--resume", folder)
    assert_equal_runs(folder, whole)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["resumed_from_step"] in (3, 6)  # 3 where the kill came before 6 was whole


def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*SETTINGS, "--steps", STEPS, "--out", folder)
    wait_until(process, lambda: len(metrics(folder)) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err.strip() == "finishing this step, then saving; Ctrl-C again stops at once"
    done = metrics(folder)[-1]["step"]
    assert done < STEPS
    assert (folder / "checkpoints" / f"checkpoint-{done}").is_dir()
    assert not (folder / "summary.json").exists()

    how = out.splitlines()[-1].partition("to continue: python -m envs.run ")[2]
    assert how == f"--resume {shlex.quote(str(folder))}"
    run(*shlex.split(how))
    assert_equal_runs(folder, whole)


def test_a_finished_run_has_nothing_to_resume(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(["--resume", str(whole)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{whole} is finished; its result is in {whole / 'summary.json'}\n"
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_that_was_stopped_after_its_last_step_only_evaluates(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "metrics.jsonl", "rollouts", "eval", "checkpoints"):
        (folder / name).symlink_to(whole / name)
    (folder / "eval").unlink()
    (folder / "eval").mkdir()
    (folder / "eval" / "before.json").write_bytes((whole / "eval" / "before.json").read_bytes())
    run("--resume", folder)
    assert_equal_runs(folder, whole)


def test_grpo_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(*SETTINGS, "--algo", "grpo", "--steps", "2", "--out", folder)
    assert [line["step"] for line in metrics(folder)] == [1, 2]
    assert json.loads((folder / "summary.json").read_text())["algo"] == "grpo"
    assert all(line["teacher_auc"] is None for line in metrics(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--env calculater", "there is no environment 'calculater'; expected calculator, code"),
        ("--env calculator --set env.level=77", "env.level=77: CalculatorEnv has levels "),
        (
            "--env calculator --set env.data=no.jsonl --set env.eval_data=no.jsonl",
            "no.jsonl: cannot be read: ",
        ),
        ("--set env.data=no.jsonl", "env.data and env.eval_data go together"),
        (
            "--set env.data=a --set env.eval_data=b --set env.level=1",
            "env.level grades procedural tasks and does nothing with env.data",
        ),
        ("--model no/such/model", "model.name=no/such/model: "),
        (
            "--set rollout.max_context=40 --set rollout.max_new_tokens=20",
            "the first prompt of env code has ",
        ),
        pytest.param(
            "--set model.device=cuda",
            "model.device=cuda, but torch sees no CUDA device; use auto or cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
@pytest.mark.parametrize("flag", ["", "--dry-run "])
def test_what_cannot_work_is_refused_before_anything_is_written(
    flag: str,
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main((flag + arguments).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
