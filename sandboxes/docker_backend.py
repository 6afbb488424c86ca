"""The runner in a hardened container, which serves many sessions and ends with its host process.

Every session has a user and a file system of its own in the container, the filter of system calls
and, where the kernel has it, Landlock. It does NOT give a session a kernel of its own, which
`runtime="runsc"` does, and sessions of one container share its limit on memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import select
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandboxes import program
from sandboxes.backend import Unavailable
from sandboxes.base import BackendOptions, Isolation, Limits, Policy
from sandboxes.owner import Owner, this_process
from sandboxes.runner import confine, system

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.images import Image

LABEL = "mopd.sandbox"  # of a container: what it was made for
HOST_LABEL, OWNER_LABEL = f"{LABEL}.host", f"{LABEL}.owner"
FOLDERS_LABEL = f"{LABEL}.folders"  # of an image: those that Python and its packages lie in
SCRATCH = "/scratch"

_FIRST_UID, _LAST_UID = 20_000, 65_000  # the users of a remapped engine end at 65 535
_UNUSED = 16  # users, and their folders, beyond one a session: for those that wait or are buried
_CAPABILITIES = ["SETUID", "SETGID", "SETPCAP", "KILL"]  # to become a session's user, and to end it
_RUNNER_BYTES = 128 * 2**20
_INODES = 2048  # of each folder; about 1 KiB of kernel memory each
_READABLE = ("/bin", "/etc", "/home", "/lib", "/lib32", "/lib64", "/opt", "/root", "/sbin", "/usr")
_DEVICES = ("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_CONNECT_S = 5
_REQUEST_S = 120  # a busy engine takes its time to start a container
_STDOUT = 1
_HEADER_BYTES = 8  # before each piece of an attached stream: its kind, 3 unused, its length
_LAST_WORDS = 4096
_PIECE_BYTES = 2**18
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def default_image() -> str:
    """The image that `python -m sandboxes.image` makes of this interpreter."""
    return f"mopd-sandbox:py{platform.python_version().replace('+', '_')}"


def connect() -> DockerClient:
    """A client of the engine that `DOCKER_HOST` or the current docker context names.

    Raises:
        Unavailable: docker-py is missing, or no engine answers.
    """
    try:
        import docker
        from docker.context import ContextAPI
    except ImportError as error:
        raise Unavailable("there is no docker-py: pip install 'mopd[docker]'") from error
    address = os.environ.get("DOCKER_HOST") or ContextAPI.kwargs_from_context().get("base_url", "")
    try:
        _, is_local, path = address.partition("unix://")
        if is_local:  # docker-py leaves its socket open when nobody answers
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(path)
        client = docker.from_env(timeout=_CONNECT_S)
    except (docker.errors.DockerException, OSError) as error:
        raise Unavailable(
            f"no Docker engine answers at {address}: {error}. Start one that this user may use"
            " (group docker), or set DOCKER_HOST to the address of another"
        ) from error
    client.api.timeout = _REQUEST_S
    return client


class DockerBackend:
    """Launches one container for one runner; containers that dead hosts left go at the first."""

    name = "docker"
    writable = True
    isolation = Isolation(
        network="hard",
        files="hard",
        disk="hard",
        memory="per process",
        processes="hard",
        syscalls="hard",
    )

    def __init__(self, options: BackendOptions) -> None:
        self._image = options.image or default_image()
        self._is_default_image = options.image is None
        self._runtime = options.runtime
        self._lock = threading.Lock()
        self._client: DockerClient | None = None
        self._engine: dict[str, Any] = {}

    def room(self, policy: Policy) -> int:
        """Sessions of a container share its limit on memory, and its loopback."""
        return 1 if policy.subprocesses or policy.network == "loopback" else 128

    def launch(
        self, limits: Limits, policy: Policy, sessions: int
    ) -> tuple[DockerLink, dict[str, Any]]:
        """Start a container for `sessions`, and the settings for the runner in it."""
        if policy.network == "loopback" and sessions > 1:
            raise Unavailable(
                "all sessions of a container share one loopback, so with network='loopback' it"
                f" has to have room for 1, not {sessions}: use sandbox.backend=jail"
            )
        # The kernel counts a user's processes in all containers: they had better not share users.
        number = sessions + _UNUSED
        first_uid = _FIRST_UID + secrets.randbelow((_LAST_UID - _FIRST_UID) // number) * number
        uids = range(first_uid, first_uid + number)
        client = self._connected()
        import docker  # there, or nothing would be connected

        try:
            image = self._checked_image(client, policy)
            container = client.containers.create(
                image, **self._creation(image, limits, policy, sessions, uids)
            )
            try:
                link = DockerLink(container)
            except BaseException:  # an engine removes by itself only what has run
                _remove(container)
                raise
        except (docker.errors.DockerException, OSError) as error:
            raise Unavailable(f"the Docker engine refused a sandbox: {error}") from error
        settings = {
            "session_uids": (uids.start, len(uids)),
            "scratch": SCRATCH,
            "landlock": self._landlock(image, policy),
        }
        return link, settings

    def close(self) -> None:
        """Close the connections to the engine; the next launch makes new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> DockerClient:
        with self._lock:
            if self._client is None:
                client = connect()
                self._engine = client.info()
                lacking = [key for key in ("MemoryLimit", "PidsLimit") if not self._engine[key]]
                if lacking:
                    raise Unavailable(
                        f"this engine cannot hold {' and '.join(lacking)}; a rootless one needs"
                        " cgroup v2 with its controllers delegated to the user"
                    )
                reap(client)
                self._client = client
            return self._client

    def _checked_image(self, client: DockerClient, policy: Policy) -> Image:
        import docker

        make = "python -m sandboxes.image"
        try:
            image = client.images.get(self._image)
        except docker.errors.ImageNotFound as error:
            cure = make if self._is_default_image else f"docker pull {self._image}"
            raise Unavailable(f"the engine has no image {self._image}: {cure}") from error
        if volumes := image.attrs["Config"].get("Volumes"):
            raise Unavailable(
                f"image {self._image} declares the volumes {', '.join(volumes)}, which no limit"
                " on what is written holds: take one without"
            )
        if FOLDERS_LABEL in image.labels:
            missing = set(policy.packages).difference(json.loads(image.labels[FOLDERS_LABEL]))
            if missing:
                folders = " ".join(sorted(policy.packages))
                raise Unavailable(
                    f"image {self._image} lacks {', '.join(sorted(missing))}:"
                    f" {make} --tag {self._image} --packages {folders}"
                )
        return image

    def _creation(
        self, image: Image, limits: Limits, policy: Policy, sessions: int, uids: range
    ) -> dict[str, Any]:
        """What `docker create` is told beside the image."""
        from docker.types import LogConfig, Ulimit

        # Few sessions come near their limits at once; half of the machine is for everything else.
        memory_bytes = min(
            _RUNNER_BYTES + sessions * (limits.memory_bytes + limits.disk_bytes),
            self._engine["MemTotal"] // 2,
        )
        key = repr((limits, policy, image.id, self._runtime)).encode()
        return {
            "entrypoint": [],
            "command": ["python3", *program.PYTHON_FLAGS, "-c", program.source(), "stdio"],
            "user": "0:0",
            "working_dir": "/",
            "hostname": "sandbox",
            "healthcheck": {"test": ["NONE"]},
            "runtime": self._runtime,
            # Standard input is open once: whichever way this process ends, the runner reads its
            # end then, and the engine removes the container.
            "stdin_open": True,
            "detach": False,
            "auto_remove": True,
            "log_config": LogConfig(type=LogConfig.types.NONE),
            # The runner leaves orphans to the first process, which has to reap them.
            "init": policy.subprocesses,
            "network_mode": "none",
            "ipc_mode": "none",  # private, and without /dev/shm
            "read_only": True,
            # A file system for each session: a bound on its files that is its own.
            "tmpfs": {
                f"{SCRATCH}/{uid}": f"rw,nosuid,nodev,size={limits.disk_bytes},"
                f"nr_inodes={_INODES},uid={uid},gid={uid},mode=0700"
                for uid in uids
            },
            "cap_drop": ["ALL"],
            "cap_add": _CAPABILITIES,
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": memory_bytes,
            "memswap_limit": memory_bytes,
            "pids_limit": 64 + confine.MAX_PROCESSES * sessions,
            "ulimits": [
                Ulimit(name="core", soft=0, hard=0),
                Ulimit(name="msgqueue", soft=0, hard=0),
                # Of one user, which is one session; root, the runner, is exempt.
                Ulimit(name="nproc", soft=confine.MAX_PROCESSES, hard=confine.MAX_PROCESSES),
                # The runner has five a session; the many give each channel a number to guess.
                Ulimit(name="nofile", soft=4096 + 8 * sessions, hard=4096 + 8 * sessions),
            ],
            "labels": {
                LABEL: hashlib.sha256(key).hexdigest()[:16],
                HOST_LABEL: _host(),
                OWNER_LABEL: str(this_process()),
            },
        }

    def _landlock(self, image: Image, policy: Policy) -> tuple[str, ...] | None:
        """The folders to read, or None where it is not known that the kernel has Landlock."""
        shares_kernel = self._engine["KernelVersion"] == os.uname().release
        if self._runtime is not None or not shares_kernel or system.landlock_version() < 1:
            return None
        folders = json.loads(image.labels.get(FOLDERS_LABEL, "[]"))
        return tuple(dict.fromkeys([*_READABLE, *_DEVICES, *folders, *policy.packages]))


class DockerLink:
    """The attached standard streams of a container, which starts with it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._stream: Any = container.attach_socket(params=wanted)
        line = getattr(self._stream, "_sock", self._stream)
        if not isinstance(line, socket.socket):
            raise OSError("an engine at ssh:// is not supported: forward its socket, `ssh -L`")
        # A TLS connection cannot be read and written at once, so neither waits inside a call.
        line.setblocking(False)
        self._line = line
        self._calling = threading.Lock()
        # Held to the end of the wait: the number of a closed descriptor may soon be another's.
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._ended = False
        self._buffer = bytearray()
        self._kind = 0
        self._left = 0  # bytes of the current piece
        self._last_words = bytearray()
        container.start()

    def send(self, data: bytes) -> None:
        """Send it all."""
        left = memoryview(data)
        with self._sending:
            while left:
                try:
                    with self._calling:
                        left = left[self._line.send(left) :]
                except _NOT_NOW:
                    self._wait(select.POLLOUT)

    def receive(self) -> bytes:
        """Wait for the next bytes; at the end, OSError with what the runner complained of."""
        with self._receiving:
            while not (piece := self._next_piece()):
                if not self._read():
                    break
        if not piece and self._last_words and not self._ended:
            raise OSError(self._last_words.decode("utf-8", "replace").strip())
        return piece

    def abandon(self) -> None:
        """Let go of it in a fork, whose parent keeps it."""
        self._ended = True  # without the lock, which another thread of the parent may have held
        self._close()

    def out_of_memory_kills(self) -> int:
        """Always 0: an engine does not count them, only the runner can in its own group."""
        return 0

    def end(self) -> None:
        """Hang up, and remove the container at once."""
        with self._calling:
            if self._ended:
                return
            self._ended = True
            with contextlib.suppress(OSError):  # the engine hung up first
                self._line.shutdown(socket.SHUT_RDWR)  # also ends the waits of other threads
        with self._sending, self._receiving:
            self._close()
        _remove(self._container)

    def _next_piece(self) -> bytes:
        """What is there of standard output; standard error is kept apart."""
        while self._left or len(self._buffer) >= _HEADER_BYTES:
            if not self._left:
                self._kind = self._buffer[0]
                self._left = int.from_bytes(self._buffer[4:_HEADER_BYTES], "big")
                del self._buffer[:_HEADER_BYTES]
            piece = bytes(self._buffer[: self._left])
            if not piece and self._left:
                break
            del self._buffer[: len(piece)]
            self._left -= len(piece)
            if self._kind == _STDOUT and piece:
                return piece
            self._last_words += piece
            del self._last_words[:-_LAST_WORDS]
        return b""

    def _read(self) -> bool:
        """Wait for more bytes; False at the end."""
        while True:
            try:
                with self._calling:
                    data = self._line.recv(_PIECE_BYTES)
            except _NOT_NOW:
                self._wait(select.POLLIN)
            except OSError:
                return False
            else:
                self._buffer += data
                return bool(data)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._line, event)
        poll.poll()

    def _close(self) -> None:
        self._line.close()
        self._stream._response.close()
        self._stream.close()


def reap(client: DockerClient) -> int:
    """Remove, in any state, containers of this host whose owner is gone; returns their number."""
    containers = client.containers.list(
        all=True, filters={"label": f"{HOST_LABEL}={_host()}"}, ignore_removed=True
    )
    gone = [each for each in containers if not Owner.parse(each.labels[OWNER_LABEL]).alive]
    for container in gone:
        _remove(container)
    return len(gone)


def _host() -> str:
    """Where a process's number means that process: many hosts may share an engine."""
    machine = Path("/etc/machine-id")
    text = machine.read_text("ascii").strip() if machine.exists() else ""
    return f"{platform.node()} {text} {os.readlink('/proc/self/ns/pid')}"


def _remove(container: Container) -> None:
    import docker

    # Gone already, being removed, or out of reach: then it goes by itself.
    with contextlib.suppress(docker.errors.DockerException, OSError):
        container.remove(force=True, v=True)
