"""Attacks that reach for the host, or for the world, through sockets."""

from collections.abc import Iterator

from sandboxes.attacks.attack import Attack, Check, all_refused
from sandboxes.attacks.bench import Bench

_TCP = """
import socket
def connect(family, address):
    with socket.socket(family) as client:
        client.settimeout(1)
        client.connect((address, int(BAIT["port"])))
for address in ("127.0.0.1", "0.0.0.0", "127.1.2.3"):
    attempt("tcp " + address, connect, socket.AF_INET, address)
for address in ("::1", "::ffff:127.0.0.1"):
    attempt("tcp " + address, connect, socket.AF_INET6, address)
"""

# Datagrams to a closed port of the sandbox's own loopback are no success, so the host has to tell.
_UDP = """
import socket
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", int(BAIT["port"])))
try:
    send()
except OSError as error:
    say("udp", error)
"""

_UNIX = """
import socket
def connect(kind, address):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(1)
        client.connect(address)
        client.send(b"x")
for name in ("abstract", "socket"):
    attempt("stream " + name, connect, socket.SOCK_STREAM, BAIT[name])
    attempt("datagram " + name, connect, socket.SOCK_DGRAM, BAIT[name] + "-datagrams")
"""

_DAEMONS = """
import socket
def connect(kind, address):
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(1)
        client.connect(address)
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
             "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/snapd.socket"):
    attempt("stream " + path, connect, socket.SOCK_STREAM, path)
for path in ("/run/systemd/notify", "/run/systemd/journal/socket", "/dev/log"):
    attempt("datagram " + path, connect, socket.SOCK_DGRAM, path)
"""

# An unnamed socket of a pair is a socket too: it can be given another peer.
_PAIR = """
import socket
def reconnect(kind, address):
    for pair in (socket.socketpair(socket.AF_UNIX, kind),):
        with pair[0], pair[1]:
            pair[0].connect(address)
            pair[0].send(b"x")
def send(address):
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.sendto(b"x", address)
for name in ("abstract", "socket"):
    attempt("stream " + name, reconnect, socket.SOCK_STREAM, BAIT[name])
    attempt("reconnected " + name, reconnect, socket.SOCK_DGRAM, BAIT[name] + "-datagrams")
    attempt("datagram " + name, send, BAIT[name] + "-datagrams")
"""

_ROUTE = """
import socket
def connect(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((address, 9))
attempt("route", connect, socket.AF_INET, "192.0.2.1")
attempt("route 6", connect, socket.AF_INET6, "2001:db8::1")
def interfaces():
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        raise OSError(19, "only the loopback")
    return others
attempt("interfaces", interfaces)
"""

_FAMILIES = """
import socket
allowed = (1, 2, 10) if {loopback} else ()
for family in range(1, 47):
    kinds = (1, 2, 3, 4, 5, 10) if family not in allowed else (3,) if family != 1 else ()
    for kind in kinds:
        protocol = 255 if family in (2, 10) and kind == 3 else 0
        attempt(f"family {{family}} type {{kind}}",
                lambda: socket.socket(family, kind, protocol).close())
"""
# A family that the kernel does not have is as good as refused.
_NO_FAMILY = frozenset({"EPERM", "EACCES", "EAFNOSUPPORT", "ENOSYS"})


def _families(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        code = _FAMILIES.format(loopback=policy.network == "loopback")
        yield from bench.probe(code, policy).successes(_NO_FAMILY)


def _only_finishes(code: str) -> Check:
    def check(bench: Bench) -> Iterator[str]:
        for report in bench.probe_each(code):
            yield from report.unfinished()

    return check


ATTACKS = (
    Attack("A01", "code connects to a TCP port of the host", all_refused(_TCP), harmless=True),
    Attack("A02", "code connects to a unix socket of the host", all_refused(_UNIX), harmless=True),
    Attack("A79", "code connects to a daemon of the host", all_refused(_DAEMONS)),
    Attack("A03", "code finds a route out, or an interface", all_refused(_ROUTE), harmless=True),
    Attack("A04", "code gets a socket that no network namespace holds", _families),
    Attack("A60", "code sends a datagram to a UDP port of the host", _only_finishes(_UDP), True),
    Attack("A61", "half of a socket pair talks to the host", all_refused(_PAIR), harmless=True),
)
