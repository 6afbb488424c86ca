"""What a confined process does: run the cells, calls or the program that the host asks for.

What keeps the code from forging an answer: a frame counts only with the nonce of the request,
which lives in local variables alone, and the channel has a high random number beyond the limit
on descriptors. Printing, or writing to every descriptor in sight, therefore forges nothing. It
does NOT protect from code that walks the interpreter's frames, the garbage collector or its own
memory: such code can answer in this program's name. All it wins is to choose its own return
values; so whoever judges must keep the right ones out of this process.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import linecache
import os
import resource
import select
import signal
import socket
import stat
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from sandboxes import wire

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TEXT = 20_000  # of an exception, in characters
NONCE_BYTES = 16
# The kinds of frames, after the nonce; a call is an event that wants an answer.
READY, FAULT, EVENT, CALL, FINAL = b"r", b"f", b"e", b"c", b"d"


class Interrupts:
    """SIGINT ends the request at work, and nothing else."""

    def __init__(self) -> None:
        self._armed = False
        self.seen = False

    def arm(self) -> None:
        """Let the next SIGINT raise; the session's code may have put its own handler in place."""
        self.seen = False
        signal.signal(signal.SIGINT, self._raise)
        self._armed = True

    def disarm(self) -> None:
        """Ignore a SIGINT that crosses the answer."""
        self._armed = False

    def _raise(self, _number: int, _frame: object) -> None:
        if self._armed:
            self._armed, self.seen = False, True
            raise KeyboardInterrupt


class Channel:
    """Frames to and from the runner."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._process = os.getpid()
        self._frames = wire.Frames()

    def send(self, nonce: bytes, kind: bytes, message: tuple[Any, ...]) -> None:
        """Send one frame whole."""
        if os.getpid() != self._process:  # the code forked, and its child came out here
            os._exit(0)
        data = memoryview(wire.frame(nonce + kind + wire.encode(message)))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def receive(self) -> tuple[bytes, Any]:
        """Wait for a frame; when the runner is gone, so is this process."""
        while (body := self._frames.take()) is None:
            data = os.read(self._descriptor, 2**16)
            if not data:
                os._exit(0)
            self._frames.feed(data)
        return body[:NONCE_BYTES], wire.decode(body[NONCE_BYTES:])


class Repl:
    """The session's variables, and the ways to run code among them."""

    def __init__(self, channel: Channel, folder: str) -> None:
        self._channel = channel
        self._folder = folder
        self._interrupts = Interrupts()
        self._sources: dict[str, str] = {}
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        self._names = module.__dict__
        self._names["__builtins__"] = builtins

    def answer(self) -> None:
        """Wait for a request, and answer it."""
        requests: dict[str, Callable[..., tuple[Any, ...]]] = {
            "run": self._run,
            "call": self._call,
            "program": self._program,
            "put": self._put,
            "get": self._get,
        }
        nonce, request = self._channel.receive()
        if request[0] not in requests:  # the answer to a callback that was interrupted
            return
        status, text, extra = requests[request[0]](nonce, *request[1:])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed by the code, or replaced
                stream.flush()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._channel.send(nonce, FINAL, (status, text, extra, peak_bytes))

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
            return "ok", "", None
        return status_of(error), self._traceback(error), None

    def _execute(self, code: str, filename: str) -> None:
        tree: Any = compile(code, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        echoed = tree.body[-1:] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        del tree.body[len(tree.body) - len(echoed) :]
        exec(compile(tree, filename, "exec", dont_inherit=True), self._names)
        if echoed:
            last = ast.Interactive(echoed)
            exec(compile(last, filename, "single", dont_inherit=True), self._names)

    def _call(self, nonce: bytes, name: str, cases: list[bytes]) -> tuple[Any, ...]:
        for case in cases:
            value, error = self._guarded(self._evaluate, name, case)
            if self._interrupts.seen:
                break
            try:
                if error is not None:
                    raise error
                self._channel.send(nonce, EVENT, ("case", "ok", value))
            except wire.WireError as refused:
                text = f"TypeError: returned {refused}"
                self._channel.send(nonce, EVENT, ("case", "exception", text))
            except BaseException as raised:
                outcome = ("case", status_of(raised), described(raised))
                self._channel.send(nonce, EVENT, outcome)
        return "ok", "", None

    def _evaluate(self, name: str, case: bytes) -> Any:
        if name not in self._names:
            raise NameError(f"name {name!r} is not defined")
        return self._names[name](*wire.decode(case))  # each case has arguments of its own

    def _program(
        self, _nonce: bytes, source: str, argv: list[str], files: dict[str, bytes]
    ) -> tuple[Any, ...]:
        filename = "program.py"
        self._sources[filename] = source
        try:
            for path, data in files.items():
                self._write_file(path, data)
        except OSError as unwritten:
            return "exception", described(unwritten), 1
        sys.argv[:] = [filename, *argv]
        sys.path.insert(0, self._folder or "/")
        sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]  # a TextIOWrapper
        self._names["__file__"] = filename
        _, error = self._guarded(self._play, source, filename)
        if error is None:
            return "ok", "", 0
        if isinstance(error, SystemExit):
            code, text = exit_code(error)
            return ("nonzero_exit" if code else "ok"), text, code
        return status_of(error), self._traceback(error), 1

    def _play(self, source: str, filename: str) -> None:
        try:
            exec(compile(source, filename, "exec", dont_inherit=True), self._names)
        finally:  # what an interpreter does at its end
            threading._shutdown()  # type: ignore[attr-defined]  # what joins them
            atexit._run_exitfuncs()

    def _put(self, _nonce: bytes, path: str, data: bytes) -> tuple[Any, ...]:
        try:
            self._write_file(path, data)
        except OSError as error:
            return "exception", described(error), error.errno
        return "ok", "", None

    def _write_file(self, path: str, data: bytes) -> None:
        target = os.path.join(self._folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(target, flags, 0o600), "wb") as file:
            file.write(data)

    def _get(self, _nonce: bytes, path: str, max_bytes: int) -> tuple[Any, ...]:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(os.path.join(self._folder, path), flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(f"{path} is no regular file")
                return "ok", "", file.read(max_bytes + 1)
        except OSError as error:
            return "exception", described(error), error.errno

    def _guarded(self, function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        """What the function returns, and what it raises: one of the two is None."""
        try:
            try:
                self._interrupts.arm()
                return function(*args), None
            finally:
                self._interrupts.disarm()
        except BaseException as error:  # SystemExit and KeyboardInterrupt end the request alone
            return None, error

    def _stub(self, nonce: bytes, name: str) -> Callable[..., Any]:
        lock, calls = threading.Lock(), iter(range(2**63))

        def stub(*args: Any, **kwargs: Any) -> Any:
            with lock:
                call = next(calls)
                try:
                    self._channel.send(nonce, CALL, ("callback", call, name, args, kwargs))
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


def status_of(error: BaseException) -> str:
    """The `ExecStatus` of code that raised this."""
    return "out_of_memory" if isinstance(error, MemoryError) else "exception"


def exit_code(error: SystemExit) -> tuple[int, str]:
    """The exit code that an interpreter makes of the exception, and what it prints."""
    if error.code is None:
        return 0, ""
    if isinstance(error.code, int):
        return error.code & 0xFF, ""
    return 1, f"{error.code}\n"[:MAX_TEXT]


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


def be_ready() -> None:
    """Do once, in the process that forks, what each session would have to do otherwise.

    The standard streams are made anew over pipes: those of an interpreter that was started on
    other files remember their kind. The runner's own modules cannot be imported by sessions.
    """
    complaints = os.dup(2)
    source, sink = os.pipe2(os.O_CLOEXEC)
    for number, descriptor in enumerate((source, sink, sink)):
        os.dup2(descriptor, number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        errors = "surrogateescape" if mode == "r" else "backslashreplace"
        stream = open(  # noqa: SIM115 - it stays open
            number, mode, 1, encoding="utf-8", errors=errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.dup2(complaints, 2)
    for descriptor in (complaints, source, sink):
        os.close(descriptor)
    exec(compile(ast.parse("sum(range(9))"), "", "exec"), {})  # what the first of these makes
    sys.argv[:] = [""]
    for name in [name for name in sys.modules if name.partition(".")[0] == "sandboxes"]:
        del sys.modules[name]


def rehearse() -> None:
    """Answer a request that does nothing.

    What a fork shares with its parent is copied where it is first written to: a third of a small
    program's time, which here passes while nobody waits.
    """
    near, far = socket.socketpair()
    with near, far:
        Channel(far.fileno()).send(bytes(NONCE_BYTES), b"", ("run", 0, "print(end='')", []))
        Repl(Channel(near.fileno()), "").answer()


def serve(descriptor: int, folder: str) -> None:
    """Say that this process is confined, then work until the runner hangs up."""
    channel = Channel(descriptor)
    channel.send(bytes(NONCE_BYTES), READY, ())
    come = select.poll()
    come.register(descriptor, select.POLLIN)
    if not come.poll(0):
        rehearse()
    repl = Repl(channel, folder)
    try:
        while True:
            repl.answer()
    except OSError:  # the runner is gone, or the code closed the channel: nobody to tell
        os._exit(1)
