"""Gymnasium spaces whose members are chat messages (`spaces.Text` rejects ordinary text)."""

from typing import Any

from gymnasium.spaces import Space

from envs.types import Message, ToolCall

_WORDS = ("the answer is", "\\boxed{7}", "```python\npass\n```", "x", "")


class MessageSpace(Space[Message]):
    """All messages of an agent; a sample is text, or a call of one of `tools`."""

    def __init__(self, tools: tuple[str, ...] = (), seed: int | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)
        self.tools = tools

    def sample(self, mask: Any = None, probability: Any = None) -> Message:
        """Draw a message from a few short texts and empty calls; masks do not apply."""
        text = _WORDS[int(self.np_random.integers(len(_WORDS)))]
        calls: tuple[ToolCall, ...] = ()
        if self.tools and self.np_random.random() < 0.5:
            name = self.tools[int(self.np_random.integers(len(self.tools)))]
            calls = (ToolCall(id="call_0", name=name, arguments="{}"),)
        return Message("assistant", text, calls)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a message with the role assistant."""
        return isinstance(x, Message) and x.role == "assistant"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MessageSpace) and other.tools == self.tools

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed shape."""
        return False


class TranscriptSpace(Space[tuple[Message, ...]]):
    """All tuples of messages: what an environment shows in one step."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> tuple[Message, ...]:
        """Draw one short user message; masks do not apply."""
        return (Message("user", _WORDS[int(self.np_random.integers(len(_WORDS)))]),)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a tuple of messages."""
        return isinstance(x, tuple) and all(isinstance(m, Message) for m in x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TranscriptSpace)

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed shape."""
        return False
