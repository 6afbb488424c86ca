"""What a run leaves on the disk, also when it is cut off."""

import json
import math
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.types import Trajectory
from envs.types import Message, StopReason, Task, ToolCall, Verdict
from mopd.config import Config
from mopd.run_folder import (
    FolderError,
    RunFolder,
    default_path,
    trajectory_from_record,
    trajectory_record,
    write_whole,
)

CONFIG = Config(steps=7)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def test_a_folder_is_named_after_its_run():
    path = default_path(Config(seed=3), datetime(2026, 1, 2, 3, 4, 5))
    assert path == Path("runs/code-mopd-seed3-20260102-030405")


def test_a_folder_starts_with_its_configuration_and_opens_again(folder):
    assert files(folder.path) == {"config.toml"}
    assert RunFolder.open(folder.path) == folder
    assert folder.config() == CONFIG


def test_an_empty_folder_may_be_used(tmp_path):
    assert RunFolder.create(tmp_path, CONFIG).config() == CONFIG


def test_a_folder_that_holds_something_is_refused_with_the_cure(folder, tmp_path):
    with pytest.raises(FolderError, match=r"not empty; use --resume .*, or choose another --out"):
        RunFolder.create(folder.path, Config())
    assert folder.config() == CONFIG
    with pytest.raises(FolderError, match=r"not empty; choose another --out$"):
        RunFolder.create(tmp_path, CONFIG)


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FolderError, match=r"choose another --out"):
            RunFolder.create(path, CONFIG)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(FolderError, match=r"holds no config\.toml; expected the folder of a run"):
        RunFolder.open(tmp_path)


def test_metrics_are_one_valid_json_object_a_step(folder):
    folder.append_metrics({"step": 1, "loss": 0.1, "teacher_auc": None})
    folder.append_metrics({"step": 2, "loss": math.nan, "parts": {"a": [math.inf, 1.5]}})
    assert lines(folder.metrics_path) == [
        {"step": 1, "loss": 0.1, "teacher_auc": None},
        {"step": 2, "loss": None, "parts": {"a": [None, 1.5]}},
    ]


def test_resuming_drops_later_steps_and_a_half_written_line(folder):
    folder.truncate_after(0)  # nothing there yet
    for step in (1, 2, 3):
        folder.append_metrics({"step": step})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    folder.truncate_after(9)
    assert lines(folder.metrics_path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    folder.truncate_after(1)
    folder.append_metrics({"step": 2, "again": True})
    assert lines(folder.metrics_path) == [{"step": 1}, {"step": 2, "again": True}]


def test_records_lie_where_the_folder_says(folder):
    folder.write_rollouts(7, [{"index": 0}, {"index": 1}])
    folder.write_eval("before", {"mean": 0.5})
    folder.write_summary({"gain": math.nan})
    assert files(folder.path) == {
        "config.toml",
        "rollouts/step-000007.jsonl",
        "eval/before.json",
        "summary.json",
    }
    assert lines(folder.rollouts_path(7)) == [{"index": 0}, {"index": 1}]
    assert json.loads(folder.summary_path.read_text()) == {"gain": None}
    assert folder.read_eval("before") == {"mean": 0.5}
    assert folder.read_eval("after") is None


def test_a_write_that_fails_leaves_the_old_file(folder, monkeypatch):
    folder.write_summary({"gain": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write_summary({"gain": 2})
    assert json.loads(folder.summary_path.read_text()) == {"gain": 1}


def test_a_file_is_replaced_and_nothing_stays_aside(tmp_path):
    path = tmp_path / "new" / "file"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert files(tmp_path) == {"new/file"}


TEXT = st.text(max_size=20)  # lone surrogates too: a model's tool call may hold them
MESSAGE = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    TEXT,
    st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple),
    st.none() | TEXT,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
VERDICT = st.builds(Verdict, FINITE, st.booleans(), TEXT, st.dictionaries(TEXT, FINITE, max_size=2))
TASK = st.builds(Task, TEXT, TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=2), st.integers())


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    tokens = draw(st.lists(st.tuples(st.integers(0, 2**20), st.booleans(), FINITE), max_size=8))
    ids, mask, logprobs = zip(*tokens, strict=True) if tokens else ((), (), ())
    verdict = draw(st.none() | VERDICT)
    return Trajectory(
        task=draw(TASK),
        index=draw(st.integers(0, 9)),
        token_ids=ids,
        sampled_mask=mask,
        logprobs=logprobs,
        messages=tuple(draw(st.lists(MESSAGE, max_size=3))),
        verdict=verdict,
        stop_reason=draw(st.sampled_from(StopReason)) if verdict else StopReason.ERROR,
        adapter_version=draw(TEXT),
        error="" if verdict else draw(TEXT),
    )


@given(trajectories())
def test_a_trajectory_comes_back_from_its_file_exactly(tmp_path_factory, trajectory):
    folder = RunFolder(tmp_path_factory.getbasetemp())
    folder.write_rollouts(1, [trajectory_record(trajectory, teacher_score=-1.5, peers=[2, 0])])
    (record,) = lines(folder.rollouts_path(1))
    back = trajectory_from_record(record)
    assert back == trajectory
    assert all(type(sampled) is bool for sampled in back.sampled_mask)
    assert (record["teacher_score"], record["peers"]) == (-1.5, [2, 0])


def test_what_is_written_beside_a_trajectory_cannot_overwrite_it():
    trajectory = Trajectory(
        Task("a", "b", "c"), 0, (1,), (True,), (-0.5,), (), None, StopReason.ERROR, "0"
    )
    with pytest.raises(TypeError, match="token_ids"):
        trajectory_record(trajectory, token_ids=[])
