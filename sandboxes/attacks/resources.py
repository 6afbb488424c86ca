"""Attacks on the machine's memory, disk and tables, by which one program takes what all need."""

from collections.abc import Iterator

from sandboxes.attacks.attack import Attack, Check
from sandboxes.attacks.bench import GRACE_S, LIMITS, OPEN, PLAIN, SHORT, Bench, Report
from sandboxes.base import ExecStatus, Limits

MIB = 2**20
_PROCESSES = 32  # of a session that may have any
_TABLE = 1024  # entries that a session may have in a table of the kernel's
_BUSY = Limits(wall_s=3.0)

_FORKS = """
import time
count = 0
try:
    while count < 400:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError as error:
    say("stopped by", error)
say("count", count)
"""

_EXPONENTIAL = """
import time
say("end", "begins")
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""

_THREADS = """
import threading, time
count = 0
try:
    while count < 5000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except (RuntimeError, MemoryError) as error:
    say("stopped by", error)
say("count", count)
end()
os._exit(0)
"""

_ONE_PROCESS = """
kept, count = [], 0
try:
    while count < 10240:
        kept.append(b"x" * 2**24)
        count += 16
        say("count", count)
except MemoryError:
    kept.clear()
"""

_MANY_PROCESSES = """
import struct, time
receiver, sender = os.pipe()
for _ in range(24):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        try:
            kept = [b"x" * 2**23 for _ in range(16)]
            os.write(sender, struct.pack("i", os.getpid()))
            time.sleep(60)
        finally:
            os._exit(0)
os.set_blocking(receiver, False)
time.sleep(2.5)
try:
    full = [pid for pid, in struct.iter_unpack("i", os.read(receiver, 100))]
except BlockingIOError:
    full = []
# What the kernel has killed meanwhile no longer takes anything.
say("count", 128 * sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in full))
"""

_MEMFD = """
count, files = 0, []
try:
    while count < 2048:
        files.append(call("memfd_create", b"x", 0))
        os.posix_fallocate(files[-1], 0, 15 * 2**20)
        count += 15
except OSError as error:
    say("stopped by", error)
say("count", count)
"""

_FOLDERS = """
folders = sorted({".", "/tmp", "/dev/shm", "/var/tmp", "/run", "/dev", "/", "/dev/mqueue", "/proc",
    "/run/lock", os.environ.get("TMPDIR", "."), os.environ.get("HOME", "."), BAIT["folder"]})
"""

_DISK = (
    _FOLDERS
    + """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
total, piece = 0, bytes(2**20)
for number, folder in enumerate(folders):
    kept = []
    try:
        while total < 2**30:
            kept.append(os.open(f"{folder}/fill{len(kept)}", os.O_WRONLY | os.O_CREAT, 0o600))
            os.unlink(f"{folder}/fill{len(kept) - 1}")
            try:
                for _ in range(15):
                    total += os.write(kept[-1], piece)
            except OSError as error:
                if error.errno != 27:
                    raise
    except OSError as error:
        say(f"{folder} stopped by", error)
say("count", total >> 20)
"""
)

_INODES = (
    _FOLDERS
    + """
count = 0
for folder in folders:
    try:
        for number in range(50_000):
            os.mkdir(f"{folder}/{BAIT['marker']}{number}")
            count += 1
    except OSError as error:
        say(f"{folder} stopped by", error)
say("count", count)
"""
)

_ATTRIBUTES = """
count = 0
try:
    open("attributes", "w").close()
    for number in range(100_000):
        os.setxattr("attributes", f"user.{number}", bytes(60_000))
        count += 60_000
except OSError as error:
    say("stopped by", error)
say("count", count >> 20)
"""

# Pages that belong to no process and to no file.
_PIPES = """
import fcntl
count, pipes = 0, []
try:
    while count < 2**31:
        pipes.append(os.pipe2(os.O_NONBLOCK))
        for size in (2**20, 2**18, 2**16):
            try:
                fcntl.fcntl(pipes[-1][1], 1031, size)
                break
            except OSError:
                pass
        try:
            while True:
                count += os.write(pipes[-1][1], bytes(2**16))
        except BlockingIOError:
            pass
except OSError as error:
    say("stopped by", error)
say("count", count >> 20)
"""

_SYSTEM_V = """
attempt("shared memory", lambda: call("shmctl", call("shmget", 0, 2**30, 0o600), 0, 0))
attempt("semaphores", lambda: call("semctl", call("semget", 0, 10, 0o600), 0, 0))
attempt("messages", lambda: call("msgctl", call("msgget", 0, 0o600), 0, 0))
def queue():
    os.close(call("mq_open", b"attack", 0o102, 0o600, 0))
    libc.mq_unlink(b"/attack")
attempt("queue", queue)
"""

_BIG_FILE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = 0
try:
    with open("big", "wb", 0) as file:
        while written < 10 * 2**30:
            written += file.write(bytes(2**20))
except OSError as error:
    say("stopped by", error)
say("count", written >> 20)
def sparse():
    with open("sparse", "wb") as file:
        file.truncate(2**40)
attempt("sparse", sparse)
attempt("allocate", lambda: os.posix_fallocate(os.open("a", os.O_RDWR | os.O_CREAT), 0, 2**40))
"""

_DESCRIPTORS = """
files = []
try:
    while len(files) < 100_000:
        files.append(os.dup(0))
except OSError as error:
    say("stopped by", error)
say("count", len(files))
"""

_TABLES = """
import select
def filled(name, make):
    kept = []
    try:
        while len(kept) < 20_000:
            kept.append(make())
    except OSError as error:
        say(name + " stopped by", error)
    say("count " + name, len(kept))
    for item in kept:
        if isinstance(item, int):
            try:
                os.close(item)
            except OSError:
                pass
    del kept
filled("epoll", select.epoll)
filled("inotify", lambda: call("inotify_init1", 0))
# Timers count as pending signals; they have no descriptor, so the number is all that stands
# between them and the kernel's memory.
timer = ctypes.c_int()
filled("timer", lambda: (call("timer_create", 1, 0, ctypes.byref(timer)), None))
"""

_ZOMBIES = """
count = 0
try:
    for _ in range(1000):
        if os.fork() == 0:
            os._exit(0)
        count += 1
except OSError as error:
    say("stopped by", error)
say("count", count)
"""

# A child of the parent's, not of ours: nobody would bury it.
_SIBLINGS = """
CLONE_PARENT, SIGCHLD = 0x8000, 17
count = 0
try:
    for _ in range(100):
        if call("clone", CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)
        count += 1
except OSError as error:
    say("stopped by", error)
say("count", count)
"""

_LIMITS = """
import resource
for name in ("AS", "NPROC", "NOFILE", "FSIZE", "CORE", "CPU", "MEMLOCK", "MSGQUEUE", "RTPRIO",
             "NICE", "SIGPENDING"):
    limit = getattr(resource, "RLIMIT_" + name, None)
    if limit is None:
        continue
    soft, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(limit, (soft, hard + 1))
            say(name, "done: raised")
        except (OSError, ValueError) as error:
            say(name, error)
    elif name not in ("NPROC", "SIGPENDING", "MSGQUEUE", "CPU"):
        say(name, "done: it has no limit")
attempt("nice", os.nice, -5)
attempt("real time", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(5))
attempt_call("ioprio_set", 1, 0, 1 << 13)
"""


def _bounded(code: str, most: int, *, policies: str = "both", limits: Limits = LIMITS) -> Check:
    """A check that what the probe counts stays within `most`."""

    def check(bench: Bench) -> Iterator[str]:
        for policy in bench.policies() if policies == "both" else (OPEN,):
            report = bench.probe(code, policy, limits)
            yield from _over(report, most)

    return check


def _over(report: Report, most: int) -> Iterator[str]:
    killed = report.result.status is ExecStatus.OUT_OF_MEMORY
    if not killed:
        yield from report.successes()
    counts = {name: value for name, value in report.said.items() if name.startswith("count")}
    if not counts and not killed:
        yield f"{report.where} inconclusive: nothing was counted"
    for name, value in counts.items():
        if int(value) > most:
            yield f"{report.where} {name} {value}, more than {most}"


def _no_fork(bench: Bench) -> Iterator[str]:
    yield from _over(bench.probe(_FORKS, PLAIN), 0)
    if OPEN in bench.policies():
        yield from _over(bench.probe(_FORKS, OPEN), _PROCESSES)


def _exponential(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        report = bench.probe(_EXPONENTIAL, policy, SHORT)
        yield from report.unfinished()
        if report.result.wall_s > SHORT.wall_s + GRACE_S:
            yield f"{report.where} took {report.result.wall_s:.1f} s"


def _typed_out_of_memory(bench: Bench) -> Iterator[str]:
    code = "kept = [b'x' * 2**24 for _ in range(9999)]"
    limits = Limits(memory_bytes=192 * MIB)
    for policy in bench.policies():
        with bench.session(policy, limits) as session:
            status = session.run(code).status
            if status is not ExecStatus.OUT_OF_MEMORY:
                yield f"a session: {status}"
            result = session.run("1 + 1")
            if result.stdout != "2\n":
                result = session.run("1 + 1")
            if result.stdout != "2\n":
                yield f"the session is of no use afterwards: {result.status} {result.stderr}"
        status = bench.probe(code, policy, limits).result.status
        if status is not ExecStatus.OUT_OF_MEMORY:
            yield f"a program: {status}"


_MEMORY = LIMITS.memory_bytes // MIB
_DISK_MIB = LIMITS.disk_bytes // MIB
_GROUP = _MEMORY + _DISK_MIB + 256  # a session's control group holds its runner as well

ATTACKS = (
    Attack("A09", "a fork bomb takes more processes than a session may have", _no_fork),
    Attack("A10", "an exponential fork bomb outlives its time", _exponential),
    Attack("A11", "code starts threads without end", _bounded(_THREADS, _TABLE)),
    Attack("A12", "one process takes 10 GiB", _bounded(_ONE_PROCESS, _MEMORY)),
    Attack("A13", "many processes take together what one may not",
           _bounded(_MANY_PROCESSES, _GROUP, policies="open")),
    Attack("A14", "files in memory escape the limit on memory", _bounded(_MEMFD, _DISK_MIB)),
    Attack("A15", "files fill the disk or the memory", _bounded(_DISK, _DISK_MIB + 1),
           claim="disk"),
    Attack("A64", "empty folders fill the table of inodes", _bounded(_INODES, 10_000),
           claim="disk"),
    Attack("A65", "attributes of files fill the memory", _bounded(_ATTRIBUTES, _DISK_MIB),
           claim="disk"),
    Attack("A66", "pipes fill the kernel's memory", _bounded(_PIPES, 64)),
    Attack("A67", "the kernel's tables fill up", _bounded(_TABLES, _TABLE)),
    Attack("A16", "memory or queues of System V outlive their maker",
           _bounded("count = 0\n" + _SYSTEM_V + "say('count', 0)", 0), harmless=True),
    Attack("A34", "zombies pile up", _bounded(_ZOMBIES, _PROCESSES)),
    Attack("A68", "code gives the runner children of its own", _bounded(_SIBLINGS, _PROCESSES)),
    Attack("A35", "a file grows past its limit", _bounded(_BIG_FILE, LIMITS.max_file_bytes // MIB)),
    Attack("A36", "code opens 100,000 descriptors", _bounded(_DESCRIPTORS, _TABLE)),
    Attack("A38", "code raises its limits or its priority", _bounded(
        _LIMITS + "say('count', 0)", 0)),
    Attack("A46", "running out of memory is taken for something else", _typed_out_of_memory),
)  # fmt: skip
