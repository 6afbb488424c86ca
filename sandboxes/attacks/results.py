"""Attacks on the result: that it comes in time, is cut, and tells the truth."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from sandboxes.attacks.attack import Attack, Check
from sandboxes.attacks.bench import GRACE_S, LIMITS, OPEN, PLAIN, SHORT, Bench
from sandboxes.base import ExecStatus, Limits, Policy, SandboxError

HOST_GROWTH_BYTES = 100 * 2**20

_IGNORE = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
try:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
except OSError:
    pass
while True:
    pass
"""
_SWALLOW = "while True:\n    try:\n        while True: pass\n    except BaseException: pass\n"
_STOP = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"
_SPIN = "import signal\n{prelude}\nwhile True: pass\n"
_LONGER = """
import resource
try:
    resource.setrlimit(resource.RLIMIT_CPU, (10**6, resource.getrlimit(resource.RLIMIT_CPU)[1]))
except (OSError, ValueError):
    pass
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
"""

# What the code is, and how it ends: the statuses and exit codes that tell the truth about it.
_ENDINGS = (
    ("import ctypes; ctypes.string_at(0)", "signal", (-11,)),
    ("import os; os.abort()", "signal", (-6, -11)),  # the first of a namespace ignores SIGABRT
    ("import os; os._exit(137)", "nonzero_exit", (137,)),
    ("import sys; sys.exit(137)", "nonzero_exit", (137,)),
    ("import os; os._exit(256)", "ok", (0,)),
    ("import sys; sys.exit(256)", "ok", (0,)),
    ("import sys; sys.exit('no')", "nonzero_exit", (1,)),
    ("raise SystemExit", "ok", (0,)),
    ("1 / 0", "exception", (1,)),
    ("import os; os._exit(0)", "ok", (0,)),
    ("raise KeyboardInterrupt", "exception", (1, 130)),
    ("print('ALL TESTS PASSED'); raise AssertionError", "exception", (1,)),
)

_RECURSION = """
import sys
sys.setrecursionlimit(10**9)
def deeper(n):
    return deeper(n + 1) + 1
deeper(0)
"""
_RECURSION_IN_C = """
import sys
sys.setrecursionlimit(10**9)
value = []
for _ in range(10**6):
    value = [value]
repr(value)
"""


def _stops(code: str, *, limits: Limits = SHORT, statuses: tuple[str, ...]) -> Check:
    """A check that a program and a session's cell are ended in time, with one of the statuses."""

    def program(bench: Bench, policy: Policy) -> Iterator[str]:
        started_s = time.monotonic()
        result = bench.sandbox(policy, limits).run(bench.source(code))
        took_s = time.monotonic() - started_s
        if result.status not in statuses or took_s > limits.wall_s + GRACE_S:
            yield f"a program: {result.status} after {took_s:.1f} s"

    def cell(bench: Bench, policy: Policy) -> Iterator[str]:
        with bench.session(policy, limits) as session:
            started_s = time.monotonic()
            result = session.run(bench.source(code))
            took_s = time.monotonic() - started_s
            if result.status not in statuses or took_s > limits.wall_s + GRACE_S:
                yield f"a session: {result.status} after {took_s:.1f} s"
            if session.run("6 * 7").stdout != "42\n" and session.run("6 * 7").stdout != "42\n":
                yield "the session is of no use afterwards"

    def check(bench: Bench) -> Iterator[str]:
        for policy in bench.policies():
            bench.sandbox(policy, limits)  # its start is not what is timed
        yield from bench.at_once(
            kind(bench, policy) for policy in bench.policies() for kind in (program, cell)
        )

    return check


def _cpu(bench: Bench) -> Iterator[str]:
    limits = Limits(cpu_s=0.5, wall_s=8)
    for name, prelude in (("plain", ""), ("resisting", _LONGER)):
        result = bench.probe(_SPIN.format(prelude=prelude), limits=limits).result
        if result.status is not ExecStatus.CPU_TIMEOUT or result.wall_s > 6:
            yield f"{name}: {result.status} after {result.wall_s:.1f} s of 0.5 s of CPU"


def _flood(stream: str) -> Check:
    code = f"import os\nfor _ in range(1024): os.write({stream}, b'x' * 2**20)"

    def check(bench: Bench) -> Iterator[str]:
        before = resident_bytes()
        started_s = time.monotonic()
        result = bench.sandbox().run(code)
        kept, cut = (
            (result.stdout, result.stdout_truncated)
            if stream == "1"
            else (result.stderr, result.stderr_truncated)
        )
        if len(kept) > LIMITS.max_output_bytes + 20_000 or not cut:
            yield f"kept {len(kept)} characters, truncated={cut}"
        if time.monotonic() - started_s > LIMITS.wall_s + GRACE_S:
            yield f"took {time.monotonic() - started_s:.1f} s"
        if (growth := resident_bytes() - before) > HOST_GROWTH_BYTES:
            yield f"the host grew by {growth >> 20} MiB"

    return check


def _chatter_between_turns(bench: Bench) -> Iterator[str]:
    code = """
import os, threading
def chatter():
    while True:
        os.write(1, b"x" * 2**16)
threading.Thread(target=chatter, daemon=True).start()
"""
    before = resident_bytes()
    with bench.session() as loud, bench.siblings() as siblings:
        loud.run(code)
        deadline_s, slowest_s = time.monotonic() + 1, 0.0
        while time.monotonic() < deadline_s:
            for quiet in siblings:
                started_s = time.monotonic()
                if quiet.run("1").stdout != "1\n":
                    yield "another session was harmed"
                slowest_s = max(slowest_s, time.monotonic() - started_s)
        if slowest_s > 1:
            yield f"another session waited {slowest_s:.1f} s"
        started_s = time.monotonic()
        loud.run("1")
        if time.monotonic() - started_s > LIMITS.wall_s + GRACE_S:
            yield f"its own next turn took {time.monotonic() - started_s:.1f} s"
    if (growth := resident_bytes() - before) > HOST_GROWTH_BYTES:
        yield f"the host grew by {growth >> 20} MiB"


def _endings(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        for code, status, exit_codes in _ENDINGS:
            result = bench.sandbox(policy).run(code)
            if result.status != status or result.exit_code not in exit_codes:
                yield f"{code!r}: {result.status} {result.exit_code}"


def _recursion(bench: Bench) -> Iterator[str]:
    expected = ("signal", "exception", "out_of_memory", "wall_timeout")
    for code in (_RECURSION, _RECURSION_IN_C, "eval('(' * 10**5)", "exec('-' * 10**6 + '1')"):
        result = bench.sandbox(PLAIN, SHORT).run(code)
        if result.status not in expected:
            yield f"{code[:20]!r}: {result.status}"


def _bytes(bench: Bench) -> Iterator[str]:
    code = "import os\nos.write(1, b'\\xff\\xfe\\0\\x1b[31m\\xed\\xa0\\x80\\r\\n@end\\t')"
    result = bench.sandbox().run(code)
    result.stdout.encode()  # no lone surrogates
    if not result.ok or "\0" not in result.stdout or "\ufffd" not in result.stdout:
        yield f"{result.status} {result.stdout!r}"
    result = bench.sandbox().run("print('x' * 10**7)")
    if not result.stdout_truncated or set(result.stdout) != {"x"}:
        yield f"a line of 10 MB: {result.status} {len(result.stdout)}"
    with bench.session() as session:
        if session.run("'\\ud800' + chr(0)").status is not ExecStatus.OK:
            yield "a lone surrogate breaks the echo"


def _unread_input(bench: Bench) -> Iterator[str]:
    for code in ("", "import sys; sys.stdin.read(10)", "import os; os.close(0)"):
        started_s = time.monotonic()
        result = bench.sandbox().run(code, stdin="x" * 3_000_000)
        if not result.ok or time.monotonic() - started_s > 3:
            yield f"{code!r}: {result.status} after {time.monotonic() - started_s:.1f} s"
    result = bench.sandbox().run("import sys; print(len(sys.stdin.read()))", stdin="x" * 3_000_000)
    if result.stdout != "3000000\n":
        yield f"read {result.stdout!r}"


def _kept_output(bench: Bench) -> Iterator[str]:
    code = "import os\nprint('kept', flush=True)\nos.write(2, b'also')\nwhile True: pass"
    result = bench.sandbox(PLAIN, SHORT).run(code)
    if result.stdout != "kept\n" or not result.stderr.startswith("also"):
        yield f"{result.stdout!r} {result.stderr!r}"
    resisting = "print('kept', flush=True)\n" + _SWALLOW
    if bench.sandbox(PLAIN, SHORT).run(resisting).stdout != "kept\n":
        yield "what a killed program printed is lost"


def _closed_streams(bench: Bench) -> Iterator[str]:
    for policy in (PLAIN, OPEN):
        if policy not in bench.policies():
            continue
        for code in (
            "import os\nfor fd in (0, 1, 2): os.close(fd)",
            "import sys\nsys.stdout = sys.stderr = None",
            "import sys\nsys.stdout.close(); sys.stderr.close()",
            "import os\nos.dup2(0, 1); os.dup2(0, 2)",
            "import sys\nclass Liar:\n    def write(self, text): raise MemoryError\n"
            "    def flush(self): raise SystemExit\nsys.stdout = sys.stderr = Liar()",
        ):
            with contextlib.suppress(SandboxError), bench.session(policy) as session:
                session.run(code)
                for _ in range(2):
                    result = session.run("print(6 * 7)")
                if result.status is ExecStatus.WALL_TIMEOUT:
                    yield f"{code!r}: the session hangs"
                continue
            yield f"{code!r} is taken for a failure of the sandbox"


def resident_bytes() -> int:
    """How much memory this process, the host, takes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


_TIMEOUT = ("wall_timeout",)

ATTACKS = (
    Attack("A17", "1 GiB on stdout fills the host's memory", _flood("1")),
    Attack("A18", "1 GiB on stderr fills the host's memory", _flood("2")),
    Attack("A19", "a loop runs on", _stops("while True: pass", statuses=_TIMEOUT)),
    Attack("A20", "a sleep lasts", _stops("import time; time.sleep(10**6)", statuses=_TIMEOUT)),
    Attack("A21", "code that ignores signals runs on", _stops(_IGNORE, statuses=_TIMEOUT)),
    Attack("A70", "code that swallows exceptions runs on", _stops(_SWALLOW, statuses=_TIMEOUT)),
    Attack("A22", "a stopped process hangs the host",
           _stops(_STOP, statuses=("wall_timeout", "ok", "exception", "session_dead", "signal"))),
    Attack("A23", "code gets more CPU time than its limit", _cpu),
    Attack("A39", "an ending is reported as another", _endings),
    Attack("A40", "deep recursion breaks the sandbox", _recursion),
    Attack("A41", "strange bytes break the result", _bytes),
    Attack("A42", "unread input hangs the host", _unread_input),
    Attack("A47", "what was printed before the time was up is lost", _kept_output),
    Attack("A57", "closed or replaced streams hang the session", _closed_streams),
    Attack("A58", "output between two turns harms others or the host", _chatter_between_turns),
)  # fmt: skip
