"""A Docker engine for one test run: private, on a socket of its own, gone without a trace."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxes.open import close_all

START_S = 60.0
# All of the engine's files lie on mounts that only its namespace sees: when its last process has
# gone, so have they. dockerd writes a key to /etc/docker, containerd folders to /opt and /run.
SETUP = """set -e
mount -t tmpfs -o size=64m tmpfs /run
mount -t tmpfs -o size=2g,mode=0700 tmpfs "$1/private"
mkdir "$1/private/etc" "$1/private/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/private/etc,workdir=$1/private/work" overlay /etc
if [ -d /opt ]; then mount -t tmpfs tmpfs /opt; fi
dockerd --host "unix://$1/docker.sock" --data-root "$1/private/data" --exec-root /run/docker \
    --pidfile /run/docker.pid --cgroup-parent "/$2" --exec-opt native.cgroupdriver=cgroupfs \
    --bridge none --iptables=false --ip6tables=false --ip-forward=false &
wait"""
# The shell, as init of the namespace, reaps; killing it kills all that the engine started. It
# dies with this process, whichever way that ends.
NAMESPACES = ["--mount", "--pid", "--net", "--ipc", "--uts", "--mount-proc"]
COMMAND = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child"]


def lacking() -> str | None:
    """What keeps an engine from starting here, and the cure."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a private Docker engine is started as root on Linux: or set DOCKER_HOST to another"
    missing = [name for name in ("dockerd", "setpriv", "unshare") if shutil.which(name) is None]
    return f"no {missing[0]}: apt-get install docker.io util-linux" if missing else None


@contextlib.contextmanager
def private_engine() -> Iterator[str]:
    """The address of an engine that lives as long as this context."""
    folder = Path(tempfile.mkdtemp(prefix="docker-engine-"))
    (folder / "private").mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)
        undo.callback(remove_cgroups, folder.name)
        log = undo.enter_context(open(folder / "log", "w+b"))
        engine = subprocess.Popen(
            [*COMMAND, "sh", "-c", SETUP, "sh", str(folder), folder.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        undo.callback(engine.wait)
        undo.callback(engine.kill)
        address = f"unix://{folder}/docker.sock"
        await_answer(engine, address, folder / "log")
        yield address


def await_answer(engine: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the engine serves."""
    import docker

    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and engine.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.connect(address.removeprefix("unix://"))
            docker.DockerClient(base_url=address, timeout=START_S).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the private Docker engine did not start: {log.read_text()[-2000:]}")


def remove_cgroups(name: str) -> None:
    """Remove the groups that killed containers left; the engine's processes end a little later."""
    deadline_s = time.monotonic() + 10
    for top in [*Path("/sys/fs/cgroup").glob(f"*/{name}"), *Path("/sys/fs/cgroup").glob(name)]:
        for group, _, _ in os.walk(top, topdown=False):
            while True:
                try:
                    os.rmdir(group)
                    break
                except OSError:
                    if time.monotonic() > deadline_s:
                        raise
                    time.sleep(0.02)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    """The address of an engine, as DOCKER_HOST has it: the given one, or a private one."""
    pytest.importorskip("docker", reason="no docker-py: pip install 'mopd[docker]'")
    if address := os.environ.get("DOCKER_HOST"):
        yield address
        return
    if reason := lacking():
        pytest.skip(reason)
    with private_engine() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        yield address
        close_all()  # while the engine still answers


@pytest.fixture(scope="session")
def docker_image(docker_engine: str) -> str:
    """The default image, with pytest in it."""
    import docker

    from sandboxes import image

    client = docker.from_env()
    image.build(client, image.default_tag(), ["pytest"])
    client.close()
    return image.default_tag()
