"""Serves the sessions of one runner, each of which is a confined process of the nursery.

It passes requests on to the processes and answers back, keeps the time, cuts the outputs, and
says how processes end. It never decodes what a process sends: a frame that is too big, or does
not begin with the request's nonce, costs that process its life and nobody else's.

From the host come ("request", session, first, wall_s, stdin, message, last), ("answer", session,
message) and ("end", session): the first request begins a session, the last one ends it. To the
host go ("ready",), ("event" or "call", session, message), ("fault", session, reason) and,
once for each request and for each death, ("done", session, Done).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sandboxes import wire
from sandboxes.runner import confine, repl
from sandboxes.runner.job import Job, Output

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

QUIET_S = 0.001  # before a fork, which keeps a core busy for longer: answers are on their way
GRACE_S = 0.5  # from the interrupt, which may save the session's state, to the kill
RUNAWAY = 16  # code may print this many times what is kept of it
MAX_EVENT_BYTES = 32 * 2**20  # in answer to one request
MAX_CALLS = 16  # each function of the host waits for its answer; these are for threads
MAX_UNREAD_BYTES = 16 * 2**20  # of the host's answers
_PIECE = 2**16
_PIECES_AT_ONCE = 32  # of one process, before the others have their turn


class Server:
    """All processes of one runner."""

    def __init__(
        self, confinement: confine.Confinement, nursery: socket.socket, source: int, sink: int
    ) -> None:
        self._confinement = confinement
        self._nursery, self._source, self._sink = nursery, source, sink
        self._frames = wire.Frames()
        self._poll = select.epoll()
        self._react: dict[int, Callable[[], None]] = {}
        self._jobs: dict[int, Job] = {}  # by session
        self._by_serial: dict[int, Job] = {}
        self._spares: deque[Job] = deque()
        self._waiting: deque[tuple[Any, ...]] = deque()  # requests of sessions to begin
        self._unborn = 0
        self._lacking = True  # perhaps: spares, to be ordered when it is quiet
        self._oom_kills = 0
        self._cores = len(os.sched_getaffinity(0))
        self._working: set[Job] = set()
        self._watch(source, self._hear_host)
        self._was_out_of_memory()
        self._watch(nursery.fileno(), self._hear_nursery)

    def serve(self) -> NoReturn:
        """Work until the host hangs up."""
        self._tell("ready")
        while True:
            events = self._poll.poll(self._next_deadline_s())
            if not events and self._lacking and not self._working:
                self._lacking = False
                self._order_processes(spares=self._confinement.spares - len(self._spares))
            for descriptor, _ in events:
                reaction = self._react.get(descriptor)
                if reaction is not None:
                    reaction()
            now_s = time.monotonic()
            for job in [job for job in self._working if job.deadline_s <= now_s]:
                self._stop(job, "wall_timeout")
            for job in [job for job in self._working if job.check_cpu_s <= now_s]:
                self._check_cpu(job)

    def _next_deadline_s(self) -> float | None:
        if self._lacking and not self._working:
            return QUIET_S
        first = min(
            (min(job.deadline_s, job.check_cpu_s) for job in self._working), default=math.inf
        )
        return None if first == math.inf else max(0.0, first - time.monotonic())

    # The host.

    def _tell(self, *message: Any) -> None:
        data = memoryview(wire.frame(wire.encode(message, wire.MAX_FRAME_BYTES)))
        try:
            while data:
                data = data[os.write(self._sink, data) :]
        except OSError:
            os._exit(0)  # nobody is there, and the processes go with this one

    def _hear_host(self) -> None:
        data = os.read(self._source, 2**20)
        if not data:
            os._exit(0)
        self._frames.feed(data)
        while (body := self._frames.take()) is not None:
            kind, session, *rest = wire.decode(body)
            if kind == "request":
                self._request(session, *rest)
            elif session in self._jobs:
                job = self._jobs[session]
                if kind == "end":
                    self._forget(job)
                elif job.nonce is not None and not job.broken:
                    job.calls -= 1
                    self._send(job, job.nonce + rest[0])
                    if len(job.outbox) > MAX_UNREAD_BYTES:
                        job.broken = "it asked the host on and on, and read no answer"
                        self._kill(job)
            elif kind == "end":
                waiting = [request for request in self._waiting if request[0] != session]
                self._waiting = deque(waiting)

    def _request(self, session: int, first: bool, *request: Any) -> None:
        if not first:
            if session in self._jobs:  # else it has died, which the host is being told
                self._begin(self._jobs[session], *request)
        elif self._spares:
            self._assign(self._spares.popleft(), session, *request)
        else:
            self._waiting.append((session, *request))
        self._order_processes()

    def _assign(self, job: Job, session: int, *request: Any) -> None:
        job.session = session
        self._jobs[session] = job
        self._begin(job, *request)

    def _begin(self, job: Job, wall_s: float, stdin: bytes, message: bytes, last: bool) -> None:
        if job.stdin >= 0:
            job.input += stdin
            self._watch(job.stdin, lambda: self._feed(job), select.EPOLLOUT)
            self._feed(job)
        job.nonce, job.last, job.stopping = os.urandom(repl.NONCE_BYTES), last, ""
        job.event_bytes = job.calls = 0
        for output in (job.stdout, job.stderr):
            output.clear()
        if job.frozen:
            self._signal(job, signal.SIGCONT)
            job.frozen = False
        job.deadline_s = time.monotonic() + wall_s
        job.cpu_before_s = self._cpu_s(job)
        self._working.add(job)
        self._check_cpu(job)
        self._send(job, job.nonce + message)

    # Processes.

    def _order_processes(self, spares: int = 0) -> None:
        """As many as are waited for, and some that will be."""
        wanted = len(self._waiting) + max(0, spares) - self._unborn
        if wanted > 0:
            self._unborn += wanted
            for first in range(0, wanted, 64):
                self._nursery.send(bytes(min(64, wanted - first)))

    def _hear_nursery(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._nursery, 2**16, 5)
        if not data:
            sys.exit("the nursery is gone")
        kind, *rest = wire.decode(data)
        if kind == "born":
            self._unborn -= 1
            self._adopt(rest[0], Job(rest[1], *descriptors))
        elif kind == "dead":
            serial, status, cpu_s, peak_bytes = rest
            self._bury(self._by_serial.pop(serial), status, cpu_s, peak_bytes)
        else:
            self._unborn -= 1
            if self._waiting:
                session = self._waiting.popleft()[0]
                self._tell("fault", session, f"no process could be started: {rest[0]}")

    def _adopt(self, serial: int, job: Job) -> None:
        self._by_serial[serial] = job
        self._watch(job.channel, lambda: self._hear(job))
        for output in (job.stdout, job.stderr):
            self._watch(output.descriptor, functools.partial(self._read, job, output))
        if self._waiting:
            self._assign(job, *self._waiting.popleft())
        else:
            self._spares.append(job)

    def _stop(self, job: Job, reason: str) -> None:
        if job.closed and not job.stopping:
            job.broken = job.broken or "the code closed the sandbox's own channel"
        if job.closed or job.stopping:  # it was asked already, and time is up again
            self._kill(job)
            job.deadline_s = math.inf
            return
        job.stopping = reason
        job.deadline_s = time.monotonic() + GRACE_S
        self._signal(job, signal.SIGINT)

    def _check_cpu(self, job: Job) -> None:
        """Stop what has used up its time, else say when to look again.

        A limit of the kernel's (RLIMIT_CPU) would count whole seconds, could be raised by the code
        again, and its signal is ignored by the first process of a namespace.
        """
        left_s = self._confinement.cpu_s - (self._cpu_s(job) - job.cpu_before_s)
        if left_s <= 0:
            job.check_cpu_s = math.inf
            if not job.stopping:
                self._stop(job, "cpu_timeout")
        else:
            job.check_cpu_s = time.monotonic() + max(0.02, left_s / self._cores)

    def _has_threads(self, job: Job) -> bool:
        try:
            return os.stat(job.tasks).st_nlink > 3  # a folder for each, and the two of any folder
        except OSError:
            return True  # no /proc here, or it has just died

    def _was_out_of_memory(self) -> bool:
        """Whether the kernel killed for memory since this was last asked, where that is told here.

        A container sees its own control group; in a jail there is none, and the host looks.
        """
        before = self._oom_kills
        for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
            with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
                counts = dict(line.split() for line in file)
                self._oom_kills = int(counts.get("oom_kill", 0))
        return self._oom_kills > before

    def _cpu_s(self, job: Job) -> float:
        try:
            return time.clock_gettime(job.clock)
        except OSError:  # it has just died
            return job.cpu_before_s

    def _kill(self, job: Job) -> None:
        self._signal(job, signal.SIGKILL)

    def _signal(self, job: Job, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # its death is on its way here
            signal.pidfd_send_signal(job.pidfd, number)

    def _forget(self, job: Job) -> None:
        """The session has ended; the process is nobody's until it is buried."""
        if job.session is not None:
            del self._jobs[job.session]
            job.session = None
        self._working.discard(job)
        self._kill(job)

    def _bury(self, job: Job, status: int, cpu_s: float, peak_bytes: int) -> None:
        self._hear(job)
        for output in (job.stdout, job.stderr):
            self._read(job, output)
        for descriptor in (job.stdin, job.stdout.descriptor, job.stderr.descriptor, job.channel):
            self._close(descriptor)
        os.close(job.pidfd)
        self._working.discard(job)
        self._lacking = True
        if job in self._spares:
            self._spares.remove(job)
        if job.session is None:
            return
        del self._jobs[job.session]
        if job.fault or not job.ready:
            reason = job.fault or f"it ended with status {status} while it was being confined"
            self._tell("fault", job.session, reason)
        else:
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL and not job.stopping and self._was_out_of_memory():
                job.stopping = "out_of_memory"
            self._tell_done(job, b"", code, cpu_s - job.cpu_before_s, peak_bytes)

    # What processes say.

    def _tell_done(
        self, job: Job, final: bytes, code: int | None, cpu_s: float, peak_bytes: int
    ) -> None:
        done = (final, job.stopping, job.broken, code, cpu_s, peak_bytes)
        outputs = [(bytes(each.kept), each.total) for each in (job.stdout, job.stderr)]
        self._tell("done", job.session, done, *outputs)

    def _hear(self, job: Job) -> None:
        try:
            data = os.read(job.channel, 2**18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unwatch(job.channel)
            if not job.closed and job.session is not None:
                job.closed = True
                job.deadline_s = min(job.deadline_s, time.monotonic() + GRACE_S)
                self._working.add(job)
            return
        job.frames.feed(data)
        try:
            while (body := job.frames.take()) is not None:
                self._take(job, body)
        except wire.WireError as error:
            job.broken = job.broken or str(error)
            self._kill(job)

    def _take(self, job: Job, body: bytes) -> None:
        start = repl.NONCE_BYTES
        nonce, kind, message = body[:start], body[start : start + 1], body[start + 1 :]
        if not job.ready and nonce == bytes(repl.NONCE_BYTES):
            if kind == repl.READY:
                job.ready = True
            else:
                job.fault = message.decode("utf-8", "replace")
        elif job.nonce is None or nonce != job.nonce:
            raise wire.WireError("a frame without the request's nonce")
        elif kind == repl.FINAL:
            for output in (job.stdout, job.stderr):
                self._read(job, output)
            job.nonce, job.deadline_s = None, math.inf
            self._working.discard(job)
            self._tell_done(job, message, None, self._cpu_s(job) - job.cpu_before_s, 0)
            self._lacking = True
            if job.last:
                self._forget(job)
            elif self._has_threads(job):  # which would go on, and on nobody's time
                self._signal(job, signal.SIGSTOP)
                job.frozen = True
        else:
            job.event_bytes += len(message)
            if job.event_bytes > MAX_EVENT_BYTES:
                raise wire.WireError(f"over {MAX_EVENT_BYTES} bytes in answer to one request")
            job.calls += kind == repl.CALL
            if job.calls > MAX_CALLS:  # the host would be busy with them for longer than it waits
                raise wire.WireError(f"over {MAX_CALLS} calls at once to the host")
            self._tell("call" if kind == repl.CALL else "event", job.session, message)

    def _read(self, job: Job, output: Output) -> None:
        limit = self._confinement.max_output_bytes
        for _ in range(_PIECES_AT_ONCE):
            try:
                data = os.read(output.descriptor, _PIECE)
            except BlockingIOError:
                return
            if not data:  # closed by the code; poll would report it again and again
                self._unwatch(output.descriptor)
                return
            output.add(data, limit)
            if output.total > RUNAWAY * limit and job.stopping != "output_limit":
                if job.nonce is None:  # between two requests there is nothing to print
                    job.broken = "the code printed without end between two runs"
                    self._kill(job)
                    return
                job.stopping = ""
                self._stop(job, "output_limit")

    def _send(self, job: Job, body: bytes) -> None:
        if not job.outbox:
            self._watch(job.channel, lambda: self._post(job), select.EPOLLIN | select.EPOLLOUT)
        job.outbox += wire.frame(body)
        self._post(job)

    def _post(self, job: Job) -> None:
        try:
            while job.outbox:
                del job.outbox[: os.write(job.channel, job.outbox[:_PIECE])]
        except BlockingIOError:
            self._hear(job)
            return
        except OSError:
            job.outbox.clear()  # its end is being noticed elsewhere
        self._watch(job.channel, lambda: self._hear(job))
        self._hear(job)

    def _feed(self, job: Job) -> None:
        try:
            while job.input:
                del job.input[: os.write(job.stdin, job.input[:_PIECE])]
        except BlockingIOError:
            return
        except OSError:
            pass  # it closed its input
        self._close(job.stdin)
        job.stdin = -1

    # Descriptors.

    def _watch(
        self, descriptor: int, reaction: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        if descriptor in self._react:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
        self._react[descriptor] = reaction

    def _unwatch(self, descriptor: int) -> None:
        if self._react.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _close(self, descriptor: int) -> None:
        if descriptor >= 0:
            self._unwatch(descriptor)
            os.close(descriptor)
