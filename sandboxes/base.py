"""What every sandbox backend promises: typed results for code that nobody trusts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class SandboxError(RuntimeError):
    """The sandbox itself failed; this is never the program's result and never a reward."""


class ExecStatus(StrEnum):
    """How an execution ended."""

    OK = "ok"
    EXCEPTION = "exception"  # the program raised; the traceback is in stderr
    SIGNAL = "signal"  # the process was killed by a signal that we did not send
    WALL_TIMEOUT = "wall_timeout"
    CPU_TIMEOUT = "cpu_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    SESSION_DEAD = "session_dead"  # an earlier turn ended the process; state is lost


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one execution; `memory_bytes` bounds the address space of the process."""

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_bytes: int = 512 * 2**20
    max_output_bytes: int = 64 * 2**10
    max_file_bytes: int = 2**20


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one execution did. `stdout` and `stderr` are cut at `Limits.max_output_bytes`."""

    status: ExecStatus
    stdout: str
    stderr: str
    exit_code: int | None
    truncated: bool
    wall_s: float
    backend: str

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end without an exception."""
        return self.status is ExecStatus.OK


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
        """Call `function` of the session once a case, all cases in one round trip if it can.

        Raises:
            SandboxError: the backend failed, as opposed to the code.
        """
        ...

    def close(self) -> None:
        """End the process and remove its files; closing twice is allowed."""
        ...


class Sandbox(Protocol):
    """A factory of sessions with the same limits; safe to call from several threads."""

    name: str
    limits: Limits

    def session(self) -> Session:
        """Start a fresh session."""
        ...

    def close(self) -> None:
        """End every session that is still open."""
        ...
