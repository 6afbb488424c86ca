"""A control group for this process, so that an attack which succeeds takes only what is in it."""

import atexit
import contextlib
import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class NoCage(Exception):  # noqa: N818 - a finding
    """No control group can be made here; the text says why."""


def enter_cage(memory_bytes: int, processes: int) -> None:
    """Bound this process and all that it will start; what is left at its end is killed.

    Raises:
        NoCage: this user may make no control group.
    """
    try:
        folders = _make(memory_bytes, processes)
        for folder in folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise NoCage(f"no control group can be made: {error}") from error
    atexit.register(_leave, folders)


def _make(memory_bytes: int, processes: int) -> list[Path]:
    name = f"sandbox-attacks-{os.getpid()}"
    if (_ROOT / "cgroup.controllers").exists():
        folder = _ROOT / name
        folder.mkdir()
        (folder / "memory.max").write_text(str(memory_bytes))
        (folder / "pids.max").write_text(str(processes))
        return [folder]
    memory, pids = _ROOT / "memory" / name, _ROOT / "pids" / name
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
    pids.mkdir()
    (pids / "pids.max").write_text(str(processes))
    return [memory, pids]


def _leave(folders: list[Path]) -> None:
    for folder in folders:
        for pid in map(int, (folder / "cgroup.procs").read_text().split()):
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        (folder.parent / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.02)
