"""A process that only forks: it never sees a program, a test or an output, so neither do its forks.

A fork has a copy of its parent's memory, and foreign code may read all of its own. Whoever passes
other sessions' programs and tests on must therefore not be the parent.

To the server go ("born", serial, pid) with five descriptors (the process, its stdin, stdout,
stderr and channel), ("failed", reason) and ("dead", serial, wait status, CPU seconds, peak bytes).
From the server comes one byte for each process that it wants.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

from sandboxes import wire
from sandboxes.runner import confine, repl, system

if TYPE_CHECKING:
    from typing import NoReturn


class Nursery:
    """Forks confined processes for the server at the other end of `line`."""

    def __init__(self, confinement: confine.Confinement, line: socket.socket) -> None:
        self._confinement = confinement
        self._line = line
        self._poll = select.epoll()
        self._poll.register(line.fileno(), select.EPOLLIN)
        self._children: dict[int, tuple[int, int, int]] = {}  # by pidfd: serial, pid, user
        self._parent = confine.Parent.this(confinement)
        repl.be_ready()
        self._serial = 0
        first, number = confinement.session_uids or (0, 0)
        self._free_uids = collections.deque(range(first, first + number))

    def serve(self) -> NoReturn:
        """Fork and bury until the server hangs up."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._bury(descriptor)
                    continue
                wanted = self._line.recv(64)
                if not wanted:
                    os._exit(0)
                for _ in wanted:
                    self._bear()

    def _tell(self, *message: Any, descriptors: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._line, [wire.encode(message)], list(descriptors))
        except OSError:
            os._exit(0)  # the server is gone, and what was forked goes with this process

    def _bear(self) -> None:
        theirs: list[int] = []
        ours: list[int] = []
        user = self._free_uids.popleft() if self._free_uids else None
        try:
            if user is None and self._confinement.session_uids is not None:
                raise OSError("no user is free")
            for far_end in (0, 1, 1):  # stdin is read there, the others are written
                pipe = os.pipe2(os.O_CLOEXEC)
                theirs.append(pipe[far_end])
                ours.append(pipe[1 - far_end])
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.append(near.detach())
            theirs.append(far.detach())
            self._serial += 1
            uid = self._serial if user is None else user
            pid = system.clone(self._confinement.flags)
            if pid == 0:
                self._become_session(uid, theirs[:3], theirs[3])
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = (self._serial, pid, uid)
            self._poll.register(pidfd, select.EPOLLIN)
            self._tell("born", self._serial, pid, descriptors=(pidfd, *ours))
        except OSError as error:
            if user is not None:
                self._free_uids.append(user)
            self._tell("failed", str(error))
        finally:
            for descriptor in (*ours, *theirs):
                os.close(descriptor)

    def _become_session(self, uid: int, streams: list[int], channel: int) -> NoReturn:
        try:
            channel = confine.keep_only(streams, channel)
            folder = confine.enter(self._confinement, self._parent, uid)
            repl.serve(channel, folder)
        except BaseException as error:  # there is no one else to tell
            text = repl.described(error).encode("utf-8", "backslashreplace")
            os.write(channel, wire.frame(bytes(repl.NONCE_BYTES) + repl.FAULT + text))
        finally:
            os._exit(125)

    def _bury(self, pidfd: int) -> None:
        serial, pid, uid = self._children.pop(pidfd)
        if not self._confinement.namespaces and self._confinement.subprocesses:
            with contextlib.suppress(OSError):  # it had no company
                os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._clean_up(uid)
        used_s = usage.ru_utime + usage.ru_stime
        self._tell("dead", serial, status, used_s, usage.ru_maxrss * 1024)

    def _clean_up(self, uid: int) -> None:
        """Remove what the process left; in namespaces of its own it left nothing."""
        if self._confinement.namespaces or not self._confinement.scratch:
            return
        folder = f"{self._confinement.scratch}/{uid}"
        has_own_user = self._confinement.session_uids is not None
        pid = os.fork()
        if pid == 0:  # only that user may, and no other has to be able to
            try:
                if has_own_user:
                    confine.become(uid)
                if has_own_user and self._confinement.subprocesses:
                    with contextlib.suppress(ProcessLookupError):  # there was nobody
                        os.kill(-1, signal.SIGKILL)
                empty(folder)
                with contextlib.suppress(OSError):  # a file system is mounted there: it stays
                    os.rmdir(folder)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if has_own_user and status == 0:  # else something is left, and nobody gets this user again
            self._free_uids.append(uid)


def empty(folder: str) -> None:
    """Remove what is in the folder, however deep and whatever its modes."""
    os.chmod(folder, 0o700)
    os.chdir(folder)
    number = int.from_bytes(os.urandom(8), "big")  # a name that nobody can have taken
    while names := os.listdir("."):  # each folder in turn gives its folders to the top
        for name in names:
            if os.path.islink(name) or not os.path.isdir(name):
                os.unlink(name)
                continue
            os.chmod(name, 0o700)
            for entry in os.scandir(name):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    number += 1
                    os.rename(entry.path, str(number))
                else:
                    os.unlink(entry.path)
            os.rmdir(name)
