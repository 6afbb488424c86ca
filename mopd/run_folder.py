"""The folder of one run: what is written where, whole or not at all."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.types import Trajectory
from envs.types import Message, StopReason, Task, ToolCall, Verdict
from mopd.config import Config
from mopd.settings import dump_toml, load_resolved

Record = Mapping[str, Any]


class FolderError(ValueError):
    """A folder that cannot hold, or does not hold, a run; the text is one line with the cure."""


def default_path(config: Config, now: datetime) -> Path:
    """Where a run goes that was given no `--out`."""
    stamp = now.strftime("%Y%m%d-%H%M%S")
    env = config.env.name.rpartition(":")[2]  # of package.module:Class
    return Path("runs") / f"{env}-{config.algo}-seed{config.seed}-{stamp}"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and writers of one run; use `create` for a new run and `open` to resume one.

    Files that are replaced are written aside, synced and renamed. JSON has no word for NaN and
    infinity, which become null.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: Config) -> "RunFolder":
        """Make the folder and write the resolved configuration into it.

        Raises:
            FolderError: the path holds something already, or cannot be written.
        """
        folder = cls(path)
        try:
            if path.is_dir() and any(path.iterdir()):
                cure = f"use --resume {path}, or " if folder.config_path.exists() else ""
                raise FolderError(f"{path} is not empty; {cure}choose another --out")
            path.mkdir(parents=True, exist_ok=True)
            write_whole(folder.config_path, dump_toml(config))
        except OSError as error:
            raise FolderError(f"{path}: {error.strerror}; choose another --out") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an earlier run.

        Raises:
            FolderError: there is no run in it.
        """
        folder = cls(path)
        if not folder.config_path.is_file():
            raise FolderError(
                f"--resume got {path}, which holds no config.toml; expected the folder of a run"
            )
        return folder

    def config(self) -> Config:
        """The configuration that the run was started with."""
        return load_resolved(self.config_path)

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """The result of a finished run."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The folder of the final adapter."""
        return self.path / "adapter"

    def rollouts_path(self, step: int) -> Path:
        """The trajectories of a step."""
        return self.path / "rollouts" / f"step-{step:06d}.jsonl"

    def eval_path(self, name: str) -> Path:
        """A held-out evaluation, such as `before`, `after` or `step-000005`."""
        return self.path / "eval" / f"{name}.json"

    def append_metrics(self, metrics: Record) -> None:
        """Add a step's line, which is on the disk when this returns."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json_line(metrics))
            file.flush()
            os.fsync(file.fileno())

    def truncate_after(self, step: int) -> None:
        """Drop the metrics of steps after `step` and a half-written last line."""
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(self.metrics_path, "".join(kept))

    def write_rollouts(self, step: int, records: Iterable[Record]) -> None:
        """Write the trajectories of a step, one JSON object each."""
        write_whole(self.rollouts_path(step), "".join(map(json_line, records)))

    def write_eval(self, name: str, record: Record) -> None:
        """Write a held-out evaluation."""
        write_whole(self.eval_path(name), json_line(record))

    def read_eval(self, name: str) -> dict[str, Any] | None:
        """An evaluation that was written before the run was resumed; None where there is none."""
        path = self.eval_path(name)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def write_summary(self, record: Record) -> None:
        """Write the result of the run, for people and programs."""
        write_whole(self.summary_path, json.dumps(_finite(record), indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that a crash leaves the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name itself
    finally:
        os.close(directory)


def trajectory_record(trajectory: Trajectory, **extra: Any) -> dict[str, Any]:
    """A trajectory as JSON types, with more fields beside it (peers used, teacher scores).

    `trajectory_from_record` gives the equal trajectory back, also through a file, up to what
    JSON does to a task's payload: tuples become lists and keys become text.
    """
    verdict = trajectory.verdict
    return dict(
        task=asdict(trajectory.task),
        index=trajectory.index,
        token_ids=list(trajectory.token_ids),
        sampled_mask=[int(sampled) for sampled in trajectory.sampled_mask],
        logprobs=list(trajectory.logprobs),
        messages=[asdict(message) for message in trajectory.messages],
        verdict=asdict(verdict) if verdict else None,
        stop_reason=trajectory.stop_reason.value,
        adapter_version=trajectory.adapter_version,
        error=trajectory.error,
        **extra,
    )


def trajectory_from_record(record: Record) -> Trajectory:
    """The trajectory of a record; fields beside it are left alone."""
    verdict = record["verdict"]
    return Trajectory(
        task=Task(**record["task"]),
        index=record["index"],
        token_ids=tuple(record["token_ids"]),
        sampled_mask=tuple(map(bool, record["sampled_mask"])),
        logprobs=tuple(record["logprobs"]),
        messages=tuple(map(_message, record["messages"])),
        verdict=Verdict(**verdict) if verdict else None,
        stop_reason=StopReason(record["stop_reason"]),
        adapter_version=record["adapter_version"],
        error=record["error"],
    )


def _message(record: Record) -> Message:
    calls = tuple(ToolCall(**call) for call in record["tool_calls"])
    tools = tuple(record.get("tools", ()))
    return Message(record["role"], record["content"], calls, record["tool_call_id"], tools)


def json_line(record: Record) -> str:
    """One line of a file of records; what JSON has no number for becomes null."""
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:  # rare, so the usual record is not copied for it
        return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
