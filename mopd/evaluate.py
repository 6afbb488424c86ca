"""Success on held-out tasks: mean@k, unbiased pass@k, intervals clustered by task."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from agents.base import Agent
from agents.by_message import Speaker, play_episodes
from agents.rollout import rollout_groups
from agents.types import Trajectory, TrajectoryGroup
from envs.base import ToolEnv
from envs.tasks import stable_seed
from envs.types import Task
from mopd.config import Config
from mopd.statistics import Estimate, clustered_mean, paired_gain, pass_at_k


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Successes of `samples` rollouts of each task, in task order; errored ones are left out."""

    successes: tuple[tuple[float, ...], ...]
    samples: int
    stop_reasons: dict[str, int]
    mean_turns: float

    @property
    def mean(self) -> Estimate:
        """mean@k: the mean over tasks of their share of successes."""
        return clustered_mean(self.successes)

    def as_dict(self) -> dict[str, object]:
        """What `summary.json` and `eval/` show."""
        mean = self.mean
        return {
            "mean": mean.mean,
            "ci_low": mean.ci_low,
            "ci_high": mean.ci_high,
            "pass_at_k": {
                str(k): sum(
                    pass_at_k(len(s), int(sum(s)), k) for s in self.successes if len(s) >= k
                )
                / max(1, sum(len(s) >= k for s in self.successes))
                for k in range(1, self.samples + 1)
            },
            "tasks": len(self.successes),
            "samples": self.samples,
            "stop_reasons": self.stop_reasons,
            "mean_turns": self.mean_turns,
        }


class UnscoredError(RuntimeError):
    """A task has no score, since the world failed in all of its rollouts."""


def held_out_tasks(env: ToolEnv, count: int) -> tuple[Task, ...]:
    """The first `count` distinct tasks; fewer where a data file has fewer."""
    limit = len(env.rows) if env.rows is not None else 20 * count
    tasks: dict[str, Task] = {}
    for seed in range(limit):
        task = env.task(seed)
        tasks.setdefault(task.id, task)
        if len(tasks) == count:
            break
    return tuple(tasks.values())


def evaluate(
    agent: Agent, make_env: Callable[[], ToolEnv], tasks: Sequence[Task], config: Config
) -> tuple[Evaluation, tuple[TrajectoryGroup, ...]]:
    """Play every task `eval.samples` times, always from the same seeds.

    Raises:
        UnscoredError: every rollout of a task errored.
    """
    groups = rollout_groups(
        agent,
        make_env,
        tasks,
        config.eval.samples,
        seed=stable_seed(config.seed, "evaluation"),
        max_new_tokens=config.rollout.max_new_tokens,
        max_context=config.rollout.max_context,
        tool_workers=config.rollout.tool_workers,
    )
    return evaluation_of(groups, config.eval.samples), groups


def evaluate_speaker(
    speaker: Speaker, make_env: Callable[[], ToolEnv], tasks: Sequence[Task], config: Config
) -> tuple[Evaluation, tuple[TrajectoryGroup, ...]]:
    """`evaluate` of who speaks in messages.

    Raises:
        UnscoredError: every rollout of a task errored.
    """
    samples = config.eval.samples
    places = [(task, index) for task in tasks for index in range(samples)]
    played = [t for batch in play_places(speaker, make_env, places, config) for t in batch]
    groups = tuple(
        TrajectoryGroup(task, tuple(played[n * samples : (n + 1) * samples]))
        for n, task in enumerate(tasks)
    )
    return evaluation_of(groups, samples), groups


def evaluation_of(groups: Sequence[TrajectoryGroup], samples: int) -> Evaluation:
    """What the rollouts of each task show.

    Raises:
        UnscoredError: every rollout of a task errored.
    """
    for group in groups:
        if all(t.errored for t in group.trajectories):
            raise UnscoredError(
                f"every rollout of task {group.task.id} errored: {group.trajectories[0].error}"
            )
    played = [t for group in groups for t in group.trajectories]
    return Evaluation(
        successes=tuple(
            tuple(float(t.verdict.success) for t in group.trajectories if t.verdict is not None)
            for group in groups
        ),
        samples=samples,
        stop_reasons=dict(Counter(t.stop_reason.value for t in played)),
        mean_turns=sum(sum(m.role == "assistant" for m in t.messages) for t in played)
        / len(played),
    )


def play_places(
    agent: Agent | Speaker,
    make_env: Callable[[], ToolEnv],
    places: Sequence[tuple[Task, int]],
    config: Config,
    *,
    again: bool = False,
) -> Iterator[tuple[Trajectory, ...]]:
    """Play the rollouts of (task, index), `rollout.max_concurrent` at a time.

    What comes of one depends on its own batch only, so that an evaluation goes on after any batch
    as if it had not been stopped. `again`: with other seeds than the first time.
    """
    size = config.rollout.max_concurrent
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        first, index = batch[0]
        seed = stable_seed(config.seed, "evaluation", first.id, index, again)
        if isinstance(agent, Speaker):
            numbered = [
                (task, i, stable_seed(seed, place)) for place, (task, i) in enumerate(batch)
            ]
            yield play_episodes(agent, make_env, numbered, at_once=size)
            continue
        groups = rollout_groups(
            agent,
            make_env,
            [task for task, _ in batch],
            1,
            seed=seed,
            max_new_tokens=config.rollout.max_new_tokens,
            max_context=config.rollout.max_context,
            tool_workers=config.rollout.tool_workers,
        )
        yield tuple(
            replace(group.trajectories[0], index=index)
            for group, (_, index) in zip(groups, batch, strict=True)
        )


def gain(before: Evaluation, after: Evaluation) -> Estimate:
    """How much the mean rose, paired by task."""
    return paired_gain(before.successes, after.successes)
