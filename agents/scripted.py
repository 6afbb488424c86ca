"""`ScriptedAgent`: replies that somebody else wrote, for tests, baselines and gold solutions."""

from collections.abc import Callable, Sequence

from agents.base import TurnRequest
from agents.chat import Chat
from agents.types import Turn, TurnEnd

Script = Callable[[int, int], str]  # (episode, turn) -> the reply's text


class ScriptedAgent:
    """Says `script(episode, turn)`; its tokens have log-probability 0 (they are certain)."""

    version = "scripted"
    pause_steps = 0
    max_episodes = 2**31

    def __init__(self, chat: Chat, script: Script | Sequence[str]) -> None:
        self.chat = chat
        self.clock = 0
        self._script: Script = (
            script if callable(script) else lambda _, turn: script[min(turn, len(script) - 1)]
        )
        self._turns: dict[int, int] = {}
        self._queue: list[TurnRequest] = []

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Queue turns."""
        self._queue += requests

    def advance(self, until: int | None = None) -> list[Turn]:
        """Say all that is queued."""
        requests, self._queue = self._queue, []
        self.clock += 1
        return [self._say(request) for request in requests]

    def release(self, episode: int) -> None:
        """Forget how many turns the episode had."""
        self._turns.pop(episode, None)

    def _say(self, request: TurnRequest) -> Turn:
        number = self._turns.get(request.episode, 0)
        self._turns[request.episode] = number + 1
        ids = [*self.chat.encode(self._script(request.episode, number)), self.chat.eos_id]
        end = TurnEnd.END_OF_TURN
        if len(ids) > request.max_new_tokens:
            ids, end = ids[: request.max_new_tokens], TurnEnd.MAX_TOKENS
        message = self.chat.parse(ids)
        return Turn(request.episode, message, tuple(ids), (0.0,) * len(ids), end)
