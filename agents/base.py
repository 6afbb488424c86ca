"""The `Agent` protocol: transcripts go in as token ids, finished turns come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agents.chat import Chat
from agents.types import Turn


class EngineError(RuntimeError):
    """The engine that generates tokens failed, as opposed to the model's text."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to generate.

    `token_ids` is the whole transcript so far; of an episode that the agent knows it extends
    what the agent has seen, so that a cache can be kept. `seed` belongs to the episode.
    """

    episode: int
    token_ids: Sequence[int]
    max_new_tokens: int
    seed: int


class Agent(Protocol):
    """Generates the turns of many episodes at once.

    `clock` counts generation steps. An agent whose tokens depend on what else is in its batch,
    be it by a rounding, sets `pause_steps`: an episode then comes back exactly so many steps
    after its turn ended, however long its tools took, a new one starts as soon as another ends,
    and equal seeds give equal rollouts to the last digit. With 0 episodes start and come back
    as soon as they can. At most `max_episodes` are submitted and not yet released.
    """

    chat: Chat
    version: str
    clock: int
    pause_steps: int
    max_episodes: int

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Queue turns, of new episodes or of those that the agent knows; at any time.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def advance(self, until: int | None = None) -> list[Turn]:
        """Generate until a turn ends or `clock` reaches `until`; return the turns that ended.

        Raises:
            EngineError: the engine failed; all episodes that are not released are lost.
        """
        ...

    def release(self, episode: int) -> None:
        """Forget an episode that will not go on, in whatever state it is; twice is allowed."""
        ...
