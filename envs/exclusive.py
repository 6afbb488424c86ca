"""Tools that may not run beside others: one call at a time in the whole process."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.tools import BaseTool

from envs.tools import WorldError

_POLL_S = 0.5


class _Turnstile:
    """Lets one through; `until` is when the one inside must be out, by its own limits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until = math.inf


_TURNSTILES: dict[str, _Turnstile] = {}


@contextmanager
def alone(tool: BaseTool | None, limit_s: float) -> Iterator[None]:
    """Wait until a tool may run; most may at once.

    `metadata={"exclusive": True}` lets one call of that tool run at a time, `{"exclusive": NAME}`
    one call of all tools with that name. A call runs for `limit_s` at most, or it hangs.

    Raises:
        WorldError: the call inside hangs, so that no other will ever run.
    """
    group = (tool.metadata or {}).get("exclusive") if tool is not None else None
    if tool is None or not group:
        yield
        return
    turnstile = _TURNSTILES.setdefault(tool.name if group is True else str(group), _Turnstile())
    while not turnstile.lock.acquire(timeout=_POLL_S):
        if time.monotonic() > turnstile.until:
            raise WorldError(f"{tool.name} may not run beside others, and one of its calls hangs")
    turnstile.until = time.monotonic() + limit_s
    try:
        yield
    finally:
        turnstile.until = math.inf
        turnstile.lock.release()
