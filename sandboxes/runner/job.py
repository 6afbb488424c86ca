"""One confined process, as the server that watches over it knows it."""

from __future__ import annotations

import math
import os

from sandboxes import wire


class Output:
    """What came out of a pipe, as much of it as is kept."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.kept = bytearray()
        self.total = 0

    def add(self, data: bytes, limit: int) -> None:
        """Take note of what was read."""
        self.total += len(data)
        self.kept += data[: max(0, limit - len(self.kept))]

    def clear(self) -> None:
        """Begin anew."""
        self.kept, self.total = bytearray(), 0


class Job:
    """One confined process."""

    def __init__(
        self, pid: int, pidfd: int, stdin: int, stdout: int, stderr: int, channel: int
    ) -> None:
        self.clock = ~pid << 3 | 2  # of its CPU time, see clock_getcpuclockid(3)
        self.tasks = f"/proc/{pid}/task"
        self.pidfd = pidfd
        self.stdin = stdin
        self.stdout, self.stderr = Output(stdout), Output(stderr)
        self.channel = channel
        self.frames = wire.Frames(wire.MAX_VALUE_BYTES + 2**16)
        self.session: int | None = None  # None while it waits to become one
        self.ready = False
        self.nonce: bytes | None = None  # of the request at work
        self.last = False
        self.frozen = False
        self.stopping = ""
        self.closed = False  # the channel: it is ending, or the code did that
        self.broken = ""  # what the code did to its channel
        self.fault = ""
        self.deadline_s = math.inf
        self.cpu_before_s = 0.0  # the request at work
        self.check_cpu_s = math.inf  # when it can have used up its CPU time
        self.event_bytes = 0
        self.calls = 0  # to the host, without an answer so far
        self.input = bytearray()  # that the process has not read yet
        self.outbox = bytearray()
        for descriptor in (stdin, stdout, stderr, channel):
            os.set_blocking(descriptor, False)
