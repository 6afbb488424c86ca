"""Attacks on the host's files, and on the folder that the host reads results from."""

import contextlib
import os
import time
from collections.abc import Iterator

from sandboxes.attacks.attack import Attack, all_refused
from sandboxes.attacks.bench import OPEN, PLAIN, Bench, Inapplicable
from sandboxes.base import Policy, SandboxError, Session

# Says how much was read, and never what: the evidence is printed.
_READER = """
def read(path):
    with open(path, "rb", 0) as file:
        size = len(file.read(80))
    if size == 0:
        raise OSError(2, "an empty file is none, as where another is mounted over it")
    return f"{size} bytes"
def names(path):
    found = os.listdir(path)
    if not found:
        raise OSError(2, "an empty folder is none")
    return f"{len(found)} names"
"""

_READ = (
    _READER
    + """
folder, climb = BAIT["folder"], "../" * 20
for path in (
    f"{folder}/canary.txt", f"{climb}{folder}/canary.txt", f"/proc/1/root{folder}/canary.txt",
    f"/proc/self/root{folder}/canary.txt", f"/proc/self/cwd/{climb}{folder}/canary.txt",
    f"/dev/../{folder}/canary.txt", f"/mnt{folder}/canary.txt", f"/host{folder}/canary.txt",
):
    attempt("read " + path, read, path)
attempt("list " + folder, names, folder)
"""
)

# Of the machine itself: reading some of them changes something, so nothing unconfined may.
_READ_SYSTEM = (
    _READER
    + """
for path in (
    "/etc/shadow", "/etc/ssh/sshd_config", BAIT["repository"] + "/pyproject.toml",
    BAIT["home"] + "/.bashrc", BAIT["home"] + "/.ssh/id_rsa", f"/proc/{BAIT['host']}/environ",
    f"/proc/{BAIT['host']}/cmdline", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/sched_debug",
    "/sys/kernel/debug/tracing/trace", "/sys/firmware/dmi/tables/DMI", "/dev/mem", "/dev/vda",
):
    attempt("read " + path, read, path)
for path in (BAIT["home"] + "/.ssh", "/boot"):
    attempt("list " + path, names, path)
"""
)

_ENVIRONMENT = """
def values(path):
    with open(path, "rb") as file:
        return file.read()
def seen(data):
    if BAIT["variable"].encode() in data or BAIT["prefix"].encode() in data:
        return "the canary"
    raise OSError(2, "not there")
attempt("os.environ", lambda: seen(repr(os.environ).encode()))
def block():
    pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    found, position = b"", 0
    while pointer and pointer[position]:
        found, position = found + pointer[position] + b"|", position + 1
    return seen(found)
attempt("the process's own block", block)
pids = {"self", "1", str(os.getppid()), BAIT["host"], BAIT["victim"], *map(str, visible_pids())}
for pid in pids:
    attempt(f"/proc/{pid}/environ", lambda: seen(values(f"/proc/{pid}/environ")))
"""

# Opening for writing is the proof for files that must not be harmed; the bait may be.
_WRITE = """
folder = BAIT["folder"]
def opened(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags))
attempt("overwrite", opened, folder + "/writable.txt", os.O_WRONLY | os.O_TRUNC)
attempt("create", opened, folder + "/open/new", os.O_WRONLY | os.O_CREAT)
attempt("mkdir", os.mkdir, folder + "/open/folder")
attempt("link", os.symlink, "/", folder + "/open/link")
attempt("times", os.utime, folder + "/writable.txt")
attempt("mode", os.chmod, folder + "/writable.txt", 0o777)
attempt("owner", os.chown, folder + "/writable.txt", os.getuid(), os.getgid())
attempt("attribute", os.setxattr, folder + "/writable.txt", "user.attack", b"x")
attempt("truncate", os.truncate, folder + "/writable.txt", 0)
attempt("rename", os.rename, folder + "/writable.txt", folder + "/open/moved")
attempt("runner", opened, BAIT["repository"] + "/sandboxes/runner.py")
for path in (
    sys.executable, os.__file__, "/runner.py", "/usr/bin/env", "/etc/passwd", "/etc/hosts",
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
    "/proc/sys/vm/drop_caches", "/proc/1/mem",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max",
):
    if path not in ("/proc/1/mem",) or os.getpid() != 1:
        attempt("open " + path, opened, path)
"""

_SYSTEM_FOLDERS = """
name = "/" + BAIT["marker"]
def created(folder):
    os.close(os.open(folder + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(folder + name)
library = os.path.dirname(os.__file__)
for folder in (
    "", "/usr", "/usr/bin", "/etc", "/dev", "/proc", "/sys", "/run", "/var", "/home", "/root",
    "/lib", "/mnt", "/opt", "/srv", library, library + "/site-packages", BAIT["repository"],
    sys.prefix, "/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/dev/pts", "/dev/mqueue",
):
    attempt("create in " + (folder or "/"), created, folder)
"""

# Writing what stands there already proves as much, and harms nothing.
_CORE_PATTERN = """
def rewrite(path):
    try:
        with open(path) as file:
            text = file.read()
    except OSError:
        text = "core"
    with open(path, "w") as file:
        file.write(text)
attempt("core_pattern", rewrite, "/proc/sys/kernel/core_pattern")
attempt("modprobe", rewrite, "/proc/sys/kernel/modprobe")
"""

_DEVICES = """
import stat
usual = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr",
    "shm", "ptmx", "pts", "mqueue", "core", "console"}
def others():
    found = sorted(set(os.listdir("/dev")) - usual)
    if not found:
        raise OSError(2, "none")
    return found
attempt("other devices", others)
for kind, number in ((stat.S_IFCHR, os.makedev(1, 1)), (stat.S_IFBLK, os.makedev(254, 0))):
    for folder in (".", "/tmp", "/dev/shm", "/dev"):
        path = f"{folder}/device"
        attempt(f"mknod {path} {kind:o}", os.mknod, path, kind | 0o666, number)
for name in ("mem", "kmsg", "port", "vda", "sda", "kvm", "net/tun", "fuse", "vsock", "tty", "tty0",
    "loop-control", "mapper/control", "vhost-vsock", "userfaultfd", "dri/card0"):
    attempt("open " + name, lambda: os.close(os.open("/dev/" + name, os.O_RDWR)))
"""

_PLANT = """
import threading, stat
with open("made.txt", "w") as file:
    file.write("made inside")
planted = {
    "link": lambda: os.symlink(BAIT["folder"] + "/canary.txt", "link"),
    "library": lambda: os.symlink(os.__file__, "library"),
    "folder": lambda: os.symlink(os.path.dirname(os.__file__), "folder"),
    "root": lambda: os.symlink("/", "root"),
    "away": lambda: os.symlink(BAIT["folder"], "away"),
    "zero": lambda: os.symlink("/dev/zero", "zero"),
    "fifo": lambda: os.mkfifo("fifo"),
    "directory": lambda: os.mkdir("directory"),
    "out": lambda: os.symlink(BAIT["folder"] + "/open", "out"),
    "loop": lambda: os.symlink("loop", "loop"),
    "file": lambda: os.symlink(BAIT["folder"] + "/writable.txt", "file"),
}
for name, plant in planted.items():
    try:
        plant()
        say("planted " + name, "yes")
    except OSError as error:
        say("not planted " + name, error)
"""
# Through a folder that is a link, the session reads for the host what it may read itself.
_THROUGH = ("folder/os.py", "root/etc/passwd", "away/canary.txt")
_FETCHED = (
    *_THROUGH,
    *("link", "library", "zero", "fifo", "directory", "loop"),
    *("/etc/passwd", "../" * 9 + "etc/passwd", "directory/../../etc/passwd", "", ".", "..", "a\0b"),
    *("/dev/zero", "/dev/stdin", "/proc/self/environ", "./../../proc/self/status"),
)

_SWAP = """
import threading, time
os.mkdir("real")
def swap():
    while True:
        try:
            with open("new", "w") as file:
                file.write("mine")
            os.replace("new", "swapped")
            os.symlink(BAIT["folder"] + "/canary.txt", "new")
            os.replace("new", "swapped")
            os.symlink(BAIT["folder"], "way")
            os.unlink("way")
            os.rename("real", "way")
            os.rename("way", "real")
        except OSError as error:
            failed = error
threading.Thread(target=swap, daemon=True).start()
"""
_RACE_S = 1.5

_PACKAGES = """
import bait_package
package = os.path.dirname(bait_package.__file__)
say("value", bait_package.VALUE)
def read(path):
    with open(path, "rb") as file:
        return file.read()
attempt("beside", read, package + "/../canary.txt")
attempt("through a link", read, package + "/link.txt")
attempt("write", lambda: open(package + "/new.py", "w").close())
attempt("overwrite", lambda: open(bait_package.__file__, "a").close())
"""

_HANDLES = """
path = ctypes.create_string_buffer(128)
ctypes.c_uint.from_buffer(path).value = 100
mount = ctypes.c_int()
attempt_call("open_by_handle_at", -100, path, 0)
"""


def _has_folder(session: Session) -> bool:
    try:
        session.put("plain.txt", b"plain")
    except SandboxError:
        return False
    return True


def _artifacts(bench: Bench) -> Iterator[str]:
    with bench.session() as session:
        if not _has_folder(session):
            raise Inapplicable("this backend has no folder to write to")
        yield from bench.ask(session, _PLANT).unfinished()
        if session.get("made.txt") != b"made inside" or session.get("plain.txt") != b"plain":
            yield "inconclusive: get() does not return the session's own files"
        for name in _FETCHED:
            started_s = time.monotonic()
            try:
                data = session.get(name, 2**16)
                if name not in _THROUGH or bench.bait.secret.encode() in data:
                    yield f"get({name!r}) returned {len(data)} bytes"
                if len(data) > 2**16:
                    yield f"get({name!r}) returned more than it was asked for"
            except (ValueError, OSError):
                pass  # as it should
            except SandboxError as error:
                yield f"get({name!r}) is taken for a failure of the sandbox: {error}"
            if time.monotonic() - started_s > 2:
                yield f"get({name!r}) took {time.monotonic() - started_s:.1f} s"
        for name in ("out/new", "file", "../escaped", "/tmp/../escaped", "root/etc/passwd"):
            with contextlib.suppress(ValueError, OSError):
                session.put(name, b"written through")
                yield f"put({name!r}) was accepted"
        started_s = time.monotonic()
        with contextlib.suppress(OSError):
            session.put("fifo", b"never read")
        if time.monotonic() - started_s > 2:
            yield f"put() to a fifo took {time.monotonic() - started_s:.1f} s"


def _race(bench: Bench) -> Iterator[str]:
    with bench.session() as session:
        if not _has_folder(session):
            raise Inapplicable("this backend has no folder to write to")
        yield from bench.ask(session, _SWAP).unfinished()
        deadline_s, own = time.monotonic() + _RACE_S, 0
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                data = session.get("swapped")
                own += data == b"mine"
                if data not in (b"mine", b""):
                    yield f"get() followed a link: {len(data)} bytes"
                    return
            for folder in ("way", "real"):
                with contextlib.suppress(OSError):
                    data = session.get(f"{folder}/canary.txt")
                    yield f"get() went through a link: {len(data)} bytes"
                    return
        if not own:
            yield "inconclusive: get() never saw the file"


def _hostile_names(bench: Bench) -> Iterator[str]:
    sandbox = bench.sandbox()
    for name in ("../up", "/absolute", "a/../../up", "", ".", "nul\0", "x" * 5000):
        try:
            result = sandbox.run("import os; print(os.listdir())", files={name: b"x"})
        except (ValueError, OSError):
            continue
        except SandboxError as refused:
            if "folder" not in str(refused):
                yield f"files={{{name[:20]!r}: ...}} broke the sandbox: {refused}"
            continue
        yield f"files={{{name[:20]!r}: ...}} was accepted: {result.status} {result.stderr[-200:]!r}"


def _packages(bench: Bench) -> Iterator[str]:
    for base in (PLAIN, OPEN):
        if base not in bench.policies():
            continue
        folder = os.fspath(bench.bait.packages)
        policy = Policy(base.network, base.subprocesses, packages=(folder,))
        report = bench.probe(_PACKAGES, policy)
        yield from report.successes()
        if report["value"] != "42":
            yield f"inconclusive: the package was not imported: {report.result.stderr[-200:]}"


ATTACKS = (
    Attack("A05", "code reads the host's files", all_refused(_READ), harmless=True),
    Attack("A80", "code reads what belongs to the machine", all_refused(_READ_SYSTEM)),
    Attack("A06", "code finds the host's environment", all_refused(_ENVIRONMENT), harmless=True),
    Attack("A07", "code opens the host's files for writing", all_refused(_WRITE)),
    Attack("A08", "code writes the host's core_pattern", all_refused(_CORE_PATTERN)),
    Attack("A28", "code makes or opens a device", all_refused(_DEVICES)),
    Attack("A31", "the host follows what the session planted in its folder", _artifacts),
    Attack("A32", "the host loses a race against swapped links", _race),
    Attack("A54", "files for a program land outside of its folder", _hostile_names),
    Attack(
        "A55",
        "a file handle opens what no path reaches",
        all_refused(_HANDLES, frozenset({"EPERM", "EACCES", "ENOSYS"})),
        harmless=True,
    ),
    Attack("A62", "code creates files in a folder of the system", all_refused(_SYSTEM_FOLDERS)),
    Attack("A63", "code leaves the package folder that it may import from", _packages),
)
