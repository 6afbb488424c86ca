"""What an evaluation's rollouts say: estimates with intervals, stop reasons, tools."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.types import Trajectory
from mopd.statistics import clustered_mean, pass_at_k

UNREADABLE, UNKNOWN = "(unreadable)", "(unknown tool)"
BEST_AT_K = (
    "mean over tasks of the highest reward among the K rollouts, which only one who sees the "
    "verdicts could pick; where rewards are 0 or 1 it is pass@K"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What counts of one rollout; an errored one has neither reward nor success."""

    task: str
    index: int
    reward: float | None
    success: bool | None
    stop_reason: str
    turns: int
    sampled_tokens: int
    calls: tuple[tuple[str, bool | None], ...]  # tool, and whether it gave a result; None: unseen
    error: str

    @property
    def errored(self) -> bool:
        """Whether the world failed."""
        return self.success is None


Outcomes = dict[tuple[str, int], Outcome]  # by task id and index


def outcome_of(trajectory: Trajectory) -> Outcome:
    """The outcome of a rollout."""
    verdict = trajectory.verdict
    return Outcome(
        task=trajectory.task.id,
        index=trajectory.index,
        reward=verdict.reward if verdict else None,
        success=verdict.success if verdict else None,
        stop_reason=trajectory.stop_reason.value,
        turns=sum(message.role == "assistant" for message in trajectory.messages),
        sampled_tokens=trajectory.sampled_tokens,
        calls=tuple(_calls(trajectory)),
        error=trajectory.error,
    )


def _calls(trajectory: Trajectory) -> Iterator[tuple[str, bool | None]]:
    """Each call with whether its observation is a result; None where a limit left it unanswered.

    An observation that begins with "Error:" says that the call could not be made or failed.
    """
    messages = trajectory.messages
    for place, message in enumerate(messages):
        answers = {
            m.tool_call_id: m.content
            for m in messages[place + 1 : place + 1 + len(message.tool_calls)]
            if m.role == "tool"
        }
        for call in message.tool_calls:
            answer = answers.get(call.id)
            name = call.name or UNREADABLE
            if answer is not None and answer.startswith("Error: there is no tool "):
                name = UNKNOWN
            yield name, None if answer is None else not answer.startswith("Error:")


def summarise(outcomes: Outcomes, tasks: Sequence[str], samples: int) -> dict[str, Any]:
    """The numbers of an evaluation as JSON types; errored rollouts are counted apart."""
    by_task = {task: [outcomes.get((task, i)) for i in range(samples)] for task in tasks}
    valid = {task: [o for o in row if o and not o.errored] for task, row in by_task.items()}
    scored = [row for row in valid.values() if row]
    played = [o for row in valid.values() for o in row]
    errors = [o for row in by_task.values() for o in row if o and o.errored]
    return {
        "tasks": len(tasks),
        "samples": samples,
        "rollouts": len(played),
        "errored": {
            "rollouts": len(errors),
            "tasks_without_a_score": sum(not row for row in valid.values()),
            "errors": dict(Counter(o.error[:200] for o in errors).most_common(5)),
        },
        "mean_at_k": {
            "k": samples,
            **_estimate([[float(bool(o.success)) for o in r] for r in scored]),
        },
        "mean_reward": _estimate([[o.reward or 0.0 for o in row] for row in scored]),
        "pass_at_k": {str(k): _pass_at(k, scored) for k in range(1, samples + 1)},
        "best_at_k": {
            "k": samples,
            "what": BEST_AT_K,
            **_estimate(
                [[max(o.reward or 0.0 for o in row)] for row in scored if len(row) == samples]
            ),
        },
        "stop_reasons": dict(Counter(o.stop_reason for o in played).most_common()),
        "mean_turns": _mean([o.turns for o in played]),
        "mean_sampled_tokens": _mean([o.sampled_tokens for o in played]),
        "tools": _tools(played),
        "successes": {task: [int(bool(o.success)) for o in row] for task, row in valid.items()},
    }


def _pass_at(k: int, rows: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """Over the tasks that have k rollouts."""
    counts = [(len(row), sum(bool(o.success) for o in row)) for row in rows]
    return _estimate([[pass_at_k(n, c, k)] for n, c in counts if n >= k])


def _estimate(scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and interval over tasks; below two tasks there is no interval, below one no mean."""
    if len(scores) < 2:
        mean = sum(scores[0]) / len(scores[0]) if scores else None
        return {"mean": mean, "ci_low": None, "ci_high": None, "tasks": len(scores)}
    found = clustered_mean(scores)
    return {
        "mean": found.mean,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "tasks": len(scores),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _tools(played: Sequence[Outcome]) -> dict[str, Any]:
    """For each tool how often it was called, with what result, and how its rollouts ended."""
    calls = Counter(name for o in played for name, _ in o.calls)
    failed = Counter(name for o in played for name, good in o.calls if good is False)
    unanswered = Counter(name for o in played for name, good in o.calls if good is None)
    users = {name: [o for o in played if name in dict(o.calls)] for name in calls}
    return {
        "mean_calls": _mean([len(o.calls) for o in played]),
        "rollouts_without_a_call": sum(not o.calls for o in played),
        "by_tool": {
            name: {
                "calls": count,
                "errors": failed[name],
                "unanswered": unanswered[name],
                "rollouts": len(users[name]),
                "success_of_these": _mean([float(bool(o.success)) for o in users[name]]),
            }
            for name, count in calls.most_common()
        },
    }


def rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A report as names and values, for people."""
    samples = report["samples"]
    yield f"mean@{samples}", _interval(report["mean_at_k"])
    for k, estimate in report["pass_at_k"].items():
        yield f"pass@{k}", _interval(estimate)
    best = f"best@{samples} (highest reward, picked with the verdicts)"
    yield best, _interval(report["best_at_k"])
    if report["rollouts"]:
        reasons = report["stop_reasons"].items()
        yield "stop reasons", ", ".join(f"{name} {count}" for name, count in reasons)
        length = f"{report['mean_turns']:.1f} turns, {report['tools']['mean_calls']:.1f} tool calls"
        yield "a rollout has", f"{length}, {report['mean_sampled_tokens']:.0f} sampled tokens"
    for name, tool in report["tools"]["by_tool"].items():
        calls = f"{tool['calls']} calls ({tool['errors']} with errors)"
        share = f"{tool['success_of_these']:.0%} of them succeeded"
        yield f"tool {name}", f"{calls} in {tool['rollouts']} rollouts; {share}"
    errored = report["errored"]
    if errored["rollouts"]:
        example = next(iter(errored["errors"]))
        yield "errored, not counted", f"{errored['rollouts']} rollouts, such as: {example}"


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["mean"] is None:
        return "none"
    if estimate["ci_low"] is None:
        return f"{estimate['mean']:.3f} (one task: no interval)"
    return f"{estimate['mean']:.3f} [{estimate['ci_low']:.3f}, {estimate['ci_high']:.3f}]"
