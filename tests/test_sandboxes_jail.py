"""The start of a jail, where bubblewrap itself goes wrong."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sandboxes.backend import Unavailable
from sandboxes.base import Limits, Policy
from sandboxes.jail import JailBackend
from sandboxes.runner import seccomp

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not seccomp.supported(), reason="jail needs Linux and seccomp"
)

# As bwrap when it is killed between the start of its child and its word of it: the child has closed
# the line for that word ($2), waits for its parent, and holds the stderr that both were given.
KILLED_EARLY = """#!/bin/bash
eval "exec sleep 300 $2>&-" &
echo $! > "${0%/*}/child"
kill -KILL $$
"""


def test_a_bwrap_that_is_killed_before_it_tells_of_its_child_is_unavailable_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(KILLED_EARLY)
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Unavailable, match=f"exit code -{signal.SIGKILL:d}"):
        JailBackend().launch(Limits(), Policy(), 1)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 30  # it closes its stderr before it is quite dead
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lives(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_bwrap_that_refuses_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/bash\necho no namespaces here >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Unavailable, match="bwrap said: no namespaces here"):
        JailBackend().launch(Limits(), Policy(), 1)
