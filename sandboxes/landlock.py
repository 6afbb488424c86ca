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
    writable = False  # what a session would write could not be bounded
    isolation = Isolation(
        network="hard",
        files="hard",
        disk="hard",
        memory="per process",  # and each session is one
        processes="hard",
        syscalls="hard",
    )

    def room(self, policy: Policy) -> int:
        """Sessions share nothing that matters."""
        return 128

    def close(self) -> None:
        """There is nothing that it keeps."""

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
        python, uid = Path(PYTHON), None
        folders = visible_folders(policy)
        if os.geteuid() == 0:
            uid = _FIRST_UID + (os.getpid() * 64 + next(_numbers)) % _UIDS
            if not all(map(_open_to_others, (python, *folders))):
                python, folders = _python_for_all(), tuple(map(Path, policy.packages))
        readable = ("/usr", "/lib", "/lib64", *_DEVICES, *map(str, folders))
        return (
            Spawned(lambda argv: [str(python), *argv[1:]]),
            {"landlock": readable, "drop_uid": uid},
        )


_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")


def _python_for_all() -> Path:
    """The system's Python of this version, where this one is out of other users' reach.

    Landlock does not see every change to a file, so sessions may not remain root.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("/usr/local/bin", "/usr/bin"):
        candidate = Path(folder, name).resolve()
        if candidate.is_file() and _open_to_others(candidate):
            return candidate
    raise Unavailable(
        f"{PYTHON} is out of the reach of other users, and sessions may not be root: run as a "
        f"plain user, install {name} for all, or use sandbox.backend=jail"
    )


def _open_to_others(path: Path) -> bool:
    """Whether any user may reach and read it."""
    reach = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return reach and bool(path.stat().st_mode & stat.S_IROTH)
