"""A sandbox of plain subprocesses: limits on resources, and no isolation.

It bounds CPU time, memory, output, the size of a file and of the descriptor table, takes away
the host's environment, and leaves no process of its group behind. It does NOT protect from code
that reads (or, as this user may, writes) the host's files, uses the network, signals other
processes of the same user, starts many processes (each has the limits for itself), moves to a
session of its own to survive, or raises a soft limit. For hostile code use a real jail. When the
host process is killed its sessions die with it, but their folders stay in the temporary directory.
"""

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxes import wire
from sandboxes.base import CallResult, ExecResult, ExecStatus, Limits, SandboxError

_RUNNER = str(Path(__file__).with_name("runner.py"))
_PYTHON_FLAGS = ("-I", "-S", "-B", "-X", "utf8")
_START_S = 30.0  # a process starts in 10 ms; this much later, something is wrong with the host
_GRACE_S = 0.5  # from the interrupt, which may save the session's state, to the kill
_RUNAWAY = 16  # a program may print this many times what is kept of it

Callbacks = Mapping[str, Callable[..., Any]]


class LocalSandbox:
    """Sessions that are subprocesses of this process; see the module for what that is worth."""

    name = "local"

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.limits = limits
        self._lock = threading.Lock()
        self._sessions: set[LocalSession] = set()

    def session(self) -> "LocalSession":
        """A fresh session; its process starts at the first use."""
        session = LocalSession(self.limits, self._forget)
        with self._lock:
            self._sessions.add(session)
        return session

    def close(self) -> None:
        """End every session that is still open; one at work ends first with its run."""
        with self._lock:
            sessions = tuple(self._sessions)
        for session in sessions:
            session.close()

    def _forget(self, session: "LocalSession") -> None:
        with self._lock:
            self._sessions.discard(session)


class LocalSession:
    """One REPL; a run that loses the process says so, and the next starts a fresh one."""

    def __init__(self, limits: Limits, on_close: Callable[["LocalSession"], None]) -> None:
        self._limits = limits
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closed = False
        self._process: _Process | None = None
        self._cells = 0

    def run(self, code: str, *, callbacks: Callbacks | None = None) -> ExecResult:
        """Execute a REPL cell; the time that callbacks take counts as the code's own."""
        with self._lock:
            self._cells += 1
            request = ("run", self._cells, code, list(callbacks or ()))
            started_s = time.monotonic()
            end = self._exchange(request, callbacks or {})
            return ExecResult(
                status=end.status,
                stdout=end.stdout.text(),
                stderr=end.stderr.text() + end.note,
                exit_code=end.exit_code,
                truncated=end.stdout.cut or end.stderr.cut,
                wall_s=time.monotonic() - started_s,
                backend=LocalSandbox.name,
            )

    def call(self, function: str, cases: Sequence[Sequence[Any]]) -> tuple[CallResult, ...]:
        """Call `function` once a case; the limits hold for all the cases together."""
        with self._lock:
            request = ("call", function, [wire.encode(list(case)) for case in cases])
            end = self._exchange(request, {})
        results = end.cases[: len(cases)]
        if end.status is ExecStatus.OK and len(results) == len(cases):
            return tuple(results)
        reached = end.status if end.status is not ExecStatus.OK else ExecStatus.SESSION_DEAD
        results += [CallResult(reached, error=end.note.strip())][: len(cases) - len(results)]
        later = ExecStatus.SESSION_DEAD if end.exit_code is not None else reached
        results += [CallResult(later, error="not reached")] * (len(cases) - len(results))
        return tuple(results)

    def close(self) -> None:
        """End the process, with its group, and remove its folder."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process = None
        self._on_close(self)

    def _exchange(self, request: tuple[Any, ...], callbacks: Callbacks) -> "_Exchange":
        if self._closed:
            raise SandboxError("the session is closed: open another one with Sandbox.session()")
        try:
            if self._process is None:
                self._process = _Process(self._limits)
        except OSError as error:
            raise SandboxError(f"no process could be started: {error}") from error
        exchange = _Exchange(self._limits)
        try:
            exchange.hold(self._process, request, callbacks)
        except BaseException:  # a request is under way: this process is of no use any more
            self._process.kill()
            self._process = None
            raise
        if exchange.exit_code is not None:
            self._process = None
        return exchange


@dataclass(slots=True)
class _Output:
    """What came out of a pipe, as much of it as is kept."""

    limit: int
    kept: bytearray = field(default_factory=bytearray)
    total: int = 0

    @property
    def cut(self) -> bool:
        return self.total > self.limit

    def add(self, data: bytes) -> None:
        self.total += len(data)
        self.kept += data[: self.limit - len(self.kept)]

    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


class _Process:
    """The runner with its folder, and this side's ends of its descriptors."""

    def __init__(self, limits: Limits) -> None:
        self.frames = wire.Frames()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            home = tempfile.mkdtemp(prefix="session-")
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            self.channel, channel = socket.socketpair()
            undo.callback(self.channel.close)
            theirs.callback(channel.close)
            lifeline, self._lifeline = os.pipe()
            undo.callback(os.close, self._lifeline)
            theirs.callback(os.close, lifeline)
            passed = (channel.fileno(), lifeline)
            settings = (*passed, limits.memory_bytes, limits.max_file_bytes, limits.cpu_s)
            self._popen = subprocess.Popen(
                [sys.executable, *_PYTHON_FLAGS, _RUNNER, *map(str, settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=home,
                env={"HOME": home, "TMPDIR": home},
                pass_fds=passed,
                start_new_session=True,
                bufsize=0,
            )
            undo.callback(self._reap)
            self.pidfd = os.pidfd_open(self._popen.pid)
            undo.callback(os.close, self.pidfd)
            theirs.close()
            assert self._popen.stdout is not None
            assert self._popen.stderr is not None
            self.stdout, self.stderr = self._popen.stdout.fileno(), self._popen.stderr.fileno()
            self._await_ready()
            self.channel.settimeout(limits.wall_s)
            self._undo = undo.pop_all()
        for descriptor in (self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        self.open_outputs = {self.stdout, self.stderr}
        self.poll = select.poll()
        for descriptor in (self.channel.fileno(), self.stdout, self.stderr, self.pidfd):
            self.poll.register(descriptor, select.POLLIN)

    def interrupt(self) -> None:
        """Ask the request at work to end."""
        if self._popen.returncode is None:  # not reaped, so the number is still its own
            os.killpg(self._popen.pid, signal.SIGINT)

    def end(self) -> int:
        """Kill the process group, whose leader's exit code is returned; outputs stay readable."""
        if self._popen.returncode is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
        return self._popen.wait()

    def kill(self) -> None:
        """End the process and close its descriptors; doing it twice is allowed."""
        self._undo.close()

    def _reap(self) -> None:
        self.end()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def _await_ready(self) -> None:
        self.channel.settimeout(_START_S)
        try:
            while (taken := self.frames.take()) is None:
                data = self.channel.recv(2**16)
                if not data:
                    break
                self.frames.feed(data)
        except (OSError, wire.WireError) as error:
            raise SandboxError(f"the runner did not come up: {error}") from error
        if taken is None:
            assert self._popen.stderr is not None
            raise SandboxError(f"the runner did not come up: {self._popen.stderr.read()!r}")


class _Exchange:
    """One request and what came of it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nonce = secrets.token_bytes(wire.NONCE_BYTES)
        self.stdout = _Output(limits.max_output_bytes)
        self.stderr = _Output(limits.max_output_bytes)
        self.cases: list[CallResult] = []
        self.status = ExecStatus.OK
        self.exit_code: int | None = None
        self.note = ""
        self._done = False
        self._stopping: ExecStatus | None = None
        self._deadline_s = 0.0

    def hold(self, process: _Process, request: tuple[Any, ...], callbacks: Callbacks) -> None:
        """Send the request and stay until it has ended, one way or another."""
        self._deadline_s = time.monotonic() + self._limits.wall_s
        try:
            self._send(process, request)
            while not self._done:
                left_s = self._deadline_s - time.monotonic()
                if left_s <= 0:
                    self._stop(process, ExecStatus.WALL_TIMEOUT)
                    continue
                ready = {descriptor for descriptor, _ in process.poll.poll(left_s * 1000)}
                self._drain(process)
                if process.channel.fileno() in ready:
                    self._receive(process, callbacks)
                elif process.pidfd in ready:
                    raise _Lost
        except _Lost as lost:
            self._bury(process, str(lost))
        else:
            self._drain(process)
            if self._stopping is not None:
                self.status = self._stopping
                self.note += self._reason() + "; variables are kept\n"

    def _stop(self, process: _Process, reason: ExecStatus) -> None:
        if self._stopping is not None:
            raise _Lost  # it was asked already, and time is up again
        self._stopping = reason
        self._deadline_s = time.monotonic() + _GRACE_S
        process.interrupt()

    def _drain(self, process: _Process) -> None:
        for descriptor, output in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            with contextlib.suppress(BlockingIOError):
                while descriptor in process.open_outputs:
                    data = os.read(descriptor, 2**16)
                    if not data:  # closed by the code; poll would report it again and again
                        process.open_outputs.discard(descriptor)
                        process.poll.unregister(descriptor)
                    output.add(data)
                    if output.total > _RUNAWAY * output.limit and self._stopping is None:
                        self._stop(process, ExecStatus.OUTPUT_LIMIT)
                    if time.monotonic() > self._deadline_s:
                        break

    def _receive(self, process: _Process, callbacks: Callbacks) -> None:
        try:
            data = process.channel.recv(2**18)
            if not data:
                raise _Lost
            process.frames.feed(data)
            while (taken := process.frames.take()) is not None:
                nonce, message = taken
                if nonce != self._nonce:
                    raise wire.WireError("a frame without the request's nonce")
                self._take(process, message, callbacks)
        except (wire.WireError, OSError) as error:
            raise _Lost(f"the code wrote to the sandbox's own channel ({error})") from error

    def _take(self, process: _Process, message: Any, callbacks: Callbacks) -> None:
        match message:
            case ("case", "ok", value) if self._stopping is None:
                self.cases.append(CallResult(ExecStatus.OK, value))
            case ("case", ("exception" | "out_of_memory") as status, str(error)) if (
                self._stopping is None
            ):
                self.cases.append(CallResult(ExecStatus(status), error=error))
            case ("case", *_):  # too late
                pass
            case ("callback", int(call), str(name), tuple(args), dict(kwargs)) if name in callbacks:
                self._send(process, _answer(call, callbacks[name], args, kwargs))
            case ("done", ("ok" | "exception" | "out_of_memory") as status, str(trace)):
                self.status, self.note, self._done = ExecStatus(status), trace, True
            case _:
                raise wire.WireError("an unknown message")

    def _send(self, process: _Process, message: tuple[Any, ...]) -> None:
        data = wire.frame(self._nonce, message)
        try:
            process.channel.sendall(data)
        except OSError as error:
            raise _Lost from error

    def _bury(self, process: _Process, reason: str) -> None:
        ended = bool(select.select([process.pidfd], [], [], 0 if reason else _GRACE_S)[0])
        code = self.exit_code = process.end()
        self._drain(process)
        process.kill()
        if self._stopping is not None:
            self.status, reason = self._stopping, self._reason()
        elif reason or not ended:
            self.status = ExecStatus.SESSION_DEAD
            reason = reason or "the code closed the sandbox's own channel"
        elif code == -signal.SIGXCPU:
            self.status, reason = ExecStatus.CPU_TIMEOUT, f"over {self._limits.cpu_s:g} s of CPU"
        elif code < 0:
            self.status, reason = ExecStatus.SIGNAL, f"the process died of signal {-code}"
        else:
            self.status = ExecStatus.SESSION_DEAD
            reason = f"the process ended with exit code {code}"
        self.note = reason + "; variables and files are lost\n"

    def _reason(self) -> str:
        if self._stopping is ExecStatus.OUTPUT_LIMIT:
            return f"stopped: printed over {_RUNAWAY * self._limits.max_output_bytes} bytes"
        return f"stopped: not finished after {self._limits.wall_s:g} s"


class _Lost(Exception):  # noqa: N818 - a turn of the conversation, not an error
    """The process is gone, or has to go."""


def _answer(
    call: int, callback: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The frame for a callback's result; an exception is raised again in the session."""
    try:
        value = callback(*args, **kwargs)
        wire.encode(value)
    except SandboxError:
        raise
    except Exception as error:
        return "answer", "raise", call, (type(error).__name__, str(error))
    return "answer", "value", call, value
