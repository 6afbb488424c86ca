"""What agents produce: turns, trajectories and groups of them."""

from dataclasses import dataclass
from enum import StrEnum

from envs.types import Message, StopReason, Task, Verdict


class TurnEnd(StrEnum):
    """Why the agent's turn ended."""

    END_OF_TURN = "end_of_turn"
    MAX_TOKENS = "max_tokens"
    CONTEXT_OVERFLOW = "context_overflow"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply: the sampled tokens, each with the log-probability under which it was drawn.

    Where the engine failed in this turn alone, `end` is LOST and `error` says why.
    """

    episode: int
    message: Message
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: TurnEnd
    error: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout, token by token.

    `token_ids`, `sampled_mask` and `logprobs` cover the whole transcript, prompt included, and
    have one length; `logprobs` is 0.0 where the token was not sampled. `messages` is the same
    transcript as messages. `verdict` is None where `stop_reason` is ERROR, and only there.
    """

    task: Task
    index: int  # position in the group
    token_ids: tuple[int, ...]
    sampled_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    messages: tuple[Message, ...]
    verdict: Verdict | None
    stop_reason: StopReason
    adapter_version: str
    error: str = ""

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.sampled_mask) == len(self.logprobs):
            raise ValueError(
                f"trajectory {self.task.id}#{self.index}: {len(self.token_ids)} tokens, "
                f"{len(self.sampled_mask)} mask entries, {len(self.logprobs)} log-probabilities"
            )

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first sampled one."""
        return self.sampled_mask.index(True) if True in self.sampled_mask else len(self.token_ids)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The transcript behind the prompt: sampled tokens and observations."""
        return self.token_ids[self.prompt_length :]

    @property
    def response_mask(self) -> tuple[bool, ...]:
        """`sampled_mask` of `response_ids`."""
        return self.sampled_mask[self.prompt_length :]

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the student sampled."""
        return sum(self.sampled_mask)

    @property
    def response_messages(self) -> tuple[Message, ...]:
        """Everything from the agent's first message on."""
        first = next(
            (i for i, m in enumerate(self.messages) if m.role == "assistant"), len(self.messages)
        )
        return self.messages[first:]

    @property
    def reward(self) -> float:
        """The verifier's reward; 0.0 for an errored rollout, which no loss may use."""
        return self.verdict.reward if self.verdict else 0.0

    @property
    def errored(self) -> bool:
        """Whether the world (sandbox, engine) failed, so that the rollout says nothing."""
        return self.stop_reason is StopReason.ERROR


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """The rollouts of one task instance, in rollout order."""

    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """What every rollout began with; empty where the world failed before the first one."""
        started = (t for t in self.trajectories if t.messages)
        return next((t.messages[: len(t.messages) - len(t.response_messages)] for t in started), ())
