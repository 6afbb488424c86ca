"""`rollout_groups`: tasks in, groups of trajectories out; tools run while others generate."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice

from agents.base import Agent, EngineError
from agents.episode import Episode
from agents.tool_threads import ToolThreads
from agents.types import Trajectory, TrajectoryGroup, Turn, TurnEnd
from envs.base import ToolEnv, Transcript
from envs.tasks import stable_seed
from envs.tools import WORLD_ERRORS
from envs.types import StopReason, Task

_STOPS = {
    TurnEnd.MAX_TOKENS: StopReason.MAX_TOKENS,
    TurnEnd.CONTEXT_OVERFLOW: StopReason.CONTEXT_OVERFLOW,
}
_POLL_S = 0.2  # how often a tool that everybody waits for is looked at


@dataclass(slots=True)
class RolloutStats:
    """What the rollouts cost: tokens sampled, and seconds in which only tools ran."""

    sampled_tokens: int = 0
    tool_wait_s: float = 0.0


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
    sandbox or engine that fails ends its episode with `StopReason.ERROR` and no verdict, a tool
    that hangs with `StopReason.TIMEOUT`. At most `agent.max_episodes` are in the agent's hands;
    a new one starts where another ends.
    `prompts`: token ids for each task that the agent reads instead of the rendered first messages.
    """
    if prompts is not None and len(prompts) != len(tasks):
        raise ValueError(f"got {len(prompts)} prompts for {len(tasks)} tasks; expected one each")
    stats = stats if stats is not None else RolloutStats()

    def episodes() -> Iterator[Episode]:
        for place, task in enumerate(tasks):
            for index in range(group_size):
                yield Episode(
                    place * group_size + index,
                    task,
                    index,
                    make_env(),
                    stable_seed(seed, place, task.id, index),
                    prompts[place] if prompts is not None else None,
                )

    play = _Play(agent, episodes(), max_new_tokens, max_context, tool_workers, stats)
    played = play.run()
    stats.sampled_tokens += sum(t.sampled_tokens for t in played)
    return tuple(
        TrajectoryGroup(task, tuple(played[i * group_size : (i + 1) * group_size]))
        for i, task in enumerate(tasks)
    )


class _Play:
    """All episodes of one call: some to come, some starting, speaking or acting, some over."""

    def __init__(
        self,
        agent: Agent,
        to_come: Iterator[Episode],
        max_new_tokens: int,
        max_context: int,
        tool_workers: int,
        stats: RolloutStats,
    ) -> None:
        self._agent, self._to_come, self._stats = agent, to_come, stats
        self._max_new_tokens, self._max_context = max_new_tokens, max_context
        self._fixed = agent.pause_steps > 0  # who speaks when is a matter of tokens only
        self._ahead = tool_workers  # environments that start before there is room for them
        self._tools = ToolThreads(tool_workers, "tools")
        self._closers = ToolThreads(tool_workers, "close")  # never behind tools that wait for room
        self._starting: deque[Episode] = deque()
        self._speaking: dict[int, Episode] = {}
        self._acting: deque[Episode] = deque()  # in the order in which they spoke
        self._over: dict[int, Trajectory] = {}
        self._closing: list[Future[None]] = []

    def run(self) -> list[Trajectory]:
        """Play them all; in the order of their numbers."""
        try:
            self._start()
            while self._starting or self._speaking or self._acting:
                try:
                    self._go_on()
                except EngineError as error:
                    self._lose(error)
                self._start()
        finally:
            self._close()
        return [self._over[number] for number in sorted(self._over)]

    def _go_on(self) -> None:
        """Whoever can speaks, until a turn ends or somebody else can."""
        ready: list[Episode] = []
        heard = 0
        for take_out in (self._back, self._begun):
            for episode in take_out():
                heard += 1
                if self._hear(episode):
                    self._speaking[episode.number] = episode
                    ready.append(episode)
        if ready:
            self._agent.submit([episode.request(self._max_new_tokens) for episode in ready])
        if self._speaking:
            for turn in self._agent.advance(self._until()):
                self._take(turn)
        elif not heard:
            could = [*self._acting, *(self._starting if self._room() else ())]
            self._wait(lambda: any(map(self._settled, could)))

    def _start(self) -> None:
        """Start environments: as many as there is room for, and some ahead."""
        while len(self._starting) < self._room() + self._ahead:
            episode = next(self._to_come, None)
            if episode is None:
                return
            episode.start(self._tools)
            self._starting.append(episode)

    def _room(self) -> int:
        return self._agent.max_episodes - len(self._speaking) - len(self._acting)

    def _back(self) -> list[Episode]:
        """Take out those whose tools are done; with a fixed pause, those whose pause is over."""
        back: list[Episode] = []
        if not self._fixed:
            return self._settled_of(self._acting, len(self._acting))
        while self._acting and (
            self._acting[0].due <= self._agent.clock or not (self._speaking or back)
        ):
            self._wait(lambda: self._settled(self._acting[0]))
            back.append(self._acting.popleft())
        return back

    def _begun(self) -> list[Episode]:
        """Take out new episodes for which there is room."""
        room = min(self._room(), len(self._starting))
        if not self._fixed:
            return self._settled_of(self._starting, room)
        self._wait(lambda: all(map(self._settled, islice(self._starting, room))))
        return [self._starting.popleft() for _ in range(room)]

    def _settled_of(self, episodes: deque[Episode], most: int) -> list[Episode]:
        self._give_up_hanging()
        settled = list(islice(filter(self._settled, episodes), most))
        for episode in settled:
            episodes.remove(episode)
        return settled

    def _settled(self, episode: Episode) -> bool:
        return episode.hangs or episode.acting.done()

    def _until(self) -> int | None:
        """The step at which somebody else may speak, too."""
        if self._fixed:
            return self._acting[0].due if self._acting else None
        waiting = self._acting or (self._starting and self._room())
        return self._agent.clock + 1 if waiting else None

    def _hear(self, episode: Episode) -> bool:
        """Take in what the environment said; whether it is the agent's turn."""
        env = episode.env
        if episode.hangs:
            env.stop(StopReason.TIMEOUT)
        else:
            try:
                said = episode.acting.result()
            except WORLD_ERRORS as error:
                self._finish(episode, error)
                return False
            if env.stop_reason is None:
                episode.read(said, self._ids(episode, said))
                if len(episode.token_ids) >= self._max_context:
                    env.stop(StopReason.CONTEXT_OVERFLOW)
                elif sum(episode.sampled_mask) >= self._max_new_tokens:
                    env.stop(StopReason.MAX_TOKENS)
        if env.stop_reason is not None:
            self._finish(episode)
            return False
        return True

    def _ids(self, episode: Episode, said: Transcript) -> Sequence[int]:
        if episode.messages:
            return self._agent.chat.continuation_ids(said)
        given = episode.prompt_ids
        return self._agent.chat.prompt_ids(said) if given is None else given

    def _take(self, turn: Turn) -> None:
        """Hand a turn of the agent to its environment."""
        episode = self._speaking.pop(turn.episode)
        if turn.end is TurnEnd.LOST:
            self._finish(episode, EngineError(turn.error))
            return
        episode.say(turn)
        if turn.end in _STOPS:
            episode.env.stop(_STOPS[turn.end])
            self._finish(episode)
        else:
            episode.act(self._tools, turn.message)
            episode.due = self._agent.clock + self._agent.pause_steps
            self._acting.append(episode)

    def _finish(self, episode: Episode, error: Exception | None = None) -> None:
        """An episode is over; who hangs keeps its environment."""
        self._over[episode.number] = episode.trajectory(self._agent.version, error)
        self._agent.release(episode.number)
        if not episode.hangs:
            self._closing.append(self._closers.submit(episode.env.close))

    def _lose(self, error: EngineError) -> None:
        """The engine has lost its episodes; those that answered before may still be judged."""
        self._let_finish(self._acting)
        while self._acting:
            episode = self._acting.popleft()
            judged = not episode.acting.cancelled() and not self._hear(episode)
            if not judged:
                self._finish(episode, error)
        for episode in self._speaking.values():
            self._finish(episode, error)
        self._speaking.clear()

    def _let_finish(self, episodes: Iterable[Episode]) -> None:
        """Wait for environments at work, which hold their sandboxes."""
        for episode in episodes:
            episode.acting.cancel()  # if it has not begun
        self._wait(lambda: all(map(self._settled, episodes)))

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait for tools while nobody speaks."""
        started = time.monotonic()
        while not ready():
            at_work = [e.acting for e in (*self._acting, *self._starting) if not self._settled(e)]
            wait(at_work, _POLL_S, FIRST_COMPLETED)
            self._give_up_hanging()
        self._stats.tool_wait_s += time.monotonic() - started

    def _give_up_hanging(self) -> None:
        for episode in (*self._acting, *self._starting):
            if not self._settled(episode) and episode.env.overdue:
                episode.give_up(self._tools)

    def _close(self) -> None:
        """Close what is still open: something where an error of ours ended it all early."""
        try:
            self._let_finish([*self._acting, *self._starting])
            for episode in (*self._speaking.values(), *self._acting, *self._starting):
                self._agent.release(episode.number)
                if not episode.hangs:
                    self._closing.append(self._closers.submit(episode.env.close))
        finally:
            wait(self._closing)  # all of them, though one may fail
            self._tools.close()
            self._closers.close()
        for future in self._closing:
            future.result()
