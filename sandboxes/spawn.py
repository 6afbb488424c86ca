"""A runner that is a process of this machine, with a socket as its line."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sandboxes import program
from sandboxes.cgroup import Cgroup

PYTHON = os.path.realpath(sys.executable)  # not a virtual environment's link


class Spawned:
    """The line to a runner that `command` started."""

    def __init__(
        self,
        command: Callable[[Sequence[str]], Sequence[str]],
        *,
        cgroup: Cgroup | None = None,
        remove: Path | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        """Start `command(argv of the runner)`.

        The runner waits for its settings, so `place` can still put it anywhere; `remove` is a
        folder that goes with it, `inherited` are descriptors that the command needs.
        """
        self._cgroup, self._remove = cgroup, remove
        ours, theirs = socket.socketpair()
        try:
            argv = [PYTHON, *program.PYTHON_FLAGS, "-c", program.source(), str(theirs.fileno())]
            self._popen = subprocess.Popen(
                command(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env={},
                pass_fds=(theirs.fileno(), *inherited),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            self._tidy()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self.place(self._popen.pid)

    def place(self, pid: int) -> None:
        """Put a process of the runner into its control group."""
        if self._cgroup is not None:
            self._cgroup.add(pid)

    def send(self, data: bytes) -> None:
        """Send it all."""
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """Wait for the next bytes; at the end, OSError with what the runner complained of."""
        data = self._socket.recv(2**20)
        if not data and self._popen.poll() not in (None, 0, -9):
            raise OSError(self.complaint())
        return data

    def complaint(self) -> str:
        """What the runner, which has ended, wrote to stderr, or how it ended."""
        assert self._popen.stderr is not None
        text = self._popen.stderr.read().decode("utf-8", "replace").strip()
        return text[-2000:] or f"exit code {self._popen.wait()}"

    def kill_orphans(self) -> None:
        """Kill what a command left that ended before it had started the runner.

        It is not waited for yet, so the number of its process group is nobody else's.
        """
        os.killpg(self._popen.pid, signal.SIGKILL)

    def out_of_memory_kills(self) -> int:
        """How often the kernel killed a process of the runner's group for want of memory."""
        return self._cgroup.out_of_memory_kills() if self._cgroup is not None else 0

    def abandon(self) -> None:
        """Close this process's end only."""
        self._socket.close()
        self._popen.returncode = 0  # it is no child of this process

    def end(self) -> None:
        """Kill the runner with all that it started; doing it twice is allowed."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # also ends a receive() in another thread
        except OSError:
            return  # it has ended before
        self._socket.close()
        if self._cgroup is not None:
            self._cgroup.kill()
        try:
            self._popen.wait(timeout=5.0)  # it leaves when its line is cut
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()
        self._tidy()

    def _tidy(self) -> None:
        if self._cgroup is not None:
            self._cgroup.remove()
        if self._remove is not None:
            shutil.rmtree(self._remove, ignore_errors=True)
