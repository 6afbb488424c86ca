import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxes import docker_backend, program
from sandboxes.backend import Unavailable
from sandboxes.base import BackendOptions, ExecStatus, Limits, Policy, SandboxError
from sandboxes.docker_backend import HOST_LABEL, OWNER_LABEL, SCRATCH, DockerBackend, DockerLink
from sandboxes.open import open_sandbox
from sandboxes.owner import Owner, this_process

pytest_plugins = ["docker_engine"]  # its fixtures, once for all files

ROOT = Path(__file__).parents[1]
GONE_S = 2.0
ECHO = """
import os
while data := os.read(0, 65536):
    os.write(2, b"heard ")
    os.write(1, data)
"""
COMPLAIN = "import sys; sys.exit('no room for ' + 'x' * 9000 + ' the runner')"


@pytest.fixture
def client(docker_engine: str) -> Iterator[Any]:
    import docker

    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another program into the container than the runner."""

    def put(text: str) -> None:
        parts = SimpleNamespace(PYTHON_FLAGS=program.PYTHON_FLAGS, source=lambda: text)
        monkeypatch.setattr(docker_backend, "program", parts)

    return put


@pytest.fixture
def link(docker_image: str, stand_in: Any) -> Iterator[DockerLink]:
    """The line to a container that sends back what it is sent."""
    stand_in(ECHO)
    link, _ = DockerBackend(BackendOptions()).launch(Limits(), Policy(), 4)
    yield link
    link.end()


def ours(client: Any, pid: int | None = None) -> list[Any]:
    """The containers of this process, or of another."""
    containers = client.containers.list(all=True, filters={"label": OWNER_LABEL})
    wanted = os.getpid() if pid is None else pid
    return [each for each in containers if Owner.parse(each.labels[OWNER_LABEL]).pid == wanted]


def await_none(client: Any, pid: int | None = None) -> None:
    deadline_s = time.monotonic() + GONE_S
    while found := ours(client, pid):
        assert time.monotonic() < deadline_s, [each.attrs["State"] for each in found]
        time.sleep(0.02)


def receive_all(link: DockerLink, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = link.receive()
        assert piece
        data += piece
    return data


# The line.


def test_what_is_sent_comes_back_without_what_stderr_says(link: DockerLink) -> None:
    link.send(b"hello")
    assert receive_all(link, 5) == b"hello"
    data = os.urandom(2**22)
    sender = threading.Thread(target=link.send, args=(data,))
    sender.start()
    assert receive_all(link, len(data)) == data
    sender.join()


def test_ending_wakes_who_waits_and_is_allowed_twice(link: DockerLink, client: Any) -> None:
    heard: list[bytes] = []
    waiter = threading.Thread(target=lambda: heard.append(link.receive()))
    waiter.start()
    time.sleep(0.1)
    link.end()
    waiter.join(5)
    assert heard == [b""]
    await_none(client)
    link.end()
    with pytest.raises(OSError, match=r"closed|Bad file"):
        link.send(b"x")


def test_a_runner_that_fails_is_quoted(docker_image: str, stand_in: Any) -> None:
    stand_in(COMPLAIN)
    link, _ = DockerBackend(BackendOptions()).launch(Limits(), Policy(), 1)
    with pytest.raises(OSError, match="xxx the runner") as caught:
        link.receive()
    assert len(str(caught.value)) <= 4096
    link.end()


def test_a_fork_that_lets_go_leaves_the_line_to_its_parent(link: DockerLink) -> None:
    pid = os.fork()
    if pid == 0:
        link.abandon()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    link.send(b"still here")
    assert receive_all(link, 10) == b"still here"


# The container.


def test_the_container_is_hardened_and_labelled(link: DockerLink, client: Any) -> None:
    (container,) = ours(client)
    settings = container.attrs["HostConfig"]
    assert settings["NetworkMode"] == "none"
    assert settings["ReadonlyRootfs"]
    assert settings["CapDrop"] == ["ALL"]
    assert not settings["Privileged"]
    assert not settings["Binds"]
    assert not container.attrs["Mounts"]
    assert settings["SecurityOpt"] == ["no-new-privileges:true"]
    assert settings["Memory"] == settings["MemorySwap"] <= client.info()["MemTotal"] // 2
    assert settings["PidsLimit"] > 0
    assert settings["LogConfig"]["Type"] == "none"
    assert settings["AutoRemove"]
    assert container.attrs["Config"]["StdinOnce"]
    assert container.labels[OWNER_LABEL] == str(this_process())
    key = container.labels[docker_backend.LABEL]
    other, _ = DockerBackend(BackendOptions()).launch(Limits(wall_s=1.0), Policy(), 4)
    assert {each.labels[docker_backend.LABEL] for each in ours(client)} > {key}
    other.end()


def test_a_session_s_user_can_write_to_its_own_folder_only(
    docker_image: str,
    stand_in: Any,
) -> None:
    stand_in(f"""
import os, sys
uid, *others = map(int, os.listdir("{SCRATCH}"))
folders = [top for top, _, _ in os.walk("/") if not top.startswith(("/proc", "/sys"))]
folders += [f"{SCRATCH}/{{each}}" for each in (uid, *others)]
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
for folder in folders:
    try:
        os.close(os.open(folder + "/probe", os.O_CREAT | os.O_WRONLY))
        print(folder == f"{SCRATCH}/{{uid}}")
    except OSError:
        pass
try:
    with open(f"{SCRATCH}/{{uid}}/probe", "wb") as file:
        while True:
            file.write(bytes(2**20))
except OSError as error:
    print(error.strerror, os.path.getsize(f"{SCRATCH}/{{uid}}/probe") <= 2**22)
sys.stdout.flush()
""")
    link, _ = DockerBackend(BackendOptions()).launch(Limits(disk_bytes=2**22), Policy(), 2)
    said = b""
    while piece := link.receive():
        said += piece
    link.end()
    assert said.decode().splitlines() == ["True", "No space left on device True"]


def test_a_killed_client_leaves_no_container(docker_image: str, client: Any) -> None:
    code = """
import time
from sandboxes.open import open_sandbox
print(open_sandbox("docker").session().run("1 + 1").stdout, flush=True)
time.sleep(60)
"""
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert host.stdout is not None
    with host, host.stdout:
        assert host.stdout.readline() == b"2\n"
        assert ours(client, host.pid)
        host.send_signal(signal.SIGKILL)
    await_none(client, host.pid)


# Containers that were left.


def orphan(client: Any, image: str, start: bool, **labels: str) -> Any:
    """A container as a dead host could have left it."""
    command = ["python3", "-c", "import time; time.sleep(60)"]
    container = client.containers.create(
        image,
        command,
        network_mode="none",
        labels={HOST_LABEL: docker_backend._host(), docker_backend.LABEL: "", **labels},
    )
    if start:
        container.start()
    return container


def test_the_reaper_takes_what_dead_owners_left_and_nothing_else(
    docker_image: str,
    client: Any,
) -> None:
    me = this_process()
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    earlier = str(Owner(me.boot, me.pid, me.started - 1))  # its number was given to this process
    gone = [
        orphan(client, docker_image, False, **{OWNER_LABEL: earlier}),
        orphan(client, docker_image, True, **{OWNER_LABEL: str(Owner(me.boot, dead.pid, 1))}),
        orphan(client, docker_image, False, **{OWNER_LABEL: str(Owner("0" * 12, me.pid, 1))}),
    ]
    spared = [
        orphan(client, docker_image, False, **{OWNER_LABEL: str(me)}),
        orphan(client, docker_image, False, **{OWNER_LABEL: earlier, HOST_LABEL: "another"}),
    ]
    try:
        assert docker_backend.reap(client) == len(gone)
        left = {each.id for each in client.containers.list(all=True)}
        assert not left & {each.id for each in gone}
        assert left >= {each.id for each in spared}
    finally:
        for each in spared:
            each.remove(force=True)


def test_the_first_launch_reaps(docker_image: str, client: Any, stand_in: Any) -> None:
    stand_in(ECHO)
    me = this_process()
    left = orphan(client, docker_image, False, **{OWNER_LABEL: str(Owner(me.boot, me.pid, 1))})
    link, _ = DockerBackend(BackendOptions()).launch(Limits(), Policy(), 1)
    link.end()
    assert left.id not in {each.id for each in client.containers.list(all=True)}


# What is missing.


def launch(options: BackendOptions = BackendOptions(), policy: Policy = Policy()) -> None:  # noqa: B008
    link, _ = DockerBackend(options).launch(Limits(), policy, 2)
    link.end()


def test_a_missing_image_is_told_with_its_cure(docker_engine: str) -> None:
    with pytest.raises(Unavailable, match="docker pull no-such-image"):
        launch(BackendOptions(image="no-such-image"))


def test_the_missing_default_image_is_told_with_the_command_that_makes_it(
    docker_engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(docker_backend, "default_image", lambda: "mopd-sandbox:none")
    with pytest.raises(Unavailable, match=r"python -m sandboxes\.image"):
        launch()


def test_a_missing_package_is_told_with_the_command_that_adds_it(docker_image: str) -> None:
    with pytest.raises(
        Unavailable, match=r"lacks /no/such.*sandboxes\.image .*--packages /no/such"
    ):
        launch(policy=Policy(packages=("/no/such",)))


def test_an_image_with_volumes_is_refused(docker_image: str, client: Any) -> None:
    container = client.containers.create(docker_image, ["python3"])
    container.commit("mopd-sandbox-volumes", "latest", changes="VOLUME /data")
    container.remove()
    try:
        with pytest.raises(Unavailable, match="volumes /data"):
            launch(BackendOptions(image="mopd-sandbox-volumes"))
    finally:
        client.images.remove("mopd-sandbox-volumes")


def test_the_runtime_is_passed_on(docker_image: str, client: Any) -> None:
    with pytest.raises(Unavailable, match="no-such-runtime"):
        launch(BackendOptions(runtime="no-such-runtime"))
    launch(BackendOptions(runtime="runc"))
    await_none(client)


@pytest.mark.parametrize("host", ["unix:///no/such/socket", "tcp://127.0.0.1:9"])
def test_an_engine_out_of_reach_is_told_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker", reason="no docker-py: pip install 'mopd[docker]'")
    monkeypatch.setenv("DOCKER_HOST", host)
    started_s = time.monotonic()
    with pytest.raises(Unavailable, match=f"{host}.*set DOCKER_HOST"):
        launch()
    assert time.monotonic() - started_s < 5


def test_without_docker_py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(Unavailable, match=r"pip install 'mopd\[docker\]'"):
        launch()


def test_one_loopback_for_many_sessions_is_refused() -> None:
    with pytest.raises(Unavailable, match="loopback"):
        launch(policy=Policy(network="loopback"))


# With the real runner.


def test_sessions_and_programs_run(docker_image: str) -> None:
    sandbox = open_sandbox("docker")
    one, two = sandbox.session(), sandbox.session()
    assert one.run("x = 1\nx + 1").stdout == "2\n"
    assert one.run("x").stdout == "1\n"
    assert two.run("x").status is ExecStatus.EXCEPTION
    uids = {session.run("import os; os.getuid()").stdout for session in (one, two)}
    assert len(uids) == 2
    assert sandbox.run("print(input() * 2)", stdin="ab").stdout == "abab\n"
    sandbox.close()


def test_a_session_imports_the_packages_of_the_image(docker_image: str) -> None:
    folder = str(Path(pytest.__file__).parents[1])
    sandbox = open_sandbox("docker", policy=Policy(packages=(folder,), preload=("pytest",)))
    ran = sandbox.session().run("import pytest; print(pytest.__version__)")
    assert ran.stdout == f"{pytest.__version__}\n", ran
    sandbox.close()


def test_subprocesses_run_and_leave_no_zombies(docker_image: str) -> None:
    sandbox = open_sandbox("docker", policy=Policy(subprocesses=True))
    code = """
import subprocess, sys
for _ in range(5):
    subprocess.Popen([sys.executable, "-c", "import os; os.fork()"], start_new_session=True)
print(subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True).stdout)
"""
    ran = sandbox.run(code)
    assert ran.stdout == "b'7\\n'\n", ran
    deadline_s = time.monotonic() + GONE_S
    while zombies := list(dead_sessions()):
        assert time.monotonic() < deadline_s, zombies
        time.sleep(0.02)
    sandbox.close()


def dead_sessions() -> Iterator[str]:
    """Processes of sessions that nobody has reaped, in an engine on this machine."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            uid = int(re.search(r"^Uid:\t(\d+)", text, re.MULTILINE)[1])
            if "State:\tZ" in text and uid in range(
                docker_backend._FIRST_UID, docker_backend._LAST_UID
            ):
                yield text.splitlines()[0]


def test_a_container_that_is_killed_is_the_sandbox_s_failure_and_replaced(
    docker_image: str,
    client: Any,
) -> None:
    sandbox = open_sandbox("docker", Limits(wall_s=30.0))
    session = sandbox.session()
    assert session.run("1").ok
    for container in ours(client):
        container.kill()
    with pytest.raises(SandboxError):
        session.run("1")
    assert sandbox.session().run("1 + 1").stdout == "2\n"
    sandbox.close()


def test_nothing_that_a_session_leaves_reaches_the_next_of_its_user(docker_image: str) -> None:
    leave = """
import os
os.makedirs("locked/inner")
open("locked/inner/secret", "w").close()
os.symlink("/", "link")
os.chmod("locked", 0)
for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
"""
    policy = Policy(subprocesses=True)  # a container for each session, with few users
    with contextlib.closing(open_sandbox("docker", policy=policy)) as sandbox:
        for _ in range(20):
            ran = sandbox.run("import os; print(os.getuid(), os.listdir())\n" + leave)
            assert ran.ok, ran
            assert "[]" in ran.stdout
