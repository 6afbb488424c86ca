"""The host's end of one runner, shared by all the sessions in it."""

import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sandboxes import wire
from sandboxes.backend import Backend, Link
from sandboxes.base import Limits, Policy, SandboxError

_START_S = 60.0  # a runner starts in 0.1 s, with numpy in 0.5; a cold container in 2
_PATIENCE_S = 60.0  # beyond its own time limit, before a runner counts as stuck


@dataclass(frozen=True, slots=True)
class Done:
    """How a request, or a process without one, ended."""

    final: bytes  # what the process said last, undecoded; empty when it died instead
    stopping: str  # the limit for which it was stopped, if it was
    broken: str  # what the code did to the channel, if it did
    exit_code: int | None
    cpu_s: float
    peak_memory_bytes: int
    stdout: bytes
    stdout_total: int
    stderr: bytes
    stderr_total: int


class Box:
    """A runner with room for some sessions; safe to use from several threads."""

    def __init__(self, backend: Backend, limits: Limits, policy: Policy, room: int) -> None:
        self.room = room
        self._lines: dict[int, Line] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._sessions = itertools.count()
        self._oom_kills = 0
        self._broken = ""
        self._ready = threading.Event()
        self._link: Link
        self._link, settings = backend.launch(limits, policy, room)
        confinement = {
            "memory_bytes": limits.memory_bytes,
            "max_file_bytes": limits.max_file_bytes,
            "disk_bytes": limits.disk_bytes,
            "max_output_bytes": limits.max_output_bytes,
            "cpu_s": float(limits.cpu_s),
            **asdict(policy),
            "spares": 1 if room == 1 else 2,
            **settings,
        }
        threading.Thread(target=self._listen, name="sandbox-box", daemon=True).start()
        try:
            self._send_frame(wire.encode(confinement))
            if not self._ready.wait(_START_S):
                self._break(f"the runner did not come up within {_START_S:g} s")
            self.check()
        except BaseException:
            self.end()
            raise

    @property
    def broken(self) -> bool:
        """Whether the runner is gone."""
        return bool(self._broken)

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._lines)

    def check(self) -> None:
        """Raise SandboxError if the runner is gone."""
        if self._broken:
            raise SandboxError(self._broken)

    def open(self) -> "Line":
        """A line for one session."""
        with self._lock:
            line = Line(self, next(self._sessions))
            self._lines[line.session] = line
        return line

    def end(self) -> None:
        """Kill the runner and every session; doing it twice is allowed."""
        self._break("the sandbox was closed")

    def abandon(self) -> None:
        """Let go of the runner without ending it: it is this fork's parent's."""
        self._broken = "the sandbox belongs to the process that this one was forked from"
        self._link.abandon()

    def was_out_of_memory(self) -> bool:
        """Whether the kernel killed something for want of memory since this was last asked."""
        with self._lock:
            before, self._oom_kills = self._oom_kills, self._link.out_of_memory_kills()
            return self._oom_kills > before

    def send(self, *message: Any) -> None:
        """Send a message to the runner."""
        self._send_frame(wire.encode(message, wire.MAX_FRAME_BYTES))

    def forget(self, line: "Line") -> None:
        """The session of this line is over."""
        with self._lock:
            self._lines.pop(line.session, None)

    def stuck(self, why: str) -> None:
        """Give the runner up."""
        self._break(why)

    def _send_frame(self, body: bytes) -> None:
        data = wire.frame(body)
        try:
            with self._sending:
                self._link.send(data)
        except OSError as error:
            self._break(f"the runner is gone: {error}")
            self.check()

    def _listen(self) -> None:
        frames, why = wire.Frames(), "the runner ended unexpectedly"
        try:
            while data := self._link.receive():
                frames.feed(data)
                while (body := frames.take()) is not None:
                    self._deliver(*wire.decode(body))
        except (OSError, wire.WireError) as error:
            why += f": {error}"
        self._break(why)

    def _deliver(self, kind: str, session: int | None = None, *rest: Any) -> None:
        if kind == "ready":
            self._ready.set()
            return
        with self._lock:
            line = self._lines.get(session) if session is not None else None
        if line is not None:
            line.inbox.put((kind, *rest))

    def _break(self, why: str) -> None:
        with self._lock:
            self._broken = self._broken or why
            lines = tuple(self._lines.values())
        self._link.end()
        self._ready.set()
        for line in lines:
            line.inbox.put(("fault", self._broken))


class Line:
    """One session's conversation with the runner; used by one thread at a time."""

    def __init__(self, box: Box, session: int) -> None:
        self.session = session
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._box = box
        self._first = True
        self._over = False  # the runner has ended it after its last request

    def request(
        self,
        message: tuple[Any, ...],
        *,
        wall_s: float,
        on_message: Callable[[bytes, bool], bytes | None],
        stdin: bytes = b"",
        last: bool = False,
    ) -> Done:
        """Have the session do something; what it says meanwhile goes to `on_message`.

        With it goes whether it waits for an answer, which is what `on_message` returns. If that
        raises, the line is of no use any more.

        Raises:
            SandboxError: the runner failed, as opposed to the code.
        """
        body = wire.encode(message, wire.MAX_FRAME_BYTES)
        if self._first or self.inbox.empty():  # else the process has died since the last request
            self._box.send("request", self.session, self._first, wall_s, stdin, body, last)
        self._first = False
        while True:
            try:
                kind, *rest = self.inbox.get(timeout=wall_s + _PATIENCE_S)
            except queue.Empty:
                self._box.stuck(f"the runner said nothing for {wall_s + _PATIENCE_S:g} s")
                continue
            if kind in ("event", "call"):
                answer = on_message(rest[0], kind == "call")
                if answer is not None:
                    self._box.send("answer", self.session, answer)
            elif kind == "done":
                done, stdout, stderr = rest
                self._over = last
                return Done(*done, *stdout, *stderr)
            else:
                raise SandboxError(f"the session could not go on: {rest[0]}")

    def was_out_of_memory(self) -> bool:
        """Whether the kernel has just killed something in this runner for want of memory."""
        return self._box.was_out_of_memory()

    def close(self) -> None:
        """End the session."""
        self._box.forget(self)
        if not (self._over or self._box.broken):
            self._box.send("end", self.session)
