"""Attacks on the kernel's administrative and rarely tested calls."""

import platform
from collections.abc import Iterator

from sandboxes.attacks.attack import Attack, all_refused
from sandboxes.attacks.bench import REFUSALS, Bench, Inapplicable
from sandboxes.base import ExecStatus

# All with arguments that do nothing where they are allowed, except to this process.
_NAMESPACES = """
empty, buffer = b"", ctypes.create_string_buffer(256)
flags = {"user": 0x10000000, "net": 0x40000000, "mount": 0x20000, "pid": 0x20000000,
         "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x80}
for name, flag in flags.items():
    attempt("unshare " + name, call, "unshare", flag)
def clone(flags):
    if call("clone", flags, 0, 0, 0, 0) == 0:
        os._exit(0)
attempt("clone user", clone, 0x10000000 | 17)
attempt("clone user net", clone, 0x50000000 | 17)
attempt_call("clone3", buffer, 88)
attempt_call("setns", 0, 0)
attempt_call("chroot", b"/")
attempt_call("pivot_root", b"/", b"/")
attempt_call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
attempt("bind", call, "mount", b"/", b"/tmp", 0, 4096, 0)
attempt("remount", call, "mount", 0, b"/", 0, 32 | 4096, 0)
attempt_call("umount2", b"/proc", 2)
attempt_call("fsopen", b"tmpfs", 0)
attempt_call("fspick", -100, b"/", 0)
attempt_call("open_tree", -100, b"/", 1)
attempt_call("move_mount", -1, b"", -1, b"", 0)
attempt_call("mount_setattr", -1, b"", 0x1000, buffer, 32)
"""

_ADMINISTRATION = """
buffer = ctypes.create_string_buffer(4096)
attempt_call("reboot", 0, 0, 0, 0)
attempt_call("kexec_load", 0, 99, 0, 0)
attempt_call("kexec_file_load", -1, -1, 0, b"", 0)
attempt_call("init_module", 0, 0, b"")
attempt_call("finit_module", -1, b"", 0)
attempt_call("delete_module", b"attack", 0)
attempt_call("swapon", b"/nothing", 0)
attempt_call("swapoff", b"/nothing")
attempt_call("acct", b"/nothing")
attempt_call("sethostname", b"attack", 6)
attempt_call("settimeofday", 0, 0)
attempt_call("quotactl", 0x800007 << 8, 0, 0, 0)
attempt_call("vhangup")
attempt_call("syslog", 3, buffer, 4096)
"""

_SURFACE = """
buffer = ctypes.create_string_buffer(4096)
attempt_call("bpf", 0, 0, 0)
attempt_call("perf_event_open", buffer, 0, -1, -1, 0)
attempt_call("userfaultfd", 1)
attempt_call("io_uring_setup", 4, buffer)
attempt_call("keyctl", 0, -2, 1)
attempt("search keys", call, "keyctl", 10, -3, b"user", b"attack", 0)
attempt_call("add_key", b"user", b"attack", b"x", 1, -2)
attempt_call("request_key", b"user", b"attack", 0, -2)
attempt_call("personality", 0x0040000)
attempt_call("kcmp", os.getpid(), os.getpid(), 0, 0, 0)
attempt_call("memfd_secret", 0)
attempt_call("modify_ldt", 0, buffer, 16)
attempt_call("iopl", 3)
attempt_call("ioperm", 0x80, 1, 1)
attempt_call("lookup_dcookie", 0, 0, buffer, 64)
attempt_call("move_pages", 0, 0, 0, 0, 0, 0)
attempt_call("migrate_pages", 0, 0, 0, 0)
attempt_call("process_madvise", -1, 0, 0, 0, 0)
attempt_call("ptrace", 0, 0, 0, 0)
attempt_call("name_to_handle_at", -100, b"/", buffer, buffer, 0)
attempt_call("open_by_handle_at", -100, buffer, 0)
attempt_call("fanotify_init", 0, 0)
"""

_TERMINAL = """
import fcntl
terminals = [0, 1, 2]
for path in ("/dev/tty", "/dev/console", "/dev/tty1", "/dev/pts/0"):
    try:
        terminals.append(os.open(path, os.O_RDWR | os.O_NOCTTY))
        say("opened", path)
    except OSError:
        pass
for descriptor in terminals:
    attempt(f"{descriptor} is a terminal", fcntl.ioctl, descriptor, 0x5401, bytes(60))
try:
    terminals.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))  # a container's own
except OSError as error:
    say("no new terminal", error)
for descriptor in terminals:
    attempt(f"{descriptor} TIOCSTI", fcntl.ioctl, descriptor, 0x5412, b"x")
    attempt(f"{descriptor} TIOCLINUX", fcntl.ioctl, descriptor, 0x541C, b"\\0" * 16)
"""

# The entry of 32-bit programs (20 is getpid there), and a number of the x32 interface.
_FOREIGN = """
import mmap
codes = {{
    "int 80": b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3",
    "x32": b"\\xb8\\x27\\0\\0\\x40\\x0f\\x05\\xc3",
}}
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(codes[{which!r}])
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
say("begins", {which!r})
result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
say("result", result)
"""


def _foreign(bench: Bench) -> Iterator[str]:
    if platform.machine() != "x86_64":
        raise Inapplicable("only x86-64 has other entries")
    for policy in bench.policies():
        for which in ("int 80", "x32"):
            report = bench.probe(_FOREIGN.format(which=which), policy)
            refused = report["result"] in ("-38", "-1")  # ENOSYS, EPERM
            killed = report.result.status is ExecStatus.SIGNAL and report["begins"]
            if not refused and not killed:
                yield f"{report.where} {which}: {report.said} {report.result.status}"


ATTACKS = (
    Attack("A26", "code mounts, or makes or enters a namespace",
           all_refused(_NAMESPACES, REFUSALS)),
    Attack("A69", "code administers the machine", all_refused(_ADMINISTRATION, REFUSALS)),
    Attack("A27", "code reaches a part of the kernel that programs do not need",
           all_refused(_SURFACE, REFUSALS), harmless=True),
    Attack("A48", "code types into a terminal", all_refused(_TERMINAL)),
    Attack("A53", "another way into the kernel avoids the filter", _foreign, harmless=True),
)  # fmt: skip
