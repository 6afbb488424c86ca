"""The peak of this process's memory while something runs, over what it had before."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_gib() -> Iterator[Callable[[], float]]:
    """Yields a function that says by how many GiB the peak has exceeded the start. Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
    before = _resident_gib()
    yield lambda: _resident_gib() - before


def _resident_gib() -> float:
    """The largest resident set since the peak was last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
