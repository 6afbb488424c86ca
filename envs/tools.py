"""Calling LangChain tools safely: whatever the model wrote, it gets an observation."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from langchain_core.tools import BaseTool, ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError

from envs.any_tool import invoke
from envs.types import Message, ToolCall
from sandboxes.base import SandboxError

log = logging.getLogger(__name__)


class WorldError(RuntimeError):
    """Something outside the model and the program failed; the rollout says nothing."""


WORLD_ERRORS = (WorldError, SandboxError)


class MalformedCall(Exception):  # noqa: N818 - the model's mistake, an outcome
    """The model's call cannot be executed; the text tells the model how to repair it."""


def tool_schemas(tools: Mapping[str, BaseTool]) -> tuple[dict[str, Any], ...]:
    """JSON schemas of the tools in the chat template's (OpenAI's) form."""
    return tuple(convert_to_openai_tool(tool) for tool in tools.values())


def call_tool(tools: Mapping[str, BaseTool], call: ToolCall, max_chars: int) -> str:
    """Execute one call and return its observation, cut in the middle to `max_chars`.

    Raises:
        MalformedCall: unknown tool, arguments that are not a JSON object, or of wrong types.
        WorldError, SandboxError: the world failed, as opposed to the model.
    """
    arguments = _arguments(tools, call)
    try:
        return clip(invoke(tools[call.name], arguments), max_chars)
    except WORLD_ERRORS:
        raise
    except ValidationError as error:
        raise MalformedCall(_explain(tools[call.name], error)) from error
    except ToolException as error:
        return clip(f"Error: {error}", max_chars)
    except Exception as error:
        # A tool of any origin may raise anything at arguments that nobody foresaw. The model
        # can often repair the call, so it is told; the log keeps the trace for the developer.
        log.warning("tool %s raised", call.name, exc_info=True)
        return clip(f"Error: {call.name} raised {type(error).__name__}: {error}", max_chars)


def clip(text: str, max_chars: int) -> str:
    """Keep the two ends of a text that is too long, and say how much is missing.

    Half of a surrogate pair, which no file and no tokenizer takes, becomes a question mark.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= max_chars:
        return text
    mark = f"\n... {len(text) - max_chars} characters left out ...\n"
    keep = max(max_chars - len(mark), 0)
    return text[: keep - keep // 2] + mark + text[len(text) - keep // 2 :]


def tool_message(call: ToolCall, observation: str) -> Message:
    """The observation as the message that answers the call."""
    return Message("tool", observation, tool_call_id=call.id)


def _arguments(tools: Mapping[str, BaseTool], call: ToolCall) -> dict[str, Any]:
    names = ", ".join(sorted(tools)) or "none"
    if not call.name:
        raise MalformedCall(
            'Error: this tool call could not be read. Expected a JSON object {"name": ..., '
            f'"arguments": {{...}}}}. Tools: {names}.'
        )
    if call.name not in tools:
        raise MalformedCall(f"Error: there is no tool {call.name[:80]!r}. Tools: {names}.")
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        raise MalformedCall(
            f"Error: the arguments of {call.name} are not valid JSON: {str(error)[:120]}."
        ) from error
    if not isinstance(arguments, dict):
        raise MalformedCall(
            f"Error: the arguments of {call.name} must be a JSON object, "
            f"not {type(arguments).__name__}. {_signature(tools[call.name])}"
        )
    unknown = sorted(set(arguments) - set(tools[call.name].args))
    if unknown:
        raise MalformedCall(
            f"Error: {call.name} has no argument {unknown[0][:80]!r}. "
            f"{_signature(tools[call.name])}"
        )
    return arguments


def _signature(tool: BaseTool) -> str:
    fields = ", ".join(f"{k}: {v.get('type', 'any')}" for k, v in tool.args.items())
    return f"Expected {tool.name}({fields})."


def _explain(tool: BaseTool, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"Error: argument {where!r} of {tool.name}: {first['msg']}. {_signature(tool)}"
