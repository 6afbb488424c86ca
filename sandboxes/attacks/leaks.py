"""Attacks by which one episode learns from another, before it or beside it."""

from collections.abc import Iterator

from sandboxes.attacks.attack import Attack
from sandboxes.attacks.bait import PREFIX, secret
from sandboxes.attacks.bench import CORES, Bench
from sandboxes.base import Policy

_LEAVE = """
import builtins, json, random, socket, tempfile
for folder in {".", "/tmp", "/dev/shm", "/var/tmp", "/dev", "/run", "/dev/mqueue"}:
    try:
        with open(f"{folder}/left-{BAIT['marker']}", "w") as file:
            file.write("left")
        os.chmod(f"{folder}/left-{BAIT['marker']}", 0o666)
        say("left in " + folder, "yes")
    except OSError:
        pass
builtins.LEFT = json.LEFT = sys.LEFT = True
os.environ["LEFT"] = "yes"
random.seed(1)
sys.path.insert(0, "/left")
for key in (-3, -4, -5):
    try:
        call("add_key", b"user", b"left", b"secret", 6, key)
    except OSError:
        pass
def alone(pair):  # without its other half, a socket of a pair takes what anybody sends
    unspecified = ctypes.create_string_buffer(16)
    if libc.connect(pair[0].fileno(), unspecified, 16) != 0:
        raise OSError(ctypes.get_errno(), "connect")
    return pair[0]
left = []
for make in (lambda: alone(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
             lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)):
    try:
        left.append(make())
        left[-1].bind("\\0left-" + BAIT["marker"] + str(len(left)))
        say("bound", len(left))
    except OSError:
        pass
"""

_FIND = """
import builtins, json, socket
for folder in {".", "/tmp", "/dev/shm", "/var/tmp", "/dev", "/run", "/dev/mqueue"}:
    if os.path.exists(f"{folder}/left-{BAIT['marker']}"):
        say("found", "done: a file in " + folder)
if hasattr(builtins, "LEFT") or hasattr(json, "LEFT") or hasattr(sys, "LEFT"):
    say("found", "done: an attribute of a module")
if "LEFT" in os.environ or "/left" in sys.path:
    say("found", "done: a setting")
for key in (-3, -4, -5):
    attempt(f"key {key}", call, "keyctl", 10, key, b"user", b"left", 0)
def send(number, make):
    with make() as client:
        client.sendto(b"x", "\\0left-" + BAIT["marker"] + str(number))
for number in (1, 2):
    attempt(f"pair to {number}", send, number,
            lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0])
    attempt(f"socket to {number}", send, number,
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
"""

_LISTEN_TCP = """
import socket
try:
    server = socket.create_server(("127.0.0.1", 18765))
    say("listens", "yes")
except OSError as error:
    say("listens", error)
"""
_CONNECT_TCP = """
import socket
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", 18765), 1).close())
"""

# Reads all of its own memory: what the kernel refuses to read into a pipe is not mapped.
_SEARCH = """
import gc, re
import contextlib
receiver, sender = os.pipe2(os.O_NONBLOCK)
pattern = re.compile(BAIT["prefix"].encode() + b"([0-9a-f]{16})")
found, read_bytes = set(), 0
def search(start, stop):
    global read_bytes
    carried = b""
    for address in range(start & ~4095, stop, 2**16):
        size = libc.write(sender, ctypes.c_void_p(address), ctypes.c_size_t(2**16))
        data = os.read(receiver, 2**16) if size > 0 else b""
        read_bytes += len(data)
        found.update(pattern.findall(carried + data))
        carried = data[-32:]
try:
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in ranges
              if line[1].startswith("r") and "vsyscall" not in line[-1]]
except OSError:  # around what is known: the objects, the heap, the stack
    libc.sbrk.restype = ctypes.c_void_p
    top = libc.sbrk(0)
    blocks = {id(item) >> 20 for item in gc.get_objects()}
    blocks |= {id(child) >> 20 for item in gc.get_objects() for child in gc.get_referents(item)}
    ranges = [(block << 20, (block + 1) << 20) for block in sorted(blocks)]
    environ = ctypes.addressof(ctypes.c_char_p.in_dll(libc, "environ"))
    stack = ctypes.c_void_p.in_dll(libc, "__libc_stack_end").value if hasattr(
        libc, "__libc_stack_end") else environ
    ranges += [(top - 2**25, top), (stack - 2**20, stack + 2**18)]
for start, stop in ranges:
    search(start, stop)
say("searched", read_bytes)
say("found", ",".join(sorted(item.decode() for item in found)))
"""

_DRAW = """
import random, tempfile, uuid
say("drawn", [random.random(), random.Random().random(), uuid.uuid4().hex, os.urandom(4).hex(),
              random.SystemRandom().random()])
"""

_WATCH = """
watcher = attempt("inotify", call, "inotify_init1", os.O_NONBLOCK)
shared = [os.__file__, "/dev/null", "/usr/lib", sys.executable, "/"]
for path in shared:
    try:
        call("inotify_add_watch", watcher, path.encode(), 0x20)
        say("watches " + path, "yes")
    except OSError as error:
        say("watches " + path, error)
"""
_TOUCH = """
import os, sys
for path in (os.__file__, "/dev/null", sys.executable):
    open(path).close()
"""
_WATCHED = """
try:
    say("seen", "done: " + os.read(watcher, 4096)[:40].hex())
except (OSError, TypeError) as error:
    say("nothing", error)
"""


def _left_behind(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy) as siblings:
            for sibling in siblings:
                yield from bench.ask(sibling, _LEAVE, policy).unfinished()
            beside = bench.probe(_FIND, policy)
        yield from (f"beside: {evidence}" for evidence in beside.successes())
        for _ in range(CORES):
            bench.probe(_LEAVE, policy)
        yield from (f"after: {evidence}" for evidence in bench.probe(_FIND, policy).successes())


def _meet(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        if policy.network == "none":
            continue
        with bench.siblings(policy) as siblings:
            for sibling in siblings:
                listening = bench.ask(sibling, _LISTEN_TCP, policy)
                yield from listening.unfinished()
                if listening["listens"] != "yes":
                    yield f"inconclusive: cannot listen: {listening['listens']}"
            yield from bench.probe(_CONNECT_TCP, policy).successes()


def _memory(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        planted = {bench.bait.secret.removeprefix(PREFIX): "the host's environment"}
        sandbox = bench.sandbox(policy)
        with bench.session(policy) as first:
            for where in ("a cell", "a file", "an argument", "a program", "its stdin", "its files"):
                text = secret()
                planted[text.removeprefix(PREFIX)] = where
                if where == "a cell":
                    first.run(f"kept = {text!r} * 1000\nprint(kept)\nkeep = lambda x: x")
                elif where == "an argument":
                    first.call("keep", [(text,)] * 10)
                elif where == "a program":
                    sandbox.run(f"print({text!r} * 1000)")
                elif where == "its stdin":
                    sandbox.run("print(input())", stdin=text)
            reports = [bench.probe(_SEARCH, policy) for _ in range(2)]
        reports += [bench.probe(_SEARCH, policy) for _ in range(2)]
        with bench.session(policy) as second:
            reports.append(bench.ask(second, _SEARCH, policy))
        for report in reports:
            yield from report.unfinished()
            if int(report["searched"] or 0) < 2**20:
                yield f"inconclusive: only {report['searched']} bytes were searched"
            for suffix in report["found"].split(","):
                if suffix in planted:
                    yield f"{report.where} found what was in {planted[suffix]} of another"


def _equal_randomness(bench: Bench) -> Iterator[str]:
    drawn: list[list[str]] = []
    policy = Policy(preload=("random", "uuid", "tempfile"))
    for _ in range(3):
        drawn.append(_numbers(bench, policy))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        equal = set(drawn[first]) & set(drawn[second])
        if equal or not drawn[first]:
            yield f"two runs draw the same: {equal or 'nothing'}"


def _numbers(bench: Bench, policy: Policy) -> list[str]:
    report = bench.probe(_DRAW, policy)
    return [item.strip(" '") for item in report["drawn"].strip("[]").split(",") if item]


def _watching(bench: Bench) -> Iterator[str]:
    for policy in bench.policies():
        with bench.siblings(policy) as watchers:
            for watcher in watchers:
                yield from bench.ask(watcher, _WATCH, policy).unfinished()
            bench.sandbox(policy).run(_TOUCH)
            for watcher in watchers:
                yield from bench.ask(watcher, _WATCHED, policy).successes()


ATTACKS = (
    Attack("A43", "an episode finds what another left behind", _left_behind),
    Attack("A44", "two sessions meet on the loopback", _meet),
    Attack("A56", "a session watches which files another opens", _watching),
    Attack("A59", "two runs draw the same random numbers", _equal_randomness),
    Attack("A72", "a session's memory holds what others were given", _memory, harmless=True),
)
