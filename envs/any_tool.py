"""What any LangChain tool answers, as text: synchronous or not, with artifacts or blocks."""

import asyncio
import functools
import json
import os
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool

_Result = TypeVar("_Result")
_starting = threading.Lock()
_MEDIA = ("image", "image_url", "audio", "video", "file")
_SOURCES = ("base64", "url", "image_url", "data", "file_id")


def invoke(tool: BaseTool, arguments: dict[str, Any]) -> str:
    """Call a tool and wait; one with only an asynchronous side runs in the loop of `wait_for`."""
    try:
        result = tool.invoke(arguments)
    except NotImplementedError:
        if type(tool)._arun is BaseTool._arun:  # it has no asynchronous side either
            raise
        result = wait_for(tool.ainvoke(arguments))
    return text_of(result)


def text_of(result: Any) -> str:
    """Text as it is, blocks of content without their images, everything else as JSON."""
    if isinstance(result, ToolMessage):
        return text_of(result.content)
    if isinstance(result, str):
        return result
    if isinstance(result, list) and result and all(map(_is_block, result)):
        return "\n".join(block.get("text", f"[{block['type']}]") for block in result)
    return json.dumps(result, default=str)


def wait_for(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in one loop of the process, in which sessions and clients stay open."""
    with _starting:
        loop = _loop(os.getpid())
    return asyncio.run_coroutine_threadsafe(work, loop).result()


@functools.lru_cache(maxsize=1)
def _loop(_: int) -> asyncio.AbstractEventLoop:
    """The loop of a process; one that was forked needs a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async-tools", daemon=True).start()
    return loop


def _is_block(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    if item.get("type") == "text":
        return isinstance(item.get("text"), str)
    return item.get("type") in _MEDIA and any(source in item for source in _SOURCES)
