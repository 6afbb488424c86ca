"""An OpenAI-compatible server as a speaker: messages in, a message out, no tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agents.base import EngineError
from agents.parsing import parse_message
from agents.server_http import Server
from envs.types import Message, ToolCall


class ChatServerAgent:
    """Speaks through `/v1/chat/completions`, with the server's own chat template."""

    def __init__(
        self, server: Server, model: str, *, temperature: float, max_tokens: int, version: str
    ) -> None:
        self.version = version
        self._server, self._model = server, model
        self._temperature, self._max_tokens = temperature, max_tokens

    def reply(
        self, transcript: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> Message:
        """See `Speaker`."""
        brought = [json.loads(tool) for message in transcript[:1] for tool in message.tools]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_as_dict(message) for message in transcript],
            "temperature": self._temperature,
            "max_tokens": self._max_tokens,
            "seed": seed % 2**31,  # not every server takes a larger one
        }
        if offered := brought or [dict(tool) for tool in tools]:
            body["tools"] = offered
        answer = self._server.post("/v1/chat/completions", body)
        try:
            said = answer["choices"][0]["message"]
            text = said.get("content") or ""
            calls = tuple(
                ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in said.get("tool_calls") or ()
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{self._server.url}: no message in its answer ({error!r})"
            ) from error
        # A server that reads no calls leaves them in the text.
        return Message("assistant", text, calls) if calls else parse_message(text)


def _as_dict(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                # A call that could not be read has no name; a server may refuse an empty one.
                "function": {"name": call.name or "unreadable", "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value
