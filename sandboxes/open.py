"""Where a backend's name becomes a backend."""

from collections.abc import Callable

from sandboxes.base import Limits, Sandbox
from sandboxes.local import LocalSandbox

BACKENDS: dict[str, Callable[[Limits], Sandbox]] = {LocalSandbox.name: LocalSandbox}


def open_sandbox(backend: str, limits: Limits) -> Sandbox:
    """The sandbox called `backend`.

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown sandbox backend {backend!r}: there are {', '.join(BACKENDS)}")
    return BACKENDS[backend](limits)
