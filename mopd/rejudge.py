"""Stored rollouts, scored again: their messages are played to the environment as they are."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.types import Trajectory
from envs.base import Split, ToolEnv
from envs.tools import WORLD_ERRORS
from envs.types import Message, StopReason, Verdict
from mopd.config import Config
from mopd.evaluation_file import read_header, read_rollouts
from mopd.run_folder import FolderError, RunFolder, trajectory_from_record

# The engine, not the environment, says these, and in the middle of a message.
_OF_ENGINE = (StopReason.MAX_TOKENS, StopReason.CONTEXT_OVERFLOW)
_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of rollouts, and the split whose tasks they are."""

    path: Path
    split: Split

    def records(self) -> Iterator[dict[str, Any]]:
        """Its rollouts."""
        if self.path.suffix == ".jsonl":
            yield from read_rollouts(self.path)
        else:
            yield from json.loads(self.path.read_text(encoding="utf-8"))["rollouts"]


@dataclass(frozen=True, slots=True)
class Rejudged:
    """A stored rollout beside what the environment says now."""

    file: str
    task: str
    index: int
    stored: Verdict
    now: Verdict | None  # None: the world failed
    stop_reason_changed: bool
    different_observation: str
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Whether reward and success are the stored ones."""
        old, new = self.stored, self.now
        return new is not None and (old.reward, old.success) == (new.reward, new.success)


def find_rollouts(path: Path) -> tuple[Config | None, tuple[Stored, ...]]:
    """The rollouts of a run's folder, of its `eval/` or `rollouts/`, or of one file.

    Also the settings that they were made with, where these are stored beside them.

    Raises:
        FolderError: there are none.
    """
    try:
        return _find(path)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(
            f"--rejudge {path}: {type(error).__name__}: {error}; expected a run's folder, or a "
            "file of rollouts"
        ) from error


def _find(path: Path) -> tuple[Config | None, tuple[Stored, ...]]:
    if path.suffix == ".json" and path.with_suffix(".rollouts.jsonl").is_file():
        path = path.with_suffix(".rollouts.jsonl")
    if path.is_dir():
        files = [*path.glob("eval/*.json"), *path.glob("rollouts/*.jsonl")]
        files += [file for end in ("*.json", "*.jsonl") for file in path.glob(end)]
        files = [file for file in dict.fromkeys(files) if _holds_rollouts(file)]
    else:
        files = [path] if _holds_rollouts(path) else []
    if not files:
        raise FolderError(
            f"--rejudge got {path}, which holds no rollouts; expected the folder of a run, its "
            "eval/ or rollouts/, or the file of an evaluation"
        )
    stored = tuple(
        Stored(file, "train" if file.parent.name == "rollouts" else "held_out")
        for file in sorted(files)
    )
    configs = [_config_of(file) for file in files]
    if any(config != configs[0] for config in configs):
        raise FolderError(
            f"--rejudge got {path}, whose files were made with several settings; name one of "
            f"{', '.join(file.name for file in files[:5])}"
        )
    return configs[0], stored


def _holds_rollouts(file: Path) -> bool:
    if file.suffix == ".jsonl":
        return next(iter(read_rollouts(file)), {}).keys() >= {"task", "messages"}
    document = json.loads(file.read_text(encoding="utf-8"))
    return isinstance(document, dict) and isinstance(document.get("rollouts"), list)


def _config_of(file: Path) -> Config | None:
    header = read_header(file) if file.suffix == ".jsonl" else None
    if header is not None:
        return Config.model_validate_json(json.dumps(header.config))
    for folder in file.resolve().parents[:2]:
        if (folder / "config.toml").is_file():
            return RunFolder.open(folder).config()
    return None


def judge_again(
    sources: Sequence[Stored], env_of: Mapping[Split, ToolEnv]
) -> Iterator[Rejudged | None]:
    """Play every stored rollout again, one after the other; None for one that errored before."""
    for source in sources:
        for record in source.records():
            trajectory = trajectory_from_record(record)
            if trajectory.verdict is None:
                yield None
            else:
                yield _again(env_of[source.split], trajectory, trajectory.verdict, source.path)


def _again(env: ToolEnv, trajectory: Trajectory, stored: Verdict, path: Path) -> Rejudged:
    error, different = "", ""
    try:
        different = replay(env, trajectory)
        now = env.verdict
    except WORLD_ERRORS as failure:
        now, error = None, f"{type(failure).__name__}: {failure}"
    return Rejudged(
        file=str(path),
        task=trajectory.task.id,
        index=trajectory.index,
        stored=stored,
        now=now,
        stop_reason_changed=now is not None and env.stop_reason is not trajectory.stop_reason,
        different_observation=different,
        error=error,
    )


def replay(env: ToolEnv, trajectory: Trajectory) -> str:
    """Play the messages to the end; returns the first observation that differs, or nothing.

    What the agent said stays as it was, also where it now sees something else.
    """
    different = ""
    shown, _ = env.reset(seed=trajectory.task.seed, options={"task": trajectory.task})
    started = trajectory.messages[: len(trajectory.messages) - len(trajectory.response_messages)]
    if started != shown:
        different = "the first messages are others"
    for spoken, observation in _turns(trajectory):
        seen, *_ = env.step(spoken)
        ended_unseen = env.stop_reason is not None and not observation  # a rollout drops the last
        if not different and not ended_unseen:
            different = _difference(observation, seen)
        if env.stop_reason is not None:
            break
    if env.stop_reason is None:
        env.stop(trajectory.stop_reason)
    return different


def _turns(trajectory: Trajectory) -> Iterator[tuple[Message, tuple[Message, ...]]]:
    """What the agent said with what it saw next, without a message that was cut off."""
    messages = trajectory.response_messages
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        last = place == len(messages) - 1
        if last and trajectory.stop_reason in _OF_ENGINE:
            return
        end = place + 1
        while end < len(messages) and messages[end].role != "assistant":
            end += 1
        yield message, messages[place + 1 : end]


def _difference(stored: Sequence[Message], now: Sequence[Message]) -> str:
    if len(stored) != len(now):
        return f"{len(now)} messages, {len(stored)} were stored"
    pairs = zip(stored, now, strict=True)
    return next(
        (
            f"{new.content[:200]!r}, stored {old.content[:200]!r}"
            for old, new in pairs
            if old != new
        ),
        "",
    )


def agreement(results: Sequence[Rejudged | None]) -> dict[str, Any]:
    """How often the environment says again what is stored, as JSON types."""
    judged = [r for r in results if r is not None and r.now is not None]
    failed = [r for r in results if r is not None and r.now is None]
    return {
        "rollouts": len(judged),
        "agreeing": sum(r.agrees for r in judged),
        "agreement": sum(r.agrees for r in judged) / len(judged) if judged else None,
        "errored_before": sum(r is None for r in results),
        "errored_now": len(failed),
        "successes_stored": sum(r.stored.success for r in judged),
        "successes_now": sum(r.now.success for r in judged if r.now),
        "other_feedback_or_parts": sum(
            r.agrees and r.now is not None and _detail(r.now) != _detail(r.stored) for r in judged
        ),
        "other_stop_reason": sum(r.stop_reason_changed for r in judged),
        "other_observations": sum(bool(r.different_observation) for r in judged),
        "files": dict(Counter(r.file for r in judged)),
        "disagreements": [
            {
                **_place(r),
                "stored": [r.stored.reward, r.stored.success],
                "now": [r.now.reward, r.now.success],
                "feedback": r.now.feedback[:300],
            }
            for r in judged
            if r.now is not None and not r.agrees
        ],
        "observations": [
            {**_place(r), "now": r.different_observation} for r in judged if r.different_observation
        ][:_EXAMPLES],
        "errors": [{**_place(r), "error": r.error} for r in failed][:_EXAMPLES],
    }


def _place(result: Rejudged) -> dict[str, Any]:
    return {"file": result.file, "task": result.task, "index": result.index}


def _detail(verdict: Verdict) -> tuple[str, dict[str, float]]:
    return verdict.feedback, dict(verdict.parts)


def rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A report as names and values, for people."""
    share = f" ({report['agreement']:.1%})" if report["rollouts"] else ""
    yield "same verdict", f"{report['agreeing']} of {report['rollouts']} rollouts{share}"
    yield "successes", f"{report['successes_stored']} stored, {report['successes_now']} now"
    for key in ("other_feedback_or_parts", "other_stop_reason", "other_observations"):
        if report[key]:
            yield key.replace("_", " "), str(report[key])
    for item in report["disagreements"][:5]:
        rewards = f"reward {item['stored'][0]} stored, {item['now'][0]} now"
        yield "differs", f"{item['task']}#{item['index']}: {rewards}"
    for item in report["observations"][:3]:
        yield "observation", f"{item['task']}#{item['index']}: {item['now']}"
    before, now = report["errored_before"], report["errored_now"]
    if before or now:
        yield "errored, not counted", f"{before} stored, {now} now"
    for item in report["errors"][:1]:
        yield "error", item["error"]
