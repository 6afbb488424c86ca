"""Sessions and programs in the processes of a pool: the one implementation for all backends."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from sandboxes import wire
from sandboxes.base import CallResult, ExecResult, ExecStatus, Limits, SandboxError
from sandboxes.box import Done, Line
from sandboxes.pool import Pool
from sandboxes.runner.repl import MAX_TEXT
from sandboxes.runner.server import RUNAWAY

Callbacks = Mapping[str, Callable[..., Any]]
_MAX_TEXT = 2 * MAX_TEXT  # of an error, which the runner frames in words


class PooledSandbox:
    """A handle on a pool, which other handles may share; closing it ends its own sessions."""

    def __init__(self, pool: Pool) -> None:
        self.name = pool.backend.name
        self.limits = pool.limits
        self._pool = pool
        self._lock = threading.Lock()
        self._sessions: set[PooledSession] = set()
        pool.retain()
        self._closed = False

    def session(self) -> "PooledSession":
        """A fresh session; it takes its process at the first use."""
        session = PooledSession(self._pool, self._forget)
        with self._lock:
            self._sessions.add(session)
        return session

    def run(
        self,
        program: str,
        *,
        stdin: str = "",
        argv: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> ExecResult:
        """Run a whole program in a process of its own, as `python program.py` would."""
        if files:
            self._pool.check_writable()
        contents = {_relative(path): bytes(data) for path, data in (files or {}).items()}
        for path, data in contents.items():
            self._pool.check_size(path, len(data))
        conversation = _Conversation({})
        message = ("program", program, list(argv), contents)
        started_s = time.monotonic()
        line = self._pool.acquire()
        try:
            waited_s = time.monotonic() - started_s
            done = line.request(
                message,
                wall_s=self.limits.wall_s,
                on_message=conversation.hear,
                stdin=stdin.encode("utf-8", "surrogatepass"),
                last=True,
            )
            broken = conversation.broken
            end = _End(done, self.limits, line, of_program=True, broken=broken)
        finally:
            self._pool.release(line)
        return end.result(self.name, time.monotonic() - started_s - waited_s)

    def close(self) -> None:
        """End every session that is still open; one at work ends first with its run."""
        with self._lock:
            sessions = tuple(self._sessions)
        for session in sessions:
            session.close()
        if not self._closed:
            self._closed = True
            self._pool.give_up()

    def _forget(self, session: "PooledSession") -> None:
        with self._lock:
            self._sessions.discard(session)


class PooledSession:
    """One REPL; a run that loses the process says so, and the next starts with a fresh one."""

    def __init__(self, pool: Pool, on_close: Callable[["PooledSession"], None]) -> None:
        self._pool = pool
        self._limits = pool.limits
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closed = False
        self._line: Line | None = None
        self._cells = 0

    def run(self, code: str, *, callbacks: Callbacks | None = None) -> ExecResult:
        """Execute a REPL cell; the time that callbacks take counts as the code's own."""
        with self._lock:
            self._cells += 1
            conversation = _Conversation(callbacks or {})
            started_s = time.monotonic()
            end = self._exchange(("run", self._cells, code, list(callbacks or ())), conversation)
            return end.result(self._pool.backend.name, time.monotonic() - started_s)

    def call(self, function: str, cases: Sequence[Sequence[Any]]) -> tuple[CallResult, ...]:
        """Call `function` once a case; the limits hold for all the cases together."""
        conversation = _Conversation({}, cases=len(cases))
        with self._lock:
            message = ("call", function, [wire.encode(list(case)) for case in cases])
            end = self._exchange(message, conversation)
        results = conversation.cases
        if end.status is ExecStatus.OK and len(results) == len(cases):
            return tuple(results)
        reached = end.status if end.status is not ExecStatus.OK else ExecStatus.SESSION_DEAD
        results += [CallResult(reached, error=end.note.strip())][: len(cases) - len(results)]
        later = ExecStatus.SESSION_DEAD if end.exit_code is not None else reached
        results += [CallResult(later, error="not reached")] * (len(cases) - len(results))
        return tuple(results)

    def put(self, path: str, data: bytes) -> None:
        """Write a file below the session's folder."""
        self._pool.check_writable()
        self._pool.check_size(path, len(data))
        with self._lock:
            self._files(("put", _relative(path), bytes(data)), path)

    def get(self, path: str, max_bytes: int = 2**20) -> bytes:
        """The content of a regular file of the session."""
        self._pool.check_writable()
        most = min(max_bytes, wire.MAX_VALUE_BYTES - 2**16)
        with self._lock:
            data = self._files(("get", _relative(path), most), path)
        if not isinstance(data, bytes) or len(data) > most:
            raise ValueError(f"{path!r} is larger than {most} bytes")
        return data

    def close(self) -> None:
        """End the process and remove its files; closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._drop()
        self._on_close(self)

    def _files(self, message: tuple[Any, ...], path: str) -> Any:
        end = self._exchange(message, _Conversation({}))
        if end.lost:
            raise OSError(errno.EIO, f"{path!r}: {end.note.strip()}")
        if end.status is not ExecStatus.OK:
            raise OSError(errno.EIO, f"{path!r}: {end.note}")
        return end.extra

    def _exchange(self, message: tuple[Any, ...], conversation: "_Conversation") -> "_End":
        if self._closed:
            raise SandboxError("the session is closed: open another one with Sandbox.session()")
        if self._line is None:
            self._line = self._pool.acquire()
        line = self._line
        try:
            done = line.request(message, wall_s=self._limits.wall_s, on_message=conversation.hear)
            end = _End(done, self._limits, line, broken=conversation.broken)
        except BaseException:  # a request is under way: this process is of no use any more
            self._drop()
            raise
        if end.lost:
            self._drop()
        return end

    def _drop(self) -> None:
        if self._line is not None:
            self._pool.release(self._line)
            self._line = None


class _Conversation:
    """What a session says while a request is at work: results of cases, and calls to the host."""

    def __init__(self, callbacks: Callbacks, cases: int = 0) -> None:
        self._callbacks = callbacks
        self._cases_left = cases
        self._budget = [wire.MAX_ITEMS]  # for all messages together
        self.cases: list[CallResult] = []
        self.broken = ""

    def hear(self, body: bytes, is_call: bool) -> bytes | None:
        """Take a message in; for a call to the host, the answer to it."""
        if self.broken:
            return None
        try:
            match wire.decode(body, self._budget):
                case ("case", "ok", value) if self._cases_left > 0:
                    self._cases_left -= 1
                    self.cases.append(CallResult(ExecStatus.OK, value))
                case ("case", ("exception" | "out_of_memory") as status, str(error)) if (
                    self._cases_left > 0
                ):
                    self._cases_left -= 1
                    self.cases.append(CallResult(ExecStatus(status), error=error[:_MAX_TEXT]))
                case ("callback", int(call), str(name), tuple(args), dict(kwargs)) if (
                    is_call and name in self._callbacks
                ):
                    return wire.encode(_answer(call, self._callbacks[name], args, kwargs))
                case _:
                    self.broken = "an unknown message"
        except wire.WireError as error:
            self.broken = str(error)
        return None


class _End:
    """How a request ended, in the words of `ExecResult`."""

    def __init__(
        self, done: Done, limits: Limits, line: Line, *, of_program: bool = False, broken: str = ""
    ) -> None:
        self._done = done
        self._limits = limits
        self._of_program = of_program
        self.status = ExecStatus.OK
        self.note = ""
        self.extra: Any = None
        self.exit_code = done.exit_code
        self.cpu_s = done.cpu_s
        self.peak_memory_bytes = done.peak_memory_bytes
        self.lost = not done.final
        broken = broken or done.broken
        if done.final and not broken:
            broken = self._decode(done.final)
        if broken:
            self.status, self.lost = ExecStatus.SESSION_DEAD, True
            self._lose(f"the code wrote to the sandbox's own channel ({broken})")
        elif done.stopping:
            self.status = ExecStatus(done.stopping)
            if self.lost:
                self._lose(self._limit())
            else:
                self.note += self._limit() + ("\n" if of_program else "; variables are kept\n")
        elif self.lost:
            self._die(line)

    def result(self, backend: str, wall_s: float) -> ExecResult:
        """The whole story."""
        done, most = self._done, self._limits.max_output_bytes
        return ExecResult(
            status=self.status,
            stdout=done.stdout.decode("utf-8", "replace"),
            stderr=done.stderr.decode("utf-8", "replace") + self.note,
            exit_code=self.exit_code,
            wall_s=wall_s,
            backend=backend,
            stdout_truncated=done.stdout_total > most,
            stderr_truncated=done.stderr_total > most,
            cpu_s=self.cpu_s,
            peak_memory_bytes=self.peak_memory_bytes,
        )

    def _decode(self, final: bytes) -> str:
        """Take what the process said last, which may be anything; returns what is wrong with it."""
        try:
            match wire.decode(final):
                case (
                    ("ok" | "exception" | "out_of_memory" | "nonzero_exit") as status,
                    str(text),
                    extra,
                    int(peak_bytes),
                ) if len(text) <= _MAX_TEXT and 0 <= peak_bytes < 2**63:
                    self.status, self.note, self.extra = ExecStatus(status), text, extra
                    self.peak_memory_bytes = peak_bytes
                    if not self._of_program:
                        return "" if status != "nonzero_exit" else "an exit code of a session"
                    if type(extra) is int and 0 <= extra < 256 and (extra == 0) == (status == "ok"):
                        self.exit_code = extra
                        return ""
                    return "an impossible exit code"
            return "an unknown message"
        except wire.WireError as error:
            return str(error)

    def _die(self, line: Line) -> None:
        code = self.exit_code
        if code == -signal.SIGKILL and line.was_out_of_memory():
            self.status = ExecStatus.OUT_OF_MEMORY
            self._lose("all memory of the sandbox was used")
        elif code is not None and code < 0:
            self.status = ExecStatus.SIGNAL
            self._lose(f"the process died of signal {-code}")
        elif self._of_program:  # through os._exit: that is how a program may end
            self.status = ExecStatus.NONZERO_EXIT if code else ExecStatus.OK
        else:
            self.status = ExecStatus.SESSION_DEAD
            self._lose(f"the process ended with exit code {code}")

    def _lose(self, reason: str) -> None:
        self.note = reason + ("\n" if self._of_program else "; variables and files are lost\n")

    def _limit(self) -> str:
        if self.status is ExecStatus.OUTPUT_LIMIT:
            return f"stopped: printed over {RUNAWAY * self._limits.max_output_bytes} bytes"
        if self.status is ExecStatus.OUT_OF_MEMORY:
            return "all memory of the sandbox was used"
        if self.status is ExecStatus.CPU_TIMEOUT:
            return f"stopped: used over {self._limits.cpu_s:g} s of processor time"
        return f"stopped: not finished after {self._limits.wall_s:g} s"


def _answer(
    call: int, callback: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The message for a callback's result; an exception is raised again in the session."""
    try:
        value = callback(*args, **kwargs)
        wire.encode(value)
    except SandboxError:
        raise
    except Exception as error:
        return "answer", "raise", call, (type(error).__name__, str(error))
    return "answer", "value", call, value


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    wrong = pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path
    if wrong or max(len(os.fsencode(part)) for part in pure.parts) > 255 or len(path) > 1024:
        raise ValueError(f"a short relative path without '..' is needed, got {path[:200]!r}")
    return str(pure)
