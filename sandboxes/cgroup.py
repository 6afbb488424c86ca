"""Control groups, version 1 or 2, for runners whose processes share a bound on memory."""

import contextlib
import itertools
import os
import time
from pathlib import Path

from sandboxes.owner import Owner, this_process

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "mopd-sandbox-"
_numbers = itertools.count()


class Cgroup:
    """One group, in the hierarchy of version 2 or in those of memory and pids of version 1."""

    def __init__(self, *, memory_bytes: int, processes: int) -> None:
        """Make the group.

        Raises:
            OSError: this process may not.
        """
        name = f"{_PREFIX}{this_process()}-{next(_numbers)}"
        self._folders: list[Path] = []
        try:
            if _is_version_2():
                folder = self._make(_own_folder() / name)
                _write(folder / "memory.max", memory_bytes)
                with contextlib.suppress(OSError):  # without swap there is no such file
                    _write(folder / "memory.swap.max", 0)
                _write(folder / "pids.max", processes)
            else:
                folder = self._make(_ROOT / "memory" / name)
                _write(folder / "memory.limit_in_bytes", memory_bytes)
                _write(self._make(_ROOT / "pids" / name) / "pids.max", processes)
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Put a process into the group; its later children are born there."""
        for folder in self._folders:
            _write(folder / "cgroup.procs", pid)

    def out_of_memory_kills(self) -> int:
        """How often the kernel killed a process of the group for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (self._folders[0] / name).read_text(encoding="ascii").splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
        return 0

    def kill(self) -> None:
        """Kill every process of the group."""
        _kill(self._folders)

    def remove(self) -> None:
        """Remove the group, whose processes have ended."""
        _remove(self._folders)

    def _make(self, folder: Path) -> Path:
        folder.mkdir()
        self._folders.append(folder)
        return folder


def reap() -> int:
    """Remove the groups of owners that are gone, and what is in them; returns how many."""
    places = (_own_folder(),) if _is_version_2() else (_ROOT / "memory", _ROOT / "pids")
    removed = 0
    for folder in (each for place in places for each in place.glob(f"{_PREFIX}*")):
        try:
            owner = Owner.parse(folder.name.removeprefix(_PREFIX).rpartition("-")[0])
        except ValueError:
            continue
        if not owner.alive:
            _kill([folder])
            removed += _remove([folder])
    return removed


def _kill(folders: list[Path]) -> None:
    for folder in folders:
        for _ in range(50):  # those that fork while they are being killed
            try:
                pids = (folder / "cgroup.procs").read_text(encoding="ascii").split()
            except OSError:
                break
            for pid in map(int, pids):
                with contextlib.suppress(OSError):  # it has ended, or is another user's
                    os.kill(pid, 9)
            if not pids:
                break
            time.sleep(0.01)


def _remove(folders: list[Path]) -> int:
    """Remove groups; the last of their processes may still be on its way out."""
    removed = 0
    for folder in folders:
        for _ in range(100):
            try:
                folder.rmdir()
                removed += 1
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
    folders.clear()
    return removed


def _is_version_2() -> bool:
    return (_ROOT / "cgroup.controllers").exists()


def _own_folder() -> Path:
    """This process's group of version 2, below which a delegated subtree may be."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if line.startswith("0::"):
            return _ROOT / line[3:].lstrip("/")
    return _ROOT


def _write(path: Path, value: int) -> None:
    path.write_text(str(value), encoding="ascii")
