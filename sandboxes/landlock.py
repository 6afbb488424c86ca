"""The `landlock` backend: the runner without namespaces, for containers that refuse them."""

import itertools
import os
import stat
import sys
from pathlib import Path
from typing import Any

from sandboxes.backend import Unavailable
from sandboxes.base import Isolation, Limits, Policy
from sandboxes.jail import visible_folders
from sandboxes.runner import seccomp, system
from sandboxes.spawn import PYTHON, Spawned

_FIRST_UID, _UIDS = 250_000, 50_000
_numbers = itertools.count()


class LandlockBackend:
    """Landlock, seccomp and limits: no file can be written, no process or socket made."""

    name = "landlock"
    isolation = Isolation(
        network="hard",
        files="hard",
        disk="hard",
        memory="per process",  # and each session is one
        processes="hard",
        syscalls="hard",
    )

    def launch(
        self, limits: Limits, policy: Policy, sessions: int
    ) -> tuple[Spawned, dict[str, Any]]:
        """Start a runner whose sessions give up everything that a process can give up alone."""
        if sys.platform != "linux" or not seccomp.supported():
            raise Unavailable("it needs Linux on x86-64 or 64-bit ARM: use sandbox.backend=docker")
        if system.landlock_version() < 1:
            raise Unavailable(
                "this kernel has no Landlock: it needs Linux 5.13 with `landlock` among the "
                "security modules (lsm=) that it was started with"
            )
        if policy.subprocesses or policy.network != "none":
            raise Unavailable(
                "it allows neither subprocesses nor a network, which it cannot bound: use "
                "sandbox.backend=jail or docker"
            )
        folders = visible_folders(policy)
        uid = None
        if os.geteuid() == 0 and all(map(_open_to_others, (*folders, Path(PYTHON)))):
            uid = _FIRST_UID + (os.getpid() * 64 + next(_numbers)) % _UIDS
        readable = ("/usr", "/lib", "/lib64", *_DEVICES, *map(str, folders))
        return Spawned(lambda argv: argv), {"landlock": readable, "drop_uid": uid}


_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")


def _open_to_others(path: Path) -> bool:
    """Whether any user may reach and read it."""
    reach = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return reach and bool(path.stat().st_mode & stat.S_IROTH)
