"""A seccomp filter in classic BPF, assembled for the processor at hand.

A list of what is refused: Python and its extension modules use too many harmless calls for a
list of what is allowed, but calls newer than this file's knowledge are refused as a whole.
See seccomp(2) and linux/seccomp.h; `struct seccomp_data` is {nr, arch, ip, args[6]}.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_OR_EQUAL, _JUMP_ANY_BIT = 0x15, 0x25, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # low words, little-endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# Of clone: mount, cgroup, uts, ipc, user, pid, net, time; and to become the parent's child.
_REFUSED_CLONE_FLAGS = 0x7E020080 | 0x8000
_CLONE_THREAD = 0x10000
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_TYPES = 1, 0xF
_TERMINAL_INJECTION = (0x5412, 0x541C)  # ioctl: TIOCSTI, TIOCLINUX
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP = 1, 4, 22
_SET_OWNER, _SET_OWNER_EX, _SET_SIGNAL = 8, 15, 10  # fcntl: F_SETOWN, F_SETOWN_EX, F_SETSIG

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SOME_PID = 0x5EC0C0DE  # where the process's own number comes
# Beyond the last call that was judged for this list (file_setattr), which has one number on both.
_FIRST_UNKNOWN = 470

# Both processors share the numbers of newer calls.
_COMMON = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "landlock_create_ruleset": 444,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "open_tree_attr": 467,
}
_X86_64 = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "keyctl": 250, "add_key": 248, "request_key": 249,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "fanotify_init": 300,
    "init_module": 175, "finit_module": 313, "delete_module": 176,
    "kexec_load": 246, "kexec_file_load": 320, "reboot": 169,
    "open_by_handle_at": 304, "name_to_handle_at": 303,
    "swapon": 167, "swapoff": 168, "acct": 163, "syslog": 103, "quotactl": 179, "sysfs": 139,
    "personality": 135, "vhangup": 153, "modify_ldt": 154, "iopl": 172, "ioperm": 173,
    "mbind": 237, "set_mempolicy": 238, "migrate_pages": 256, "move_pages": 279,
    "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305,
    "sethostname": 170, "setdomainname": 171, "lookup_dcookie": 212, "remap_file_pages": 216,
    "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
    "memfd_create": 319, "vmsplice": 278, "io_setup": 206, "mknod": 133, "mknodat": 259,
    "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "tkill": 200,
    "seccomp": 317, "uselib": 134, "ustat": 136, "nfsservctl": 180,
    "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314,
    "ioprio_set": 251, "inotify_add_watch": 254,
}  # fmt: skip
_AARCH64 = {
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
    "keyctl": 219, "add_key": 217, "request_key": 218,
    "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "fanotify_init": 262,
    "init_module": 105, "finit_module": 273, "delete_module": 106,
    "kexec_load": 104, "kexec_file_load": 294, "reboot": 142,
    "open_by_handle_at": 265, "name_to_handle_at": 264,
    "swapon": 224, "swapoff": 225, "acct": 89, "syslog": 116, "quotactl": 60,
    "personality": 92, "vhangup": 58,
    "mbind": 235, "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239,
    "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266,
    "sethostname": 161, "setdomainname": 162, "lookup_dcookie": 18, "remap_file_pages": 234,
    "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180,
    "memfd_create": 279, "vmsplice": 75, "io_setup": 0, "mknodat": 33,
    "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "tkill": 130,
    "seccomp": 277, "nfsservctl": 42,
    "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setattr": 274,
    "ioprio_set": 30, "inotify_add_watch": 27,
}  # fmt: skip
# Calls that are allowed with some arguments only, and those that make processes.
_ARGUED = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
        "socket": 41, "socketpair": 53, "ioctl": 16, "kill": 62, "tgkill": 234,
        "prctl": 157, "fcntl": 72, "prlimit64": 302,
        "sched_setaffinity": 203,
    },
    "aarch64": {
        "clone": 220, "execve": 221, "execveat": 281,
        "socket": 198, "socketpair": 199, "ioctl": 29, "kill": 129, "tgkill": 131,
        "prctl": 167, "fcntl": 25, "prlimit64": 261,
        "sched_setaffinity": 122,
    },
}  # fmt: skip
# What gives a socket a name or a peer; a pair has all it needs without.
_NAMING = {
    "x86_64": (42, 43, 49, 50, 288),  # connect, accept, bind, listen, accept4
    "aarch64": (203, 202, 200, 201, 242),
}
# What changes a file without opening it, which Landlock does not see: chmod and its kin, chown,
# utime, extended attributes; those with one number on both processors last.
_METADATA = {
    "x86_64": (90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
    "aarch64": (52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
}
_METADATA_OF_BOTH = (452, 463, 466, 469)  # fchmodat2, setxattrat, removexattrat, file_setattr
_REFUSED = {"x86_64": _X86_64, "aarch64": _AARCH64}


def supported() -> bool:
    """Whether the filter knows this processor."""
    return platform.machine() in _AUDIT


def clone_number() -> int:
    """The number of clone(2)."""
    return _ARGUED[platform.machine()]["clone"]


def for_process(template: bytes, pid: int) -> bytes:
    """The filter that `template` made, for the process that knows itself as `pid`."""
    return template.replace(struct.pack("=I", _SOME_PID), struct.pack("=I", pid))


def template(*, subprocesses: bool, loopback: bool, metadata: bool) -> bytes:
    """A filter for a process and all that come from it, to be completed by `for_process`.

    Without `subprocesses` it cannot start any, and can signal nobody but itself; without
    `loopback` its only sockets are pairs; without `metadata` it can change no file's mode,
    owner, times or attributes.
    """
    machine = platform.machine()
    argued = _ARGUED[machine]
    refuse = _ERRNO | errno.EPERM
    parts = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_EQUAL, _AUDIT[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        # The x32 numbers of x86-64 (from 2**30) are beyond as well.
        _step(_JUMP_GREATER_OR_EQUAL, _FIRST_UNKNOWN, 0, 1),
        _step(_RETURN, _ERRNO | errno.ENOSYS),
        # glibc then uses clone, whose flags can be seen here.
        _answer(_COMMON["clone3"], _ERRNO | errno.ENOSYS),
    ]
    for name in ("fork", "vfork", "execve", "execveat"):
        if name in argued and not subprocesses:
            parts.append(_answer(argued[name], refuse))
    clone = [_step(_LOAD, _ARGUMENT_0), _step(_JUMP_ANY_BIT, _REFUSED_CLONE_FLAGS, 0, 1)]
    clone.append(_step(_RETURN, refuse))
    if not subprocesses:
        clone += [_step(_JUMP_ANY_BIT, _CLONE_THREAD, 1, 0), _step(_RETURN, refuse)]
    parts.append(_case(argued["clone"], clone))
    families = (_AF_UNIX, _AF_INET, _AF_INET6) if loopback else ()
    parts.append(_only(argued["socket"], _ARGUMENT_0, families, errno.EAFNOSUPPORT))
    # One of datagrams could be turned to the address of a socket of the host, or of a neighbour.
    pair = [_step(_LOAD, _ARGUMENT_1), _step(_AND, _SOCK_TYPES)]
    pair += [_step(_JUMP_EQUAL, _SOCK_STREAM, 1, 0), _step(_RETURN, refuse)]
    parts.append(_case(argued["socketpair"], pair))
    parts.append(_never(argued["ioctl"], _ARGUMENT_1, _TERMINAL_INJECTION))
    parts.append(_never(argued["fcntl"], _ARGUMENT_1, (_SET_OWNER, _SET_OWNER_EX, _SET_SIGNAL)))
    options = (_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP)
    parts.append(_never(argued["prctl"], _ARGUMENT_0, options))
    if not subprocesses:
        for name in ("kill", "tgkill"):
            parts.append(_only(argued[name], _ARGUMENT_0, (_SOME_PID,), errno.EPERM))
        for name in ("prlimit64", "sched_setaffinity"):
            parts.append(_only(argued[name], _ARGUMENT_0, (0, _SOME_PID), errno.EPERM))
    refused = {*_COMMON.values(), *_REFUSED[machine].values()} - {_COMMON["clone3"]}
    if not loopback:
        refused.update(_NAMING[machine])
    if not metadata:
        refused.update(_METADATA[machine], _METADATA_OF_BOTH)
    parts += [_answers(first, last, refuse) for first, last in _ranges(refused)]
    parts.append(_step(_RETURN, _ALLOW))
    return b"".join(parts)


def _ranges(numbers: set[int]) -> list[tuple[int, int]]:
    """The numbers as runs of neighbours: the kernel compiles each filter anew, step by step."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _answer(number: int, answer: int) -> bytes:
    return _step(_JUMP_EQUAL, number, 0, 1) + _step(_RETURN, answer)


def _answers(first: int, last: int, answer: int) -> bytes:
    if first == last:
        return _answer(first, answer)
    inside = _step(_JUMP_GREATER_OR_EQUAL, first, 0, 2) + _step(_JUMP_GREATER, last, 1, 0)
    return inside + _step(_RETURN, answer)


def _case(number: int, body: list[bytes]) -> bytes:
    """Run `body` for one call, which is allowed where the body returns nothing else."""
    body = [*body, _step(_RETURN, _ALLOW)]
    return _step(_JUMP_EQUAL, number, 0, len(body)) + b"".join(body)


def _only(number: int, argument: int, allowed: tuple[int, ...], error: int) -> bytes:
    left = range(len(allowed), 0, -1)
    tests = [_step(_JUMP_EQUAL, value, n, 0) for value, n in zip(allowed, left, strict=True)]
    return _case(number, [_step(_LOAD, argument), *tests, _step(_RETURN, _ERRNO | error)])


def _never(number: int, argument: int, refused: tuple[int, ...]) -> bytes:
    tests = [
        step
        for value in refused
        for step in (
            _step(_JUMP_EQUAL, value, 0, 1),
            _step(_RETURN, _ERRNO | errno.EPERM),
        )
    ]
    return _case(number, [_step(_LOAD, argument), *tests])
