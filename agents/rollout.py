"""`rollout_groups`: tasks in, groups of trajectories out; tools run while others generate."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from agents.base import Agent, EngineError, TurnRequest
from agents.types import Trajectory, TrajectoryGroup, Turn, TurnEnd
from envs.base import ToolEnv
from envs.tasks import stable_seed
from envs.tools import WORLD_ERRORS
from envs.types import Message, StopReason, Task

_STOPS = {
    TurnEnd.MAX_TOKENS: StopReason.MAX_TOKENS,
    TurnEnd.CONTEXT_OVERFLOW: StopReason.CONTEXT_OVERFLOW,
}


@dataclass(slots=True)
class RolloutStats:
    """What the rollouts cost: tokens sampled, and seconds in which only tools ran."""

    sampled_tokens: int = 0
    tool_wait_s: float = 0.0


@dataclass(slots=True)
class _Episode:
    number: int
    task: Task
    index: int
    env: ToolEnv
    seed: int
    prompt_ids: Sequence[int] | None
    token_ids: list[int] = field(default_factory=list)
    sampled_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    # What the environment is doing, or did last.
    acting: Future[tuple[Message, ...]] | None = None
    error: str = ""

    def extend(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Append sampled tokens, or with None tokens that the environment wrote."""
        self.token_ids += ids
        self.sampled_mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)


def rollout_groups(
    agent: Agent,
    make_env: Callable[[], ToolEnv],
    tasks: Sequence[Task],
    group_size: int,
    *,
    seed: int,
    max_new_tokens: int,
    max_context: int,
    tool_workers: int = 4,
    prompts: Sequence[Sequence[int]] | None = None,
    stats: RolloutStats | None = None,
) -> tuple[TrajectoryGroup, ...]:
    """Play every task `group_size` times; groups come back in the order of the tasks.

    Each episode is seeded by (`seed`, place, task id, index): equal seeds give equal groups. A
    sandbox or engine that fails ends its episode with `StopReason.ERROR` and no verdict.
    `prompts`: token ids for each task that the agent reads instead of the rendered first messages.
    """
    if prompts is not None and len(prompts) != len(tasks):
        raise ValueError(f"got {len(prompts)} prompts for {len(tasks)} tasks; expected one each")
    stats = stats if stats is not None else RolloutStats()
    plan = [(p, task, i) for p, task in enumerate(tasks) for i in range(group_size)]
    played: list[Trajectory] = []
    with ThreadPoolExecutor(tool_workers, thread_name_prefix="tools") as pool:
        for start in range(0, len(plan), agent.max_episodes):
            wave = plan[start : start + agent.max_episodes]
            episodes = [
                _Episode(
                    n,
                    task,
                    index,
                    make_env(),
                    stable_seed(seed, place, task.id, index),
                    prompts[place] if prompts is not None else None,
                )
                for n, (place, task, index) in enumerate(wave)
            ]
            try:
                _play(agent, episodes, pool, max_new_tokens, max_context, stats)
            finally:
                _let_finish(episodes)
                for episode in episodes:
                    agent.release(episode.number)
                # Not map, which gives up the rest where one fails.
                closing = [pool.submit(episode.env.close) for episode in episodes]
                for future in closing:
                    future.result()
            played += [_trajectory(episode, agent.version) for episode in episodes]
    stats.sampled_tokens += sum(t.sampled_tokens for t in played)
    return tuple(
        TrajectoryGroup(task, tuple(played[i * group_size : (i + 1) * group_size]))
        for i, task in enumerate(tasks)
    )


def _play(
    agent: Agent,
    episodes: Sequence[_Episode],
    pool: ThreadPoolExecutor,
    max_new_tokens: int,
    max_context: int,
    stats: RolloutStats,
) -> None:
    """Run a wave of episodes to their ends."""

    def request(episode: _Episode) -> TurnRequest:
        budget = max_new_tokens - sum(episode.sampled_mask)
        return TurnRequest(episode.number, tuple(episode.token_ids), budget, episode.seed)

    started = [pool.submit(_reset, episode) for episode in episodes]
    for episode, future in zip(episodes, started, strict=True):
        episode.acting = future
    for episode, future in zip(episodes, started, strict=True):
        messages = future.result()
        episode.messages += messages
        if not episode.error:
            given = episode.prompt_ids
            episode.extend(agent.chat.prompt_ids(messages) if given is None else given, None)
            if len(episode.token_ids) >= max_context:
                _stop(episode, StopReason.CONTEXT_OVERFLOW)
    speaking = {e.number: e for e in episodes if e.env.stop_reason is None}
    try:
        if speaking:
            agent.submit([request(e) for e in speaking.values()])
        # Episodes whose tools run, in the order in which they come back.
        paused: deque[tuple[int, _Episode, Future[tuple[Message, ...]]]] = deque()
        while speaking or paused:
            while paused and (not speaking or paused[0][0] <= agent.clock):
                _, episode, future = paused.popleft()
                waited = time.monotonic()
                observation = future.result()
                stats.tool_wait_s += time.monotonic() - waited
                if episode.env.stop_reason is None:
                    _observe(episode, agent, observation, max_new_tokens, max_context)
                if episode.env.stop_reason is None:
                    speaking[episode.number] = episode
                    agent.submit([request(episode)])
                else:
                    agent.release(episode.number)
            if not speaking:
                continue
            for turn in agent.advance(paused[0][0] if paused else None):
                episode = speaking.pop(turn.episode)
                _say(episode, turn)
                if turn.end in _STOPS:
                    _stop(episode, _STOPS[turn.end])
                    agent.release(episode.number)
                else:
                    episode.acting = future = pool.submit(_act, episode, turn.message)
                    paused.append((agent.clock + agent.pause_steps, episode, future))
    except EngineError as error:
        _let_finish(episodes)
        for episode in episodes:
            if episode.env.stop_reason is None:
                _fail(episode, error)


def _reset(episode: _Episode) -> tuple[Message, ...]:
    try:
        messages, _ = episode.env.reset(seed=episode.task.seed, options={"task": episode.task})
    except WORLD_ERRORS as error:
        _fail(episode, error)
        return ()
    return messages


def _act(episode: _Episode, message: Message) -> tuple[Message, ...]:
    """The environment's part of a turn, in a thread of its own."""
    try:
        return episode.env.step(message)[0]
    except WORLD_ERRORS as error:
        _fail(episode, error)
        return ()


def _let_finish(episodes: Sequence[_Episode]) -> None:
    """Wait for environments at work: they write to their episodes, and hold their sandboxes."""
    acting = [episode.acting for episode in episodes if episode.acting is not None]
    for future in acting:
        future.cancel()  # if it has not begun
    wait(acting)


def _say(episode: _Episode, turn: Turn) -> None:
    episode.extend(turn.token_ids, turn.logprobs)
    episode.messages.append(turn.message)


def _observe(
    episode: _Episode,
    agent: Agent,
    observation: tuple[Message, ...],
    max_new_tokens: int,
    max_context: int,
) -> None:
    episode.messages += observation
    episode.extend(agent.chat.continuation_ids(observation), None)
    if len(episode.token_ids) >= max_context:
        _stop(episode, StopReason.CONTEXT_OVERFLOW)
    elif sum(episode.sampled_mask) >= max_new_tokens:
        _stop(episode, StopReason.MAX_TOKENS)


def _stop(episode: _Episode, reason: StopReason) -> None:
    episode.env.stop(reason)


def _fail(episode: _Episode, error: Exception) -> None:
    episode.env.stop(StopReason.ERROR)
    episode.env.verdict = None
    episode.error = f"{type(error).__name__}: {error}"


def _trajectory(episode: _Episode, version: str) -> Trajectory:
    reason = episode.env.stop_reason
    if reason is None:
        raise RuntimeError(f"episode {episode.task.id}#{episode.index} never ended")
    return Trajectory(
        task=episode.task,
        index=episode.index,
        token_ids=tuple(episode.token_ids),
        sampled_mask=tuple(episode.sampled_mask),
        logprobs=tuple(episode.logprobs),
        messages=tuple(episode.messages),
        verdict=episode.env.verdict,
        stop_reason=reason,
        adapter_version=version,
        error=episode.error,
    )
