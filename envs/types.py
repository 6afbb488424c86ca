"""The data that environments, agents and learning exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the agent wrote it.

    `arguments` is JSON text, not yet trusted. Where the agent's text could not even be split
    into name and arguments, `name` is empty and `arguments` holds the text as it was.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; `tool_call_id` names the call that a tool message answers.

    `tools`, on a first message, are JSON schemas: the task brings tools of its own, which the
    chat template shows instead of the environment's.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance: data, no behaviour; `seed` makes the instance reproducible."""

    id: str
    prompt: str
    answer: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says; `feedback` is for the teacher and the log, never the student."""

    reward: float
    success: bool
    feedback: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    MAX_TOOL_CALLS = "max_tool_calls"
    CONTEXT_OVERFLOW = "context_overflow"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def cut_off(self) -> bool:
        """Whether a limit ended the episode, so that its text is an unfinished fragment."""
        return self not in (StopReason.ANSWERED, StopReason.ERROR)
