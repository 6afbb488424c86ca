"""The `unsafe_local` backend: limits on resources and no isolation, as a control for the tests.

It bounds CPU time, memory, output, the size of a file and of the descriptor table, and takes
away the host's environment. It does NOT protect from code that reads or writes the host's files,
uses the network, signals other processes of the user, or starts ones that outlive it.
"""

import tempfile
from pathlib import Path
from typing import Any

from sandboxes.backend import Unavailable
from sandboxes.base import Isolation, Limits, Policy
from sandboxes.spawn import Spawned


class UnsafeLocalBackend:
    """Processes of this user with nothing but limits; refuses to start unasked."""

    name = "unsafe_local"
    writable = True
    isolation = Isolation(
        network="none",
        files="none",
        disk="none",
        memory="per process",
        processes="none",
        syscalls="none",
    )

    def __init__(self, *, allow_unsafe: bool) -> None:
        self._allowed = allow_unsafe

    def room(self, policy: Policy) -> int:
        """Sessions share everything anyway."""
        return 128

    def close(self) -> None:
        """There is nothing that it keeps."""

    def launch(
        self, limits: Limits, policy: Policy, sessions: int
    ) -> tuple[Spawned, dict[str, Any]]:
        """Start a runner as it is."""
        if not self._allowed:
            raise Unavailable(
                "it runs foreign code with all of this user's rights, so it has to be asked for "
                "by sandbox.allow_unsafe=true as well"
            )
        scratch = Path(tempfile.mkdtemp(prefix="mopd-sandbox-"))
        settings = {"seccomp": False, "scratch": str(scratch), "subprocesses": True}
        return Spawned(lambda argv: argv, remove=scratch), settings
