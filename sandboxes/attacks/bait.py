"""What the attacks go for on the host, and how the host notices that they got it."""

import contextlib
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
CANARY_VARIABLE = "SANDBOX_ATTACK_CANARY"
PREFIX = "canary-"  # of every secret, followed by 16 hexadecimal digits

# Tells on its output when a signal reaches it, one that does nothing to other processes.
_VICTIM = """
import os, signal
signal.signal(signal.SIGURG, lambda *_: os.write(1, b"hit "))
os.write(1, b"ready ")
while True:
    signal.pause()
"""


def secret() -> str:
    """A new secret; `PREFIX` may be known to the attacker, the rest is the proof."""
    return PREFIX + secrets.token_hex(8)


class Bait:
    """Listeners, files, a secret in the environment and a process, all of the host."""

    def __enter__(self) -> "Bait":
        self._undo = contextlib.ExitStack()
        self.secret = secret()
        self.marker = "atk" + secrets.token_hex(6)  # the name of every process of a probe
        self.folder = Path(tempfile.mkdtemp(prefix="sandbox-bait-", dir="/var/tmp"))
        self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self._lay_out_files()
        os.environ[CANARY_VARIABLE] = self.secret
        self._undo.callback(os.environ.pop, CANARY_VARIABLE, None)
        self._listen()
        self._victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _VICTIM],
            stdout=subprocess.PIPE,
            env={CANARY_VARIABLE: self.secret},  # what is set later, /proc does not show
        )
        self._undo.callback(self._end_victim)
        self._read_victim(b"ready ")
        self._core_pattern = CORE_PATTERN.read_text()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.changed_host_files()
        self._undo.close()

    def _lay_out_files(self) -> None:
        for name, mode in (("canary.txt", 0o644), ("writable.txt", 0o666)):
            path = self.folder / name
            path.write_text(self.secret)
            path.chmod(mode)
        (self.folder / "open").mkdir()
        (self.folder / "open").chmod(0o777)
        self.packages = self.folder / "packages"
        self.packages.mkdir(0o755)
        (self.packages / "bait_package.py").write_text("VALUE = 42\n")
        (self.packages / "link.txt").symlink_to(self.folder / "canary.txt")
        self._files = self._state_of_files()

    def _state_of_files(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            state = path.lstat()
            if not path.is_socket() and not path.is_dir():
                found[str(path)] = (state.st_mode, state.st_mtime_ns, state.st_size)
        return found

    def _listen(self) -> None:
        self.abstract = "\0" + self.marker
        self._touched: list[str] = []
        self._listeners = selectors.DefaultSelector()
        self.socket_path = str(self.folder / "socket")
        tcp = self._listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.port: int = tcp.getsockname()[1]
        self._listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", self.port))
        for kind, suffix in ((socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, "-datagrams")):
            self._listener(socket.AF_UNIX, kind, self.abstract + suffix)
            self._listener(socket.AF_UNIX, kind, self.socket_path + suffix)
            os.chmod(self.socket_path + suffix, 0o777)
        self._ended = threading.Event()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        self._undo.callback(thread.join)
        self._undo.callback(self._ended.set)

    def _listener(self, family: int, kind: int, address: object) -> socket.socket:
        listener = self._undo.enter_context(socket.socket(family, kind))
        listener.bind(address)  # type: ignore[arg-type]  # of any family
        listener.setblocking(False)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        self._listeners.register(listener, selectors.EVENT_READ)
        return listener

    def _watch(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._listeners.select(0.02):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    if listener.type == socket.SOCK_STREAM:
                        listener.accept()[0].close()
                    else:
                        listener.recv(2**16)
                    self._touched.append(repr(listener.getsockname()))
        self._listeners.close()

    def touched_listeners(self) -> list[str]:
        """The addresses that were reached since the last time that somebody asked."""
        time.sleep(0.05)  # the watcher is that fast, or the bytes are not on their way
        touched, self._touched = self._touched, []
        return touched

    def changed_host_files(self) -> list[str]:
        """Which files of the host are not as they were; the kernel's setting is put back."""
        found = self._state_of_files()
        names = sorted(
            name for name in self._files | found if self._files.get(name) != found.get(name)
        )
        self._files = found
        if CORE_PATTERN.read_text() != self._core_pattern:
            names.append(f"{CORE_PATTERN}: {CORE_PATTERN.read_text()!r}")
            CORE_PATTERN.write_text(self._core_pattern)
        return names

    def public(self) -> dict[str, str]:
        """What a probe may know: where to look, and none of the secrets."""
        return {
            "marker": self.marker,
            "folder": str(self.folder),
            "port": str(self.port),
            "abstract": self.abstract,
            "socket": self.socket_path,
            "victim": str(self._victim.pid),
            "host": str(os.getpid()),
            "home": str(Path.home()),
            "repository": str(Path(__file__).parents[2]),
            "variable": CANARY_VARIABLE,
            "prefix": PREFIX,
        }

    def victim_was_signalled(self) -> bool:
        """Whether a signal reached the process of the host."""
        os.set_blocking(self._pipe, False)
        try:
            return bool(os.read(self._pipe, 2**16)) or self._victim.poll() is not None
        except BlockingIOError:
            return self._victim.poll() is not None

    @property
    def victim(self) -> int:
        """The process of the host that nobody may signal, trace or change."""
        return self._victim.pid

    @property
    def _pipe(self) -> int:
        assert self._victim.stdout is not None
        return self._victim.stdout.fileno()

    def _read_victim(self, expected: bytes) -> None:
        got = b""
        while expected not in got:
            data = os.read(self._pipe, 2**16)
            if not data:
                raise RuntimeError("the victim process did not start")
            got += data

    def _end_victim(self) -> None:
        self._victim.kill()
        self._victim.wait()
        assert self._victim.stdout is not None
        self._victim.stdout.close()

    def alive(self) -> list[int]:
        """The processes, zombies too, that bear the name which every probe gives itself."""
        return processes_named(self.marker)

    def survivors(self, patience_s: float = 1.0) -> list[int]:
        """Those that are still alive after a while."""
        deadline_s = time.monotonic() + patience_s
        while (pids := self.alive()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return pids


def processes_named(name: str) -> list[int]:
    """The processes of this machine with that name."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if Path("/proc", entry, "comm").read_text().rstrip("\n") == name:
                    found.append(int(entry))
    return found
