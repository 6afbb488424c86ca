"""An episode as plain text on a terminal: messages, tools, and how it ended."""

import json
from collections.abc import Mapping
from typing import Any

from agents.types import Trajectory
from envs.tools import clip
from envs.types import Message

MAX_ANSWER_CHARS = 2000
_WHO = {"assistant": "agent", "user": "task"}
_UNREADABLE = "(unreadable)"


class Scribe:
    """Writes down one episode; it remembers which tool was called by which id."""

    def __init__(self) -> None:
        self._tools: dict[str | None, str] = {}

    def text(self, message: Message) -> str:
        """One message."""
        if message.role == "tool":
            return plain(f"{self._tools.get(message.tool_call_id, 'tool')} -> {message.content}")
        who = _WHO.get(message.role, message.role)
        lines = [f"{who}: {message.content}"] if message.content or not message.tool_calls else []
        for call in message.tool_calls:
            self._tools[call.id] = call.name or _UNREADABLE
            lines.append(f"{who} calls {self._tools[call.id]} {call.arguments}")
        return plain("\n".join(lines))


def usage(schema: Mapping[str, Any]) -> str:
    """How to type a call of a tool, and what it does."""
    function = schema["function"]
    parameters = function.get("parameters", {})
    required = parameters.get("required", ())
    arguments = [
        f"{name}={_kind(field)}" if name in required else f"[{name}={_kind(field)}]"
        for name, field in parameters.get("properties", {}).items()
    ]
    described = function.get("description", "").strip()
    return plain(f"/{' '.join([function['name'], *arguments])}  {described}".rstrip())


def ending(trajectory: Trajectory) -> str:
    """How the episode ended, what the verifier says, and the answer that was expected."""
    verdict = trajectory.verdict
    if verdict is None:
        return plain(f"no verdict: {trajectory.error}")
    lines = [f"{'success' if verdict.success else 'failure'}, reward {verdict.reward:g}"]
    lines[0] += f" ({trajectory.stop_reason.value})"
    if verdict.parts:
        lines.append(", ".join(f"{name} {value:.3g}" for name, value in verdict.parts.items()))
    if verdict.feedback:
        lines.append(f"feedback: {verdict.feedback}")
    if trajectory.task.answer:
        lines.append(f"reference: {clip(trajectory.task.answer, MAX_ANSWER_CHARS)}")
    return plain("\n".join(lines))


def plain(text: str) -> str:
    """Text that cannot steer a terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _kind(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return "|".join(map(json.dumps, field["enum"]))
    return str(field.get("type", "any")).upper()
