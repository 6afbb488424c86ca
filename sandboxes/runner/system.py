"""Linux system calls that Python's standard library does not offer."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

from sandboxes.runner import seccomp

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None, use_errno=True)  # clone returns twice: nothing may run between

NEW_NAMESPACES = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "mount": 0x00020000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "network": 0x40000000,
}
NOSUID, NODEV, _BIND = 2, 4, 4096  # of mount(2)

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _CAPBSET_DROP = 1, 4, 22, 24
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _DEVICE_IOCTL = 1 << 14, 1 << 15


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def clone(flags: int) -> int:
    """Fork into new namespaces; 0 in the child. For programs with a single thread only."""
    if not flags:
        return os.fork()
    ctypes.pythonapi.PyOS_BeforeFork()
    call = _libc_with_gil.syscall
    pid: int = call(seccomp.clone_number(), ctypes.c_ulong(flags | signal.SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, f"clone: {os.strerror(error)}")
    return pid


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a new file system of this kind."""
    text = kind.encode()
    result = _libc.mount(text, target.encode(), text, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {kind} on {target}")


def bind(source: str, target: str) -> None:
    """Show one folder in the place of another."""
    flags = ctypes.c_ulong(_BIND)
    _check(_libc.mount(source.encode(), target.encode(), None, flags, None), f"bind {target}")


def drop_bounding_set() -> None:
    """Capabilities that no later step can bring back."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break  # past the last one, or without the right to


def drop_capabilities() -> None:
    """Give up every capability."""
    _libc.prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def set_dumpable() -> None:
    """Let this process own its files in /proc, which a change of user takes away."""
    _check(_libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0), "prctl dumpable")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that forked it ends."""
    _check(_libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl pdeathsig")
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def no_new_privileges() -> None:
    """No setuid program can raise this process again; the filters below ask for it."""
    _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")


def install_filter(program: bytes) -> None:
    """Put a seccomp filter over this process for good."""
    buffer = ctypes.create_string_buffer(program, len(program))
    description = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    result = _libc.prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(description), 0, 0)
    _check(result, "seccomp")


def landlock_version() -> int:
    """The version of Landlock that this kernel offers, 0 for none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, 0, 1)))


def landlock(readable: list[str], writable: list[str], *, loopback: bool) -> None:
    """Refuse every file outside these folders and, where the kernel can, signals and network."""
    version = landlock_version()
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    bits = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    handled = (1 << bits) - 1
    attributes = struct.pack(
        "=QQQ", handled, 3 if version >= 4 and not loopback else 0, 3 if version >= 6 else 0
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    _check(rules, "landlock ruleset")
    to_read = _EXECUTE | _READ_FILE | _READ_FOLDER
    to_file = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _DEVICE_IOCTL
    for paths, rights in ((readable, to_read), (writable, handled & ~_EXECUTE)):
        for path in paths:
            try:
                folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed = rights if os.path.isdir(path) else rights & to_file & handled
            rule = struct.pack("=Qi", allowed & handled, folder)
            _check(_libc.syscall(_LANDLOCK_ADD, rules, _RULE_PATH_BENEATH, rule, 0), path)
            os.close(folder)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def raise_loopback() -> None:
    """Switch on `lo` of a fresh network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
