"""Names for processes under which no later process is taken for an earlier one."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process of one boot of one machine."""

    boot: str
    pid: int
    started: int  # clock ticks since boot

    @property
    def alive(self) -> bool:
        """Whether it is still running; one of another boot is not."""
        return self.boot == _boot() and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.boot}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """What `str` made.

        Raises:
            ValueError: it did not make this.
        """
        boot, pid, started = text.split("-")
        return cls(boot, int(pid), int(started))


def this_process() -> Owner:
    """The owner of what this process makes."""
    return Owner(_boot(), os.getpid(), _started(os.getpid()) or 0)


@functools.cache
def _boot() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return text.strip().replace("-", "")[:12]


def _started(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
