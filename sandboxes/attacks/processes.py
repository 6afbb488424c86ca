"""Attacks on other processes: the runner, other sessions, and those of the host."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sandboxes.attacks.attack import Attack, all_refused
from sandboxes.attacks.bench import GRACE_S, OPEN, PLAIN, REFUSALS, Bench, Inapplicable
from sandboxes.base import Limits, Policy, Session

_SIGNALS = """
import signal
quiet = signal.SIGURG  # does nothing to a process that has not asked for it
me, parent = os.getpid(), os.getppid()
targets = {"parent": parent, "first": 1, "victim": int(BAIT["victim"]), "host": int(BAIT["host"])}
for name, pid in targets.items():
    if pid in (0, me):
        continue
    attempt("kill " + name, os.kill, pid, quiet)
    if pid != 1:  # that would be kill(-1), which succeeds even where it may signal nobody
        attempt("killpg " + name, os.killpg, pid, quiet)
    attempt(name + " tkill", call, "tkill", pid, int(quiet))
    attempt(name + " tgkill", call, "tgkill", pid, pid, int(quiet))
    information = ctypes.create_string_buffer(128)
    ctypes.c_int.from_buffer(information, 8).value = -1
    attempt(name + " sigqueue", call, "rt_sigqueueinfo", pid, int(quiet), information)
    attempt(name + " pidfd", lambda: os.close(call("pidfd_open", pid, 0)))
if parent != 0:
    attempt("get group of parent", os.kill, -parent, 0)
try:
    os.kill(-1, quiet)  # the return value says nothing: the sibling and the victim do
except OSError as error:
    say("all", error)
"""

_TRACE = """
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(16)
here = Piece(ctypes.addressof(buffer), 16)
there = Piece(ctypes.addressof(buffer), 16)
me = os.getpid()
pids = {os.getppid(), 1, int(BAIT["victim"]), int(BAIT["host"])}
for pid in sorted((pids | visible_pids()) - {0, me})[:40]:
    pieces = (ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    attempt(f"attach {pid}", call, "ptrace", 16, pid, 0, 0)
    attempt(f"seize {pid}", call, "ptrace", 0x4206, pid, 0, 0)
    attempt(f"read {pid}", call, "process_vm_readv", pid, *pieces)
    attempt(f"write {pid}", call, "process_vm_writev", pid, *pieces)
    attempt(f"compare {pid}", call, "kcmp", me, pid, 1, 0, 0)
"""

_PROC = """
me = os.getpid()
pids = {1, os.getppid(), int(BAIT["victim"]), int(BAIT["host"])}
def read(path):
    with open(path, "rb") as file:
        return f"{len(file.read(100))} bytes"
def names(path):
    return f"{len(os.listdir(path))} names"
for pid in sorted((pids | visible_pids()) - {0, me})[:40]:
    for name in ("mem", "maps", "environ", "cmdline", "status", "stat", "io", "syscall", "wchan"):
        attempt(f"/proc/{pid}/{name}", read, f"/proc/{pid}/{name}")
    for name in ("fd", "task", "cwd/.", "root/.", "map_files", "ns"):
        attempt(f"/proc/{pid}/{name}", names, f"/proc/{pid}/{name}")
"""

_OTHERS_LIMITS = """
import resource
# Setting what is set already proves as much, and harms nobody.
limit = resource.RLIMIT_NOFILE
for pid in {SIBLINGS, os.getppid(), int(BAIT["victim"])} - {0, 1, os.getpid()}:
    attempt(f"prlimit {pid}", lambda: resource.prlimit(pid, limit, resource.prlimit(pid, limit)))
    attempt(f"affinity {pid}", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid)))
    attempt(f"priority {pid}", lambda: os.setpriority(0, pid, os.getpriority(0, pid)))
    attempt(f"scheduler {pid}", lambda: os.sched_setscheduler(
        pid, os.sched_getscheduler(pid), os.sched_getparam(pid)))
    attempt(f"io priority {pid}", lambda: call("ioprio_set", 1, pid, call("ioprio_get", 1, pid)))
    attempt(f"move pages {pid}", call, "move_pages", pid, 0, 0, 0, 0, 0)
# Of a user that nobody is: to get as far as "no such process" is to have succeeded.
nobody = 4_000_000
attempt_call("setpriority", os.PRIO_USER, nobody, 19)
attempt_call("ioprio_set", 3, nobody, 3 << 13)
"""

# A signal that the kernel sends on our behalf, when a pipe or a socket becomes ready.
_OWNERS = """
import fcntl, signal, socket, struct
import contextlib
pids = [pid for pid in (TARGETS) if pid not in (0, 1, os.getpid())]
def own(pid, how):
    left, right = socket.socketpair()
    with left, right:
        if how == "fcntl":
            fcntl.fcntl(left, fcntl.F_SETOWN, pid)
        elif how == "ioctl":
            fcntl.ioctl(left, 0x8901, struct.pack("i", pid))
        else:
            fcntl.fcntl(left, 15, struct.pack("ii", 0, pid))
        if how != "ioctl":
            with contextlib.suppress(OSError):
                fcntl.fcntl(left, fcntl.F_SETSIG, signal.SIGURG)
                flags = fcntl.fcntl(left, fcntl.F_GETFL)
                fcntl.fcntl(left, fcntl.F_SETFL, flags | os.O_ASYNC)
        right.send(b"x")
        # Out-of-band data sends SIGURG to the owner, whatever F_SETSIG says.
        right.send(b"!", socket.MSG_OOB)
for pid in pids:
    for how in ("fcntl", "ioctl", "extended"):
        try:
            own(pid, how)
        except OSError as error:
            say(f"{how} {pid}", error)
"""

_LISTEN = """
import signal
hits = []
signal.signal(signal.SIGURG, lambda *_: hits.append(1))
say("pid", os.getpid())
"""
_HEARD = """
say("hits", len(hits))
"""

_SEE = """
others = sorted(visible_pids() - {os.getpid()})
say("others", len(others))
"""

_DAEMON = """
import signal, time
if os.fork() == 0:
    os.setsid()
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    if os.fork() == 0:
        while True:
            time.sleep(0.1)
    os._exit(0)
"""

_HARD_TO_KILL = """
import signal, threading, time
libc.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
for action in (os.setsid, lambda: os.setpgid(0, 0)):
    try:
        action()
    except OSError as error:
        say("group", error)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
threading.Thread(target=lambda: [time.sleep(1) for _ in range(99)]).start()
"""

_PRIVILEGES = """
class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint), ("pid", ctypes.c_int)]
data = (ctypes.c_uint * 6)()
call("capget", ctypes.byref(Header(0x20080522, 0)), data)
def expect(name, found, wanted):
    say(name, found if found == wanted else f"done: {found}, not {wanted}")
expect("capabilities", list(data), [0] * 6)
say("bounding set", [n for n in range(41) if libc.prctl(23, n, 0, 0, 0) == 1])
expect("no new privileges", libc.prctl(39, 0, 0, 0, 0), 1)
expect("seccomp", libc.prctl(21, 0, 0, 0, 0), 2)
expect("groups", [group for group in os.getgroups() if group != 65534], [])
attempt("setuid", os.setuid, 0)
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("setgid", os.setgid, 0)
attempt("setgroups", os.setgroups, [0])
for program in ("su", "sudo", "mount", "newuidmap", "passwd", "pkexec"):
    for folder in ("/usr/bin", "/bin", "/usr/lib/dbus-1.0"):
        path = f"{folder}/{program}"
        if os.path.exists(path) and os.stat(path).st_mode & 0o4000:
            say("setuid program", path)
"""


def _signals(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy) as siblings:
            for sibling in siblings:
                yield from bench.ask(sibling, _LISTEN, policy).unfinished()
            yield from bench.probe(_SIGNALS, policy).successes()
            yield from _heard(bench, siblings, policy)


def _owners(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy) as siblings:
            listening = [bench.ask(sibling, _LISTEN, policy) for sibling in siblings]
            pids = ", ".join(report["pid"] for report in listening)
            code = _OWNERS.replace("TARGETS", f"os.getppid(), {bench.bait.victim}, {pids}")
            yield from bench.probe(code, policy).unfinished()
            yield from _heard(bench, siblings, policy)


def _heard(bench: Bench, siblings: Iterable[Session], policy: Policy) -> Iterator[str]:
    for sibling in siblings:
        report = bench.ask(sibling, _HEARD, policy)
        yield from report.unfinished()
        if report["hits"] != "0":
            yield f"{report.where} another session got {report['hits']} signals"


def _limits_of_others(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy) as siblings:
            pids = [bench.ask(sibling, _LISTEN, policy)["pid"] for sibling in siblings]
            report = bench.probe(_OTHERS_LIMITS.replace("SIBLINGS", ", ".join(pids)), policy)
            yield from report.successes()
            for name in ("setpriority", "ioprio_set"):
                if report[name] not in REFUSALS:
                    yield f"{report.where} {name} of a whole user: {report[name]}"


def _secluded(bench: Bench) -> Iterator[Policy]:
    """The policies under which a session has not even its runner's processes in sight."""
    for policy in bench.policies():
        if bench.backend != "docker" or policy == PLAIN:  # else alone with it in a container
            yield policy


def _looks(bench: Bench) -> Iterator[str]:
    for policy in _secluded(bench):
        yield from bench.probe(_PROC, policy).successes()


def _sees(bench: Bench) -> Iterator[str]:
    for policy in _secluded(bench):
        with bench.siblings(policy):
            report = bench.probe(_SEE, policy)
        yield from report.unfinished()
        if report["others"] != "0":
            yield f"{report.where} sees {report['others']} others"


def _daemon(bench: Bench) -> Iterator[str]:
    if OPEN not in bench.policies():
        raise Inapplicable("this backend starts no processes")
    report = bench.probe(_DAEMON, OPEN)
    yield from report.unfinished()
    if report.result.wall_s > GRACE_S:
        yield f"the result took {report.result.wall_s:.1f} s"
    if pids := bench.bait.survivors():
        yield f"a program's daemons live on: {pids}"
    with bench.session(OPEN) as session:
        yield from bench.ask(session, _DAEMON, OPEN).unfinished()
    if pids := bench.bait.survivors():
        yield f"a session's daemons live on: {pids}"


def _hard_to_kill(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.session(policy) as session:
            yield from bench.ask(session, _HARD_TO_KILL, policy).unfinished()
            if not bench.bait.alive():
                yield "inconclusive: the host does not see the session's process"
        if pids := bench.bait.survivors():
            yield f"alive after the session was closed: {pids}"


def _privileges(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.session(policy) as session:
            report = bench.ask(session, _PRIVILEGES, policy)
            yield from report.successes()
            # A plain user cannot empty it, and with no_new_privs cannot draw on it either.
            if report["bounding set"] != "[]" and (os.geteuid() == 0 or bench.backend == "jail"):
                yield f"{report.where} bounding set {report['bounding set']}"
            pids = bench.bait.alive()
            if not pids:
                yield "inconclusive: the host does not see the session's process"
            for pid in pids:
                with contextlib.suppress(OSError):
                    uids = _user_ids(pid)
                    if os.geteuid() == 0 and "0" in uids:
                        yield f"{report.where} process {pid} is root on the host: {uids}"


def _user_ids(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("Uid:")).split()[1:]


def _spins_between_turns(bench: Bench) -> Iterator[str]:
    limits = Limits(cpu_s=0.5)
    spin = "import threading, signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    spin += "def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    with bench.session(limits=limits) as session:
        session.run(bench.source(spin))
        time.sleep(1.5)
        for pid in bench.bait.alive():
            before_s = _cpu_s(pid)
            time.sleep(0.5)
            if before_s > 1 and _cpu_s(pid) - before_s > 0.1:
                yield f"{before_s:.1f} s of CPU with a limit of 0.5 s, and going on"


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ATTACKS = (
    Attack("A24", "a signal reaches a process outside", _signals),
    Attack("A25", "code traces a process outside, or reads its memory",
           all_refused(_TRACE, REFUSALS)),
    Attack("A49", "code looks into another process through /proc",
           _looks, harmless=True),
    Attack("A29", "code has or gains privileges", _privileges, harmless=True),
    Attack("A30", "code sees processes of others", _sees, harmless=True),
    Attack("A33", "a daemon outlives its program or delays the result", _daemon),
    Attack("A50", "a session hides from its end", _hard_to_kill),
    Attack("A51", "the kernel signals others on the code's behalf", _owners, harmless=True),
    Attack("A52", "code changes limits or priority of others", _limits_of_others, harmless=True),
    Attack("A71", "a thread computes without end between two turns", _spins_between_turns),
)  # fmt: skip
