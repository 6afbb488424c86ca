"""The `jail` backend: bubblewrap around the runner, fresh namespaces around each session."""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandboxes.backend import Unavailable
from sandboxes.base import Isolation, Limits, Policy
from sandboxes.cgroup import Cgroup
from sandboxes.runner import confine, seccomp
from sandboxes.spawn import PYTHON, Spawned

_FIRST_UID, _UIDS = 200_000, 50_000  # of runners that root starts; nobody else's
_DEVICES = ("null", "zero", "full", "random", "urandom")
_RUNNER_BYTES = 256 * 2**20  # of a control group, beside what its sessions may use
_numbers = itertools.count()


class JailBackend:
    """Namespaces, seccomp and limits; as root with a user of its own, and in a control group."""

    name = "jail"
    writable = True
    isolation = Isolation(
        network="hard", files="hard", disk="hard", memory="hard", processes="hard", syscalls="hard"
    )

    def room(self, policy: Policy) -> int:
        """Sessions with subprocesses would share their limit on memory."""
        return 1 if policy.subprocesses else 128

    def close(self) -> None:
        """There is nothing that it keeps."""

    def launch(
        self, limits: Limits, policy: Policy, sessions: int
    ) -> tuple[Spawned, dict[str, Any]]:
        """Start a runner in a jail."""
        if sys.platform != "linux" or not seccomp.supported():
            raise Unavailable("it needs Linux on x86-64 or 64-bit ARM: use sandbox.backend=docker")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise Unavailable("bwrap is not installed: apt-get install bubblewrap")
        cgroup = _cgroup(limits, sessions)
        if cgroup is None and policy.subprocesses:
            raise Unavailable(
                "subprocesses need a control group, because each has the memory limit for itself, "
                "and this user may make none: run as root or in a delegated group, use "
                "sandbox.backend=docker, or do without subprocesses"
            )
        is_root = os.geteuid() == 0
        uid = _FIRST_UID + (os.getpid() * 64 + next(_numbers)) % _UIDS if is_root else None
        told, tell = os.pipe()
        with os.fdopen(told) as info:
            try:
                link = Spawned(
                    lambda argv: [bwrap, *_arguments(policy, is_root, tell), *argv],
                    cgroup=cgroup,
                    inherited=(tell,),
                )
            finally:
                os.close(tell)
            try:
                link.place(json.load(info)["child-pid"])
            except ValueError:  # bwrap ended before it told of its child
                link.kill_orphans()  # which waits for a killed bwrap forever, holding its stderr
                complaint = link.complaint()
                link.end()
                raise Unavailable(_cure(complaint)) from None
        packages = _package_folders(policy)
        return link, {"namespaces": True, "drop_uid": uid, "packages": packages}


def _package_folders(policy: Policy) -> tuple[str, ...]:
    """Where the jail has the folders of packages."""
    return tuple(f"/packages/{number}" for number in range(len(policy.packages)))


def _arguments(policy: Policy, is_root: bool, info: int) -> Iterator[str]:
    yield from ("--info-fd", str(info), "--new-session", "--as-pid-1", "--unshare-pid")
    yield from ("--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
    yield from ("--hostname", "sandbox", "--cap-drop", "ALL")
    if is_root:  # mapping a user would map it to root, so the runner becomes another one instead
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            yield from ("--cap-add", capability)
    else:
        yield from ("--unshare-user", "--uid", "1000", "--gid", "1000")
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("lib", "lib64", "bin"):
        if Path("/", name).is_symlink():
            yield from ("--symlink", f"usr/{name}", f"/{name}")
        elif Path("/", name).is_dir():
            yield from ("--ro-bind", f"/{name}", f"/{name}")
    # Python lies at its own path, or it would load another libpython; packages may lie anywhere.
    folders = visible_folders(Policy())
    if hidden := [folder for folder in folders if folder.is_relative_to("/tmp")]:
        raise Unavailable(f"Python lies in {hidden[0]}, but sessions have a /tmp of their own")
    for folder in folders:
        for parent in reversed(folder.parents[:-1]):
            if not parent.is_relative_to("/usr"):
                yield from ("--perms", "0755", "--dir", str(parent))
        yield from ("--ro-bind", str(folder), str(folder))
    yield from ("--perms", "0755", "--dir", "/packages")
    yield from ("--perms", "0555", "--dir", confine.EMPTY_FOLDER)
    for source, target in zip(policy.packages, _package_folders(policy), strict=True):
        yield from ("--ro-bind", str(Path(source).resolve()), target)
    yield from ("--proc", "/proc", "--perms", "0755", "--dir", "/dev")
    for device in _DEVICES:
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    yield from ("--dir", "/dev/shm", "--perms", "0755", "--dir", "/tmp")
    yield from ("--remount-ro", "/", "--chdir", "/", "--clearenv", "--")


def visible_folders(policy: Policy) -> tuple[Path, ...]:
    """What Python needs beside /usr, and what the policy adds."""
    folders = [Path(sys.base_prefix), Path(PYTHON).parent, *map(Path, policy.packages)]
    kept: list[Path] = []
    for folder in sorted({folder.resolve() for folder in folders}):
        if not any(folder.is_relative_to(other) for other in (Path("/usr"), *kept)):
            kept.append(folder)
    return tuple(kept)


def _cgroup(limits: Limits, sessions: int) -> Cgroup | None:
    """A bound on all sessions together: on the memory that the limits of each do not bound."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = sessions * (limits.memory_bytes + limits.disk_bytes) + _RUNNER_BYTES
    try:
        return Cgroup(
            memory_bytes=min(wanted, memory // 2),
            processes=sessions * confine.MAX_PROCESSES + 16,
        )
    except OSError:
        return None


def _cure(complaint: str) -> str:
    return (
        f"bwrap said: {complaint}; inside a container or where unprivileged user namespaces are "
        "switched off, use sandbox.backend=landlock or docker"
    )
