"""What a backend provides: the runner, started in its confinement, and a line to it."""

from typing import Any, Protocol

from sandboxes.base import Isolation, Limits, Policy


class Unavailable(Exception):  # noqa: N818 - a finding of the probe
    """A backend cannot work on this machine; the text says why and what would cure it."""


class Link(Protocol):
    """A line to one runner. `send` and `receive` may be used from two threads at once."""

    def send(self, data: bytes) -> None:
        """Send it all; OSError when the runner is gone."""
        ...

    def receive(self) -> bytes:
        """Wait for the next bytes; empty when the runner is gone."""
        ...

    def out_of_memory_kills(self) -> int:
        """How often the kernel killed a process of the runner's group for want of memory."""
        ...

    def abandon(self) -> None:
        """Close this process's end only: it is a fork of the one that the runner works for."""
        ...

    def end(self) -> None:
        """Kill the runner with all that it started, and clean up; doing it twice is allowed."""
        ...


class Backend(Protocol):
    """One way to confine the runner."""

    name: str
    isolation: Isolation
    writable: bool  # whether sessions have a folder to write to

    def room(self, policy: Policy) -> int:
        """How many sessions a runner may hold: one where they would share what must be apart."""
        ...

    def launch(self, limits: Limits, policy: Policy, sessions: int) -> tuple[Link, dict[str, Any]]:
        """Start a runner that may hold `sessions` at once, and the settings to send to it.

        The settings are the fields of `sandboxes.runner.confine.Confinement` that differ from
        its defaults, those of the limits and the policy left out.

        Raises:
            Unavailable: this machine cannot, or this backend cannot under this policy.
        """
        ...

    def close(self) -> None:
        """Let go of what it kept for the next launch."""
        ...
