"""Attacks on the line between the code, its runner and the host, with forged and broken frames."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sandboxes.attacks.attack import Attack
from sandboxes.attacks.bench import GRACE_S, LIMITS, OPEN, PLAIN, SHORT, Bench, Inapplicable
from sandboxes.attacks.results import HOST_GROWTH_BYTES, resident_bytes
from sandboxes.base import ExecStatus, Limits, Policy, SandboxError

_DESCRIPTORS = """
import stat
found = []
for number in range(3, 70_000):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    kind = "socket" if stat.S_ISSOCK(mode) else "pipe" if stat.S_ISFIFO(mode) else "other"
    found.append(kind)
    if kind == "other":
        say(f"descriptor {number}", f"done: {os.fstat(number)}")
say("found", " ".join(found))
"""

# What any code can find that looks for it; `insides` returns a nonce, a channel and the module.
_INSIDES = """
def descriptors():
    found = []
    for number in range(3, 70_000):
        try:
            os.fstat(number)
            found.append(number)
        except OSError:
            pass
    return found
def insides():
    frame = sys._getframe()
    while frame:
        local = frame.f_locals
        if isinstance(local.get("nonce"), bytes) and hasattr(local.get("self"), "_channel"):
            return local["nonce"], local["self"]._channel, frame.f_globals
        frame = frame.f_back
    raise LookupError("the channel was not found")
def flood(data):
    for number in descriptors():
        try:
            os.set_blocking(number, True)
            rest = data
            while rest:
                rest = rest[os.write(number, rest):]
        except OSError:
            pass
"""

_GARBAGE = (
    "flood(b'garbage')",
    "flood(b'\\xff' * 64)",
    "flood(b'\\0\\0\\0\\x14' + bytes(20))",
    "flood(b'\\0\\0\\0\\x15' + bytes(16) + b'r' + bytes(4))",
    "flood(b'\\0\\0\\0\\x15' + bytes(16) + b'fnope')",
    "flood(b'\\0\\x10\\0\\0' + b'half')",
    "flood(bytes(10**8))",
    "flood(b'\\0\\0\\0\\x15' * 10**6)",
    "for number in descriptors(): os.close(number)",
    "for number in descriptors(): os.dup2(1, number)",
    "for number in descriptors(): os.dup2(number, 1)\nprint('x' * 10**6)",
    "nonce, channel, module = insides()\n"
    "flood(module['wire'].frame(nonce + b'd' + b'[' + b'\\xff' * 4))",
    "nonce, channel, module = insides()\n"
    "flood(module['wire'].frame(nonce + b'd' + b'(\\0\\0\\0\\1' * 10**5))",
    "nonce, channel, module = insides()\n"
    "flood(module['wire'].frame(nonce + b'?' + b'n\\0\\0\\0\\0'))",
    "nonce, channel, module = insides()\n"
    "for _ in range(10**5): channel.send(nonce, module['EVENT'], ('callback', 1, 'no', (), {}))",
    "nonce, channel, module = insides()\n"
    "for _ in range(99): channel.send(nonce, module['EVENT'], ('case', 'ok', 'x' * 10**6))",
    "nonce, channel, module = insides()\n"
    "for _ in range(9): channel.send(nonce, module['FINAL'], ('ok', '', None, 0))",
    "nonce, channel, module = insides()\n"
    "channel.send(nonce, module['FINAL'], ('ok', '', None, 0))\nwhile True: pass",
)

# The fields of the last frame: status, text, extra (the exit code of a program), peak bytes.
_FINALS = (
    "('ok', '', 0, 0)",
    "('ok', 'x' * 4_000_000, 0, 0)",
    "('nonzero_exit', '', 10**4000, 0)",
    "('nonzero_exit', '', -9, 0)",
    "('nonzero_exit', '', True, 0)",
    "('ok', '', 0, -(10**300))",
    "('ok', '', 3, 0)",
    "('wall_timeout', '', 0, 0)",
    "('signal', '', -11, 0)",
    "('ok',)",
    "None",
)
_EVENTS = (
    "('callback', 0, 'f', (), {})",
    "('callback', 0, 'offered', (), {1: 2})",
    "('callback', 0, 'offered', ({'a': [1] * 99},), {'b': 1})",
    "('callback', 'x', 'offered', [], {})",
    "('callback', 10**400, 'offered', (), {})",
    "('case', 'ok', 1)",
    "('case', 'wall_timeout', 1)",
    "('sandbox_error', 'x')",
    "None",
)
_SEND = """
nonce, channel, module = insides()
channel.send(nonce, module[{kind!r}], {message})
say("sent", "yes")
"""

_DEATHS = (
    "import os\nos.open = lambda *_, **__: os._exit(3)",
    "import os\nos.open = lambda *_, **__: 1 / 0",
    "import os, threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), os._exit(0)), daemon=True).start()",
    "import os\nos.makedirs = os.open = None",
    "import os\nclass Sly(BaseException): pass\ndef sly(*_, **__): raise Sly\nos.open = sly",
)

_UNREAD = """
import time
nonce, channel, module = insides()
for number in range(100):
    channel.send(nonce, module["CALL"], ("callback", number, "answer", (), {}))
time.sleep(60)
"""
_UNREAD_BYTES = 2 * 2**20
_MOST_KEPT_BYTES = 96 * 2**20  # by a runner, whose own size is some 20 MiB

_CALLS = """
import time
nonce, channel, module = insides()
for number in range(1000):
    channel.send(nonce, module["CALL"], ("callback", number, "work", (), {}))
time.sleep(60)
"""

_OOM_SCORE = """
def lower(name, value):
    with open(f"/proc/self/{name}") as file:
        before = int(file.read())
    with open(f"/proc/self/{name}", "w") as file:
        file.write(str(value))
    with open(f"/proc/self/{name}") as file:
        after = int(file.read())
    if after >= before:
        raise OSError(13, "as before")
    return before, after
for value in (-1000, 0, 500, 999):
    attempt(f"oom_score_adj {value}", lower, "oom_score_adj", value)
"""


def _inherited(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        report = bench.probe(_DESCRIPTORS, policy)
        yield from report.successes()
        if report["found"] not in ("", "socket"):  # its own line to the runner
            yield f"{report.where} inherited: {report['found']}"


def _garbage(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy, SHORT) as siblings:
            for sibling in siblings:
                sibling.run("kept = 42")
            for code in _GARBAGE if policy == PLAIN else ():
                yield from _one_garbage(bench, policy, code, "program")
                for sibling in siblings:
                    if sibling.run("kept").stdout != "42\n":
                        yield f"{code[-60:]!r} harmed another session"
                        sibling.run("kept = 42")
            yield from bench.at_once(
                _one_garbage(bench, policy, code, "session") for code in _GARBAGE
            )
            for sibling in siblings:
                if sibling.run("kept").stdout != "42\n":
                    yield "one of the sessions harmed another"


def _one_garbage(bench: Bench, policy: Policy, code: str, kind: str) -> Iterator[str]:
    source = bench.source(f"{_INSIDES}\n{code}")
    started_s = time.monotonic()
    try:
        if kind == "program":
            bench.sandbox(policy, SHORT).run(source)
        else:
            with bench.session(policy, SHORT) as session:
                session.run(source)
                session.run("1")
    except SandboxError as error:
        yield f"{kind}: {code[-60:]!r} is taken for a failure of the sandbox: {error}"
    took_s = time.monotonic() - started_s
    if took_s > 2 * (SHORT.wall_s + GRACE_S):
        yield f"{kind}: {code[-60:]!r} took {took_s:.1f} s"


def _forged(bench: Bench) -> Iterator[str]:
    for kind, messages in (("FINAL", _FINALS), ("EVENT", _EVENTS)):
        for message in messages:
            source = bench.source(_INSIDES + _SEND.format(kind=kind, message=message))
            for where in ("program", "session", "call"):
                try:
                    yield from _one_forged(bench, where, source)
                except SandboxError as error:
                    yield f"{where}: {message[:50]} is taken for a failure of the sandbox: {error}"


def _one_forged(bench: Bench, where: str, source: str) -> Iterator[str]:
    if where == "call":
        with bench.session(PLAIN, SHORT) as session:
            session.run(f"def f():\n    exec({source!r}, {{}})\n    return 7")
            session.call("f", [()])
        return
    if where == "program":
        result = bench.sandbox(PLAIN, SHORT).run(source)
    else:
        with bench.session(PLAIN, SHORT) as session:
            result = session.run(source, callbacks={"offered": lambda *_, **__: None})
    if len(result.stderr) > LIMITS.max_output_bytes + 2**16:
        yield f"{where}: {len(result.stderr)} characters of stderr"
    if result.exit_code is not None and not -64 <= result.exit_code <= 255:
        yield f"{where}: an exit code of {result.exit_code.bit_length()} bits"
    if result.status is ExecStatus.OK and result.exit_code not in (0, None):
        yield f"{where}: {result.status} with exit code {result.exit_code}"
    if (result.exit_code or 0) < 0 and result.status is not ExecStatus.SIGNAL:
        yield f"{where}: a forged death by signal: {result.status} {result.exit_code}"
    if result.cpu_s is not None and not 0 <= result.cpu_s < 1e6:
        yield f"{where}: {result.cpu_s} s of CPU"
    if result.peak_memory_bytes is not None and not 0 <= result.peak_memory_bytes < 2**62:
        yield f"{where}: a peak of {math.log2(abs(result.peak_memory_bytes)):.0f} bits"


def _own_death(bench: Bench) -> Iterator[str]:
    with bench.session() as session:
        try:
            session.put("file", b"x")
        except SandboxError as error:
            raise Inapplicable("this backend has no folder to write to") from error
    yield from bench.at_once(
        _one_death(bench, code, action) for code in _DEATHS for action in ("get", "put")
    )


def _one_death(bench: Bench, code: str, action: str) -> Iterator[str]:
    with bench.session() as session:
        session.run(code)
        time.sleep(0.3)
        try:
            with contextlib.suppress(OSError, ValueError):
                if action == "get":
                    session.get("file")
                else:
                    session.put("folder/file", b"x")
        except SandboxError as error:
            yield f"{action} after {code[:60]!r}: {error}"


def _unread(bench: Bench) -> Iterator[str]:
    limits = Limits(wall_s=2.0)
    answered, slowest_s, done = [0], [0.0], threading.Event()
    known = descendants(os.getpid())

    def answer() -> bytes:
        answered[0] += 1
        return bytes(_UNREAD_BYTES)

    with bench.session(PLAIN, limits) as deaf, bench.siblings(PLAIN, limits) as siblings:

        def watch() -> None:
            while not done.is_set():
                for sibling in siblings:
                    started_s = time.monotonic()
                    sibling.run("1")
                    slowest_s[0] = max(slowest_s[0], time.monotonic() - started_s)
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            result = deaf.run(bench.source(_INSIDES + _UNREAD), callbacks={"answer": answer})
        finally:
            done.set()
            watcher.join()
    if result.status is ExecStatus.EXCEPTION or not answered[0]:
        yield f"inconclusive: {result.status} {result.stderr[-200:]}"
    if slowest_s[0] > 1:
        yield f"another session waited {slowest_s[0]:.1f} s"
    # Nobody else uses runners with these limits; those in a container are not below this process.
    largest = max(map(_peak_bytes, descendants(os.getpid()) - known), default=0)
    if largest > _MOST_KEPT_BYTES:
        yield f"a runner took {largest >> 20} MiB for answers that nobody reads"


def _busy_host(bench: Bench) -> Iterator[str]:
    calls, started_s = [0], time.monotonic()

    def work() -> None:
        calls[0] += 1
        time.sleep(0.01)

    with bench.session(PLAIN, SHORT) as session:
        session.run("1")
        started_s = time.monotonic()
        result = session.run(bench.source(_INSIDES + _CALLS), callbacks={"work": work})
    took_s = time.monotonic() - started_s
    if result.status is ExecStatus.EXCEPTION or not calls[0]:
        yield f"inconclusive: {result.status} {result.stderr[-200:]}"
    if took_s > SHORT.wall_s + GRACE_S:
        yield f"{calls[0]} calls to the host took {took_s:.1f} s of {SHORT.wall_s:g} s"


def descendants(pid: int) -> set[int]:
    """The processes that came from this one, as far as their parents are alive."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = Path("/proc", entry, "stat").read_text(errors="replace")
                parent = int(text.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, left = set(), [pid]
    while left:
        for child in children.get(left.pop(), ()):
            found.add(child)
            left.append(child)
    return found


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _amplified(bench: Bench) -> Iterator[str]:
    for name, item in (("set", "set()"), ("int", "2**40")):
        with bench.session() as session:
            session.run(f"def f(): return [{item}] * 650_000")
            before = resident_bytes()
            (result,) = session.call("f", [()])
            growth = resident_bytes() - before
            if growth > HOST_GROWTH_BYTES:
                yield f"4 MiB of {name}s became {growth >> 20} MiB of the host ({result.status})"


def _oom_score(bench: Bench) -> Iterator[str]:
    if OPEN not in bench.policies():
        raise Inapplicable("sessions share no control group")
    yield from bench.probe(_OOM_SCORE, OPEN).successes()


ATTACKS = (
    Attack("A37", "a program inherits descriptors", _inherited, harmless=True),
    Attack("A45", "garbage on the line harms others", _garbage),
    Attack("A73", "forged frames break the result or the host", _forged),
    Attack("A74", "the code's own death is taken for a failure of the sandbox", _own_death),
    Attack("A75", "a small answer takes much of the host's memory", _amplified),
    Attack("A76", "answers that the code does not read pile up", _unread),
    Attack("A78", "calls that nobody waits for keep the host busy past the time", _busy_host),
    Attack("A77", "code makes the kernel kill the runner in its place", _oom_score),
)
