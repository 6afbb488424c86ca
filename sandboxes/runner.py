"""A Python REPL served to the host over a private socket: `python -I -S runner.py FD ...`.

The host sends ("run", number, code, callbacks) or ("call", function, cases); the answer is any
number of ("callback", id, name, args, kwargs), each answered by the host, and ("case", status,
value or error), then one ("done", status, traceback). See `wire` for the frames.

What keeps the session's code from forging an answer: a frame counts only with the nonce of the
request, which lives in local variables alone, and the socket has a high random number beyond the
limit on descriptors. Printing, or writing to every descriptor in sight, therefore forges nothing.
It does NOT protect from code that walks the interpreter's frames, the garbage collector or its
own memory: such code can answer in the runner's name. All it wins is to choose its own return
values; so whoever judges must keep the right ones out of this process.
"""

from __future__ import annotations

import _ast
import builtins
import fcntl
import math
import os
import resource
import sys
import time
from _thread import allocate_lock

TYPE_CHECKING = False  # the name that mypy knows; `typing` is slow to import
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any

    from sandboxes import wire
else:
    import _signal  # `signal` imports enum, 3 ms

    # -I keeps this file's folder off the path, and rightly so: `wire` alone is taken from it
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import wire

    del sys.path[0], sys.modules["wire"]

MAX_OPEN_FILES = 64
MAX_TEXT = 20_000  # of an exception, in characters


class Interrupts:
    """SIGINT ends the request at work, and nothing else."""

    def __init__(self) -> None:
        self._armed = False
        self.seen = False

    def arm(self) -> None:
        """Let the next SIGINT raise; the session's code may have put its own handler in place."""
        self.seen = False
        _signal.signal(_signal.SIGINT, self._raise)
        self._armed = True

    def disarm(self) -> None:
        """Ignore a SIGINT that crosses the answer."""
        self._armed = False

    def _raise(self, _number: int, _frame: object) -> None:
        if self._armed:
            self._armed, self.seen = False, True
            raise KeyboardInterrupt


class Channel:
    """Frames to and from the host."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._process = os.getpid()
        self._frames = wire.Frames()

    def send(self, nonce: bytes, message: tuple[Any, ...]) -> None:
        """Send one frame whole."""
        if os.getpid() != self._process:  # the code forked, and its child came out here
            os._exit(0)
        data = memoryview(wire.frame(nonce, message))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def receive(self) -> tuple[bytes, Any]:
        """Wait for a frame; when the host is gone, so is this process."""
        while (taken := self._frames.take()) is None:
            data = os.read(self._descriptor, 2**16)
            if not data:
                os._exit(0)
            self._frames.feed(data)
        return taken


class Repl:
    """The session's variables, and the ways to run code among them."""

    def __init__(self, channel: Channel, cpu_s: float) -> None:
        self._channel = channel
        self._cpu_s = cpu_s
        self._interrupts = Interrupts()
        self._sources: dict[str, str] = {}
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        self._names = module.__dict__
        self._names["__builtins__"] = builtins

    def serve(self) -> None:
        """Answer requests until the host hangs up."""
        while True:
            nonce, request = self._channel.receive()
            if request[0] == "run":
                answer = self._run(nonce, *request[1:])
            elif request[0] == "call":
                answer = self._call(nonce, *request[1:])
            else:  # the answer to a callback that was interrupted
                continue
            for stream in (sys.stdout, sys.stderr):
                try:  # noqa: SIM105 - contextlib imports slowly
                    stream.flush()
                except Exception:  # the code closed the stream, or put something else there
                    pass
            self._channel.send(nonce, answer)

    def _run(self, nonce: bytes, number: int, code: str, names: list[str]) -> tuple[Any, ...]:
        filename = f"<cell {number}>"
        self._sources[filename] = code
        stubs = {name: self._stub(nonce, name) for name in names}
        self._names.update(stubs)
        _, error = self._guarded(self._execute, code, filename)
        for name, stub in stubs.items():
            if self._names.get(name) is stub:
                del self._names[name]
        if error is None:
            return "done", "ok", ""
        status = "out_of_memory" if isinstance(error, MemoryError) else "exception"
        return "done", status, self._traceback(error)

    def _execute(self, code: str, filename: str) -> None:
        tree: Any = compile(code, filename, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
        echoed = tree.body[-1:] if tree.body and isinstance(tree.body[-1], _ast.Expr) else []
        del tree.body[len(tree.body) - len(echoed) :]
        exec(compile(tree, filename, "exec", dont_inherit=True), self._names)
        if echoed:
            last = _ast.Interactive(echoed)
            exec(compile(last, filename, "single", dont_inherit=True), self._names)

    def _call(self, nonce: bytes, name: str, cases: list[bytes]) -> tuple[Any, ...]:
        for case in cases:
            value, error = self._guarded(self._evaluate, name, case)
            if self._interrupts.seen:
                break
            try:
                if error is not None:
                    raise error
                self._channel.send(nonce, ("case", "ok", value))
            except wire.WireError as refused:
                self._channel.send(nonce, ("case", "exception", f"TypeError: returned {refused}"))
            except BaseException as raised:
                status = "out_of_memory" if isinstance(raised, MemoryError) else "exception"
                self._channel.send(nonce, ("case", status, described(raised)))
        return "done", "ok", ""

    def _evaluate(self, name: str, case: bytes) -> Any:
        if name not in self._names:
            raise NameError(f"name {name!r} is not defined")
        return self._names[name](*wire.decode(case))  # each case has arguments of its own

    def _guarded(self, function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        """What the function returns, and what it raises: one of the two is None."""
        used_s = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        try:  # the kernel counts the whole process in whole seconds: each request moves the limit
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s + self._cpu_s), hard))
            try:
                self._interrupts.arm()
                return function(*args), None
            finally:
                self._interrupts.disarm()
        except BaseException as error:
            return None, error

    def _stub(self, nonce: bytes, name: str) -> Callable[..., Any]:
        lock, calls = allocate_lock(), iter(range(2**63))

        def stub(*args: Any, **kwargs: Any) -> Any:
            with lock:
                call = next(calls)
                try:
                    self._channel.send(nonce, ("callback", call, name, args, kwargs))
                except wire.WireError as refused:
                    raise TypeError(f"{name}() got {refused}") from None
                while True:  # an interrupted call's answer may still be on its way
                    answered, (_, kind, of, value) = self._channel.receive()
                    if answered == nonce and of == call:
                        break
            if kind == "value":
                return value
            raise rebuilt(*value)

        stub.__name__ = name
        return stub

    def _traceback(self, error: BaseException) -> str:
        try:
            import linecache
            import traceback

            for filename, code in self._sources.items():
                lines = code.splitlines(keepends=True)
                linecache.cache[filename] = (len(code), None, lines, filename)
            report = traceback.TracebackException.from_exception(error, compact=True)
            link: traceback.TracebackException | None = report
            while link:
                link.stack[:] = [entry for entry in link.stack if entry.filename != __file__]
                link = link.__cause__ or link.__context__
            return "".join(report.format())[-MAX_TEXT:]
        except BaseException:  # out of memory, or an exception that cannot be printed
            return described(error)


def described(error: BaseException) -> str:
    """The exception as the last line of a traceback."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = "its text cannot be made"
    return type(error).__name__ + (f": {text}" if text else "")


def rebuilt(name: str, text: str) -> Exception:
    """The host's exception, as near as plain data brings it."""
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError and its like want more than a text
            pass
    return RuntimeError(f"{name}: {text}")


def confine(memory_bytes: int, file_bytes: int) -> None:
    """Lower this process's limits for good."""
    for limit, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
    ):
        resource.setrlimit(limit, (bound, bound))


def hidden(descriptor: int) -> int:
    """The descriptor under a number that nothing else is told, beyond `MAX_OPEN_FILES`."""
    floor = 2 * MAX_OPEN_FILES + int.from_bytes(os.urandom(2), "big") % 512
    number = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, floor)
    os.close(descriptor)
    return number


def die_with_host(lifeline: int) -> None:
    """Have the kernel kill the process group as soon as the host's end of a pipe closes.

    The end of the request stream is noticed only between two requests; prctl(PR_SET_PDEATHSIG)
    needs ctypes, some 4 ms, and fires when the spawning thread ends.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, _signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def main() -> None:
    """Confine this process, then serve."""
    descriptor, lifeline, memory_bytes, file_bytes = map(int, sys.argv[1:5])
    cpu_s = float(sys.argv[5])
    sys.argv[:] = [""]
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper
    channel = Channel(hidden(descriptor))
    die_with_host(hidden(lifeline))
    confine(memory_bytes, file_bytes)
    channel.send(bytes(wire.NONCE_BYTES), ("ready",))
    try:
        Repl(channel, cpu_s).serve()
    except OSError:  # the host is gone, or the code closed the channel: nobody to tell
        os._exit(1)


if __name__ == "__main__":
    main()
