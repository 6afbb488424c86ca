"""What every sandbox promises: typed results for code that nobody trusts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol


class SandboxError(RuntimeError):
    """The sandbox itself failed; this is never the program's result and never a reward.

    An exception and no status, so that nobody can take it for a failed program by forgetting
    to look.
    """


class ExecStatus(StrEnum):
    """How an execution ended."""

    OK = "ok"
    EXCEPTION = "exception"  # the code raised; the traceback is in stderr
    NONZERO_EXIT = "nonzero_exit"  # a program ended itself with another exit code than 0
    SIGNAL = "signal"  # the process was killed by a signal that we did not send
    WALL_TIMEOUT = "wall_timeout"
    CPU_TIMEOUT = "cpu_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    SESSION_DEAD = "session_dead"  # the code ended or broke its session; state is lost


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session or program; time and output are counted anew for each execution.

    `memory_bytes` bounds the address space of each process, `disk_bytes` all files together.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_bytes: int = 512 * 2**20
    max_output_bytes: int = 2**20  # contests expect outputs of hundreds of kilobytes
    max_file_bytes: int = 16 * 2**20
    disk_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Policy:
    """What code may do beyond computing; a pool of warm processes serves one policy.

    `network="loopback"` gives each session a network of its own with nobody else in it.
    `packages` are folders of the host to import from, read-only; `preload` names modules that
    are imported once for all sessions, which then start with them at no cost.
    """

    network: Literal["none", "loopback"] = "none"
    subprocesses: bool = False
    packages: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


Hold = Literal["hard", "per process", "none"]


@dataclass(frozen=True, slots=True)
class Isolation:
    """How well a backend keeps each thing apart.

    "hard": bounded or refused whatever the code does. "per process": each process for itself.
    """

    network: Hold
    files: Hold  # reading and writing what belongs to the host
    disk: Hold  # how much is written
    memory: Hold
    processes: Hold  # seeing and signalling others
    syscalls: Hold


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one execution did. The outputs are cut at `Limits.max_output_bytes` each."""

    status: ExecStatus
    stdout: str
    stderr: str
    exit_code: int | None  # of the process where it ended; -N: killed by signal N
    wall_s: float
    backend: str
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end without an exception."""
        return self.status is ExecStatus.OK

    @property
    def truncated(self) -> bool:
        """Whether something of the output is missing."""
        return self.stdout_truncated or self.stderr_truncated


@dataclass(frozen=True, slots=True)
class CallResult:
    """One function call: the value, plain data decoded from the wire, or why there is none."""

    status: ExecStatus
    value: Any = None
    error: str = ""  # "ZeroDivisionError: division by zero"

    @property
    def ok(self) -> bool:
        """Whether the call returned a value."""
        return self.status is ExecStatus.OK


class Session(Protocol):
    """One Python process whose variables live from one run to the next."""

    def run(
        self, code: str, *, callbacks: Mapping[str, Callable[..., Any]] | None = None
    ) -> ExecResult:
        """Execute `code` as a REPL cell: the value of a last expression is echoed to stdout.

        `callbacks` are functions of the host that the code sees under their names; arguments
        and results cross the border as plain data with its exact types (`sandboxes.wire`).

        Raises:
            SandboxError: the backend failed, as opposed to the code.
        """
        ...

    def call(self, function: str, cases: Sequence[Sequence[Any]]) -> tuple[CallResult, ...]:
        """Call `function` of the session once a case, all cases in one round trip.

        Raises:
            SandboxError: the backend failed, as opposed to the code.
        """
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write a file below the session's folder; `path` is relative, without "..".

        Raises:
            ValueError: the path leads out, or the file is too big.
            OSError: the session could not write it.
            SandboxError: the backend failed, or has no folder to write to.
        """
        ...

    def get(self, path: str, max_bytes: int = 2**20) -> bytes:
        """The content of a regular file of the session, which reads it in its own confinement.

        Raises:
            ValueError: the path leads out, or the file is larger than `max_bytes`.
            OSError: there is no such regular file.
            SandboxError: the backend failed.
        """
        ...

    def close(self) -> None:
        """End the process and remove its files; closing twice is allowed."""
        ...


class Sandbox(Protocol):
    """Runs code under the same limits and policy; safe to call from several threads."""

    name: str
    limits: Limits

    def session(self) -> Session:
        """Start a fresh session."""
        ...

    def run(
        self,
        program: str,
        *,
        stdin: str = "",
        argv: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> ExecResult:
        """Run a whole program once, in a process of its own, as `python program.py` would.

        Raises:
            SandboxError: the backend failed, as opposed to the program.
        """
        ...

    def close(self) -> None:
        """End every session that is still open."""
        ...


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What some backends have to be told."""

    allow_unsafe: bool = False  # without it, unsafe_local refuses to start
    image: str | None = None  # docker: None is the image that `python -m sandboxes.image` makes
    runtime: str | None = None  # docker: such as "runsc" for gVisor; None is the engine's default
    max_sessions: int = 256  # that are open at once; a further one waits
