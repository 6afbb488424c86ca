"""Any chat model of LangChain as a speaker, with its own way of calling tools."""

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from agents.base import EngineError
from agents.parsing import parse_message
from envs.types import Message, ToolCall

PREFIX = "langchain:"  # of a model's name: langchain:package.module:object


def load_chat_model(name: str) -> BaseChatModel:
    """The chat model `package.module:object`, or what `object` makes when it is called.

    Raises:
        ValueError: there is none.
    """
    path = name.removeprefix(PREFIX)
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"--model {name}: expected {PREFIX}package.module:object")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {name}: {error}") from error
    if not isinstance(found, BaseChatModel) and callable(found):
        found = found()
    if not isinstance(found, BaseChatModel):
        raise ValueError(
            f"--model {name}: it is a {type(found).__name__}; expected a chat model of LangChain, "
            "or a function that returns one"
        )
    return found


class LangChainAgent:
    """Speaks through `bind_tools` and `invoke`; sampling is set in the model itself."""

    def __init__(self, model: BaseChatModel, *, version: str) -> None:
        self.version = version
        self._model = model

    def reply(
        self, transcript: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> Message:
        """See `Speaker`; `seed` has no place in LangChain's interface."""
        brought = [json.loads(tool) for message in transcript[:1] for tool in message.tools]
        offered = brought or [dict(tool) for tool in tools]
        try:
            model: Any = self._model.bind_tools(offered) if offered else self._model
            answer = model.invoke([to_langchain(message) for message in transcript])
        # Whatever its provider's library raises: the network, a limit, a refusal.
        except Exception as error:
            raise EngineError(f"{self.version}: {type(error).__name__}: {error}") from error
        return from_langchain(answer)


def to_langchain(message: Message) -> BaseMessage:
    """One of our messages as LangChain's."""
    match message.role:
        case "system":
            return SystemMessage(message.content)
        case "user":
            return HumanMessage(message.content)
        case "tool":
            return ToolMessage(message.content, tool_call_id=message.tool_call_id or "")
        case "assistant":
            calls, broken = [], []
            for call in message.tool_calls:
                arguments = _object(call.arguments)
                if arguments is None or not call.name:
                    broken.append(
                        {"name": call.name, "args": call.arguments, "id": call.id, "error": None}
                    )
                else:
                    calls.append({"name": call.name, "args": arguments, "id": call.id})
            return AIMessage(message.content, tool_calls=calls, invalid_tool_calls=broken)


def from_langchain(answer: AIMessage) -> Message:
    """LangChain's answer as a message; calls that it could not read keep their text."""
    text = answer.text
    calls = tuple(
        ToolCall(call["id"] or f"call_{i}", call["name"], json.dumps(call["args"]))
        for i, call in enumerate(answer.tool_calls)
    )
    broken = tuple(
        ToolCall(call["id"] or f"broken_{i}", call["name"] or "", call["args"] or "")
        for i, call in enumerate(answer.invalid_tool_calls)
    )
    if calls or broken:
        return Message("assistant", text, calls + broken)
    # A model whose provider reads no calls may write them as text.
    return parse_message(text)


def _object(arguments: str) -> dict[str, Any] | None:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
