"""`Episode`: one rollout in the making, and what its environment is doing."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from agents.base import TurnRequest
from agents.tool_threads import ToolThreads
from agents.types import Trajectory, Turn
from envs.base import ToolEnv, Transcript
from envs.types import Message, StopReason, Task

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Episode:
    """Its transcript so far; `acting` is its environment's answer to come, or the last one."""

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
    acting: Future[Transcript] = field(default_factory=Future)
    hangs: bool = False  # given up
    due: int = 0  # step of the agent's clock at which it comes back, where that is fixed

    def start(self, threads: ToolThreads) -> None:
        """Reset the environment, in a thread."""
        options = {"task": self.task}
        self.acting = threads.submit(
            lambda: self.env.reset(seed=self.task.seed, options=options)[0]
        )

    def act(self, threads: ToolThreads, message: Message) -> None:
        """Let the environment take a turn, in a thread."""
        self.acting = threads.submit(lambda: self.env.step(message)[0])

    def read(self, messages: Transcript, token_ids: Sequence[int]) -> None:
        """Append what the environment said."""
        self.messages += messages
        self._extend(token_ids, None)

    def say(self, turn: Turn) -> None:
        """Append what the agent said."""
        self.messages.append(turn.message)
        self._extend(turn.token_ids, turn.logprobs)

    def request(self, max_new_tokens: int) -> TurnRequest:
        """The next turn, of what is left of `max_new_tokens` in all turns."""
        left = max_new_tokens - sum(self.sampled_mask)
        return TurnRequest(self.number, tuple(self.token_ids), left, self.seed)

    def give_up(self, threads: ToolThreads) -> None:
        """Leave a tool alone that hangs; should it return, its environment is closed then."""
        log.warning(
            "task %s#%d: a tool runs longer than max_episode_s=%g; the episode ends, but a thread "
            "cannot be ended: it and its environment are left behind until the tool returns",
            self.task.id,
            self.index,
            self.env.limits.max_episode_s,
        )
        self.hangs = True
        threads.give_up(self.acting)
        close: Callable[[], None] = self.env.close
        self.acting.add_done_callback(lambda _: close())

    def trajectory(self, version: str, error: Exception | None = None) -> Trajectory:
        """What has come of it; with `error` its world failed, and there is no verdict."""
        if error is not None:
            self.env.stop(StopReason.ERROR)
            self.env.verdict = None
        reason = self.env.stop_reason
        if reason is None:
            raise RuntimeError(f"episode {self.task.id}#{self.index} never ended")
        return Trajectory(
            task=self.task,
            index=self.index,
            token_ids=tuple(self.token_ids),
            sampled_mask=tuple(self.sampled_mask),
            logprobs=tuple(self.logprobs),
            messages=tuple(self.messages),
            verdict=self.env.verdict,
            stop_reason=reason,
            adapter_version=version,
            error="" if error is None else f"{type(error).__name__}: {error}",
        )

    def _extend(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        self.token_ids += ids
        self.sampled_mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)
