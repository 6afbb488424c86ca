"""`WatchedAgent`: an agent whose one episode somebody follows turn by turn."""

from collections.abc import Callable, Sequence

from agents.base import Agent, TurnRequest
from agents.types import Turn
from envs.base import ToolEnv
from envs.types import Message


class WatchedAgent:
    """Passes everything on to `agent`; tells what `env` and the agent say as it happens.

    `pause` is called before each turn of the agent but the first.
    """

    max_episodes = 1

    def __init__(
        self,
        agent: Agent,
        env: ToolEnv,
        see: Callable[[Sequence[Message]], None],
        pause: Callable[[], None],
    ) -> None:
        self.chat, self.version = agent.chat, agent.version
        self.pause_steps, self.clock = agent.pause_steps, agent.clock
        self._agent, self._env, self._see, self._pause = agent, env, see, pause
        self._seen = 0
        self._spoken = False

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Show what the environment said, then let the agent speak."""
        self.catch_up()
        if self._spoken:
            self._pause()
        self._spoken = True
        self._agent.submit(requests)

    def advance(self, until: int | None = None) -> list[Turn]:
        """Show a turn as soon as it has ended, before the environment takes it."""
        turns = self._agent.advance(until)
        self.clock = self._agent.clock
        for turn in turns:
            self._see((turn.message,))
            self._seen += 1
        return turns

    def release(self, episode: int) -> None:
        """Pass it on."""
        self._agent.release(episode)

    def catch_up(self) -> None:
        """Show what the environment has said since; after the end, the last observation."""
        new = self._env.transcript[self._seen :]
        self._see(new)
        self._seen += len(new)
