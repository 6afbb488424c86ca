"""Model text to messages: `<tool_call>{json}</tool_call>` blocks, read or kept as they are."""

import json
import re

from envs.types import Message, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(rf"{OPEN}(.*?)(?:{CLOSE}|(?={OPEN})|\Z)", re.DOTALL)


def parse_message(text: str) -> Message:
    """Split an assistant's text into content and tool calls, in order, losing neither.

    A block that is not `{"name": ..., "arguments": ...}` becomes a call without a name that
    holds the block's text: the environment answers it with what is wrong.
    """
    calls = tuple(
        _call(f"call_{i}", match.group(1).strip()) for i, match in enumerate(_BLOCK.finditer(text))
    )
    return Message("assistant", _BLOCK.sub("", text).strip(), calls)


def _call(identity: str, block: str) -> ToolCall:
    try:
        value = json.loads(block)
        name, arguments = value["name"], value.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ToolCall(identity, "", block)
    if not isinstance(name, str):
        return ToolCall(identity, "", block)
    return ToolCall(identity, _encodable(name), _encodable(arguments))


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no file and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
