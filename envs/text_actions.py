"""Tool calls as plain text, so that an agent without tool calling can act."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import gymnasium

from envs.base import ToolEnv, Transcript
from envs.spaces import MessageSpace
from envs.types import Message, ToolCall

# The words of ToolAlpaca and ReAct.
_ACTION = re.compile(r"^[ \t]*Action:(.*)$", re.MULTILINE)
_INPUT = re.compile(r"\s*Action Input:\s*")
_JSON = json.JSONDecoder(strict=False)  # line breaks inside of texts are no reason to refuse
REPAIR = (
    "Error: this action could not be read. Expected two lines: 'Action: name of a tool', then "
    "'Action Input: ' with its arguments as a JSON object."
)


class TextActions(gymnasium.Wrapper[Transcript, Message, Transcript, Message]):
    """An environment whose agent writes its calls as text.

    A call is two lines, and a message may hold several:

        Action: calculate
        Action Input: {"expression": "6 * 7"}

    The tools are described at the end of the system message, and results come as one user message
    of lines `Observation: ...`. A message without a line `Action:` is the final answer. An action
    that cannot be read is answered with how to write it. Without tools, all text is an answer.
    """

    def __init__(self, env: gymnasium.Env[Transcript, Message]) -> None:
        if not isinstance(env.unwrapped, ToolEnv):
            raise TypeError(f"got {type(env.unwrapped).__name__}; expected an envs.base.ToolEnv")
        super().__init__(env)
        self.action_space = MessageSpace()

    @property
    def tool_env(self) -> ToolEnv:
        """The environment inside, which has task, verdict and stop reason."""
        return cast(ToolEnv, self.env.unwrapped)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Transcript, dict[str, Any]]:
        """Start an episode; the system message says how to call tools."""
        (first, *rest), info = self.env.reset(seed=seed, options=options)
        brought = [json.loads(schema) for schema in first.tools]
        how_to = instructions(brought or self.tool_env.schemas())
        return (Message(first.role, f"{first.content}{how_to}"), *rest), info

    def step(self, action: Message) -> tuple[Transcript, float, bool, bool, dict[str, Any]]:
        """Take the agent's text."""
        if action.tool_calls:
            raise TypeError(f"got {len(action.tool_calls)} tool calls; expected them as text")
        calls = read_actions(action.content) if self.tool_env.tools else ()
        spoken = Message("assistant", action.content, calls)
        results, reward, terminated, truncated, info = self.env.step(spoken)
        texts = [
            REPAIR if not call.name else result.content
            for call, result in zip(calls, results, strict=False)  # none where a limit ended it
        ]
        shown = "\n".join(f"Observation: {text}" for text in texts)
        observation = (Message("user", shown),) if texts else ()
        return observation, float(reward), terminated, truncated, info


def instructions(schemas: Sequence[dict[str, Any]]) -> str:
    """How to call the tools, to follow a system message; nothing where there are none."""
    if not schemas:
        return ""
    tools = "\n".join(_described(schema["function"]) for schema in schemas)
    return (
        f"\n\nTools:\n{tools}\n\nTo use a tool, write these two lines and wait for its result:\n"
        'Action: name of the tool\nAction Input: {"argument": value}\n'
        "A message without an action is your final answer."
    )


def read_actions(text: str) -> tuple[ToolCall, ...]:
    """The calls that a text makes; one that cannot be read has no name."""
    return tuple(
        _call(f"call_{number}", action, text)
        for number, action in enumerate(_ACTION.finditer(text))
    )


def write_actions(message: Message) -> Message:
    """The message with its calls as text, which `read_actions` takes."""
    parts = [message.content] if message.content else []
    parts += [f"Action: {call.name}\nAction Input: {call.arguments}" for call in message.tool_calls]
    return Message(message.role, "\n".join(parts))


def _call(identity: str, action: re.Match[str], text: str) -> ToolCall:
    unreadable = ToolCall(identity, "", action.group().strip())
    marked = _INPUT.match(text, action.end())
    if not marked:
        return unreadable
    try:
        arguments, _ = _JSON.raw_decode(text, marked.end())
        if not isinstance(arguments, dict):
            return unreadable
        return ToolCall(identity, action.group(1).strip(), json.dumps(arguments))
    except (ValueError, RecursionError):
        return unreadable


def _described(function: dict[str, Any]) -> str:
    schema = function.get("parameters", {})
    required = schema.get("required", ())
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {_kind(field)}"
        + (f" ({field['description']})" if field.get("description") else "")
        for name, field in schema.get("properties", {}).items()
    )
    return f"{function['name']}({arguments}): {function.get('description', '')}"


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(json.dumps, field["enum"]))
    return str(field.get("type", "any"))
