"""The steps by which a fresh process gives up everything before it sees a byte of foreign code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxes.runner import seccomp, system

EMPTY_FOLDER = "/empty"  # of a jail; cheaper to mount than a file system
MAX_OPEN_FILES = 64
MAX_PROCESSES = 32
_MAX_INODES = 2048
_MAX_SHM_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Confinement:
    """What a backend, the limits and the policy ask for; sent by the host as the first message."""

    # Of the limits and the policy.
    memory_bytes: int
    max_file_bytes: int
    disk_bytes: int
    max_output_bytes: int
    cpu_s: float
    network: str
    subprocesses: bool
    packages: tuple[str, ...]
    preload: tuple[str, ...]
    # Of the backend.
    namespaces: bool = False  # a fresh set for each session, with its own /tmp and /dev/shm
    seccomp: bool = True
    landlock: tuple[str, ...] | None = None  # the folders that may be read, everything if None
    drop_uid: int | None = None  # the user that the runner becomes for good
    session_uids: tuple[int, int] | None = None  # first and number: each session has its own
    scratch: str = ""  # the folder of the folders that sessions have for themselves; "" for none
    spares: int = 1  # processes that wait, confined, for the next session

    @property
    def flags(self) -> int:
        """For `system.clone`."""
        if not self.namespaces:
            return 0
        wanted = dict(system.NEW_NAMESPACES)
        if self.network == "none":  # no socket can be made, so an empty network is not needed
            del wanted["network"]
        return sum(wanted.values())


@dataclass(frozen=True)
class Parent:
    """The process that forks: what it can know and prepare for all that it will fork."""

    pid: int
    uid: int
    gid: int
    filter_template: bytes

    @classmethod
    def this(cls, confinement: Confinement) -> Parent:
        """Prepare this process to be the parent: what is done here need not be done in each."""
        with contextlib.suppress(OSError):  # without /proc; the limit on memory holds anyway
            _write("/proc/self/oom_score_adj", "1000")  # when memory runs out, they go first
        os.environ.clear()
        os.environ.update({"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"})
        template = b""
        if confinement.seccomp:
            loopback = confinement.network == "loopback"
            writable = confinement.namespaces or bool(confinement.scratch)
            template = seccomp.template(
                subprocesses=confinement.subprocesses, loopback=loopback, metadata=writable
            )
        return cls(os.getpid(), os.geteuid(), os.getegid(), template)


def keep_only(streams: Sequence[int], channel: int) -> int:
    """Have nothing open but these standard streams and the channel, whose new number is returned.

    Nothing else is told that number, which is random and beyond the limit on descriptors.
    """
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**16)
    floor = most // 2 + int.from_bytes(os.urandom(2), "big") % (most // 2 - 1)
    number = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, floor)
    os.closerange(3, number)
    os.closerange(number + 1, 2**20)
    return number


def enter(
    confinement: Confinement,
    parent: Parent,
    uid: int,
) -> str:
    """Confine this process; returns the session's folder."""
    flags = confinement.flags
    if flags:
        _map_user(parent.uid, parent.gid)
        _mount(confinement)
        if flags & system.NEW_NAMESPACES["network"]:
            system.raise_loopback()
    os.setsid()
    if flags or parent.uid == 0:
        system.drop_bounding_set()
    if confinement.session_uids is not None:
        become(uid)
    folder = _folder(confinement, uid)
    os.chdir(folder or "/")
    if folder:
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
    _lower_limits(confinement)
    if confinement.seccomp:  # all but the negative control
        system.drop_capabilities()
        system.no_new_privileges()
    if not flags:  # in a process namespace all end with their first
        system.die_with_parent(parent.pid)
    if confinement.landlock is not None:
        writable = ["/dev/null", *([folder] if folder else [])]
        loopback = confinement.network == "loopback"
        system.landlock(list(confinement.landlock), writable, loopback=loopback)
    if confinement.seccomp:
        system.install_filter(seccomp.for_process(parent.filter_template, os.getpid()))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    return folder


def become(uid: int) -> None:
    """Be this user and nothing else."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _map_user(uid: int, gid: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"1000 {uid} 1")
    _write("/proc/self/gid_map", f"1000 {gid} 1")


def _mount(confinement: Confinement) -> None:
    flags = system.NOSUID | system.NODEV
    inodes = f"nr_inodes={_MAX_INODES},mode=0700"
    # Memory is shared with other processes there, and without those it stays read-only.
    shm_bytes = min(_MAX_SHM_BYTES, confinement.disk_bytes // 4) if confinement.subprocesses else 0
    system.mount("tmpfs", "/tmp", flags, f"size={confinement.disk_bytes - shm_bytes},{inodes}")
    if shm_bytes:
        system.mount("tmpfs", "/dev/shm", flags, f"size={shm_bytes},{inodes}")
    # The processes of others are hidden; a /proc of its own is refused in most containers.
    system.bind(EMPTY_FOLDER, "/proc")


def _folder(confinement: Confinement, uid: int) -> str:
    if confinement.namespaces:
        return "/tmp"
    if not confinement.scratch:
        return ""
    folder = f"{confinement.scratch}/{uid}"
    with contextlib.suppress(FileExistsError):  # a file system of its own is mounted there
        os.mkdir(folder, 0o700)
    return folder


def _lower_limits(confinement: Confinement) -> None:
    for limit, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, confinement.memory_bytes),
        (resource.RLIMIT_FSIZE, confinement.max_file_bytes),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(limit, (bound, bound))
    if confinement.namespaces:  # elsewhere the count is that of the whole user
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def ignore_interrupts() -> None:
    """Let a Ctrl-C in the terminal reach the host alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
