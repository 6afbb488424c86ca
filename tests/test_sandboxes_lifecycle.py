"""Whatever is killed, nothing is left behind, every result is typed, and the sandbox goes on."""

import contextlib
import gc
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sandboxes import cgroup
from sandboxes.attacks.channel import descendants
from sandboxes.base import BackendOptions, ExecResult, ExecStatus, Limits, Policy, SandboxError
from sandboxes.open import close_all, open_sandbox, probe
from sandboxes.owner import Owner
from sandboxes.pooled import PooledSandbox
from sandboxes.reap import reap_containers

pytest_plugins = ["docker_engine"]  # its fixtures, once for all files

ROOT = Path(__file__).parents[1]
OPTIONS = BackendOptions(allow_unsafe=True, max_sessions=400)
GONE_S = 2.0
EXECUTIONS = {"jail": 2000, "landlock": 400, "unsafe_local": 400, "docker": 80}
KILLS = {"jail": 40, "landlock": 12, "unsafe_local": 12, "docker": 3}
DEAD_HOSTS = {"jail": 8, "landlock": 3, "unsafe_local": 3, "docker": 2}
AT_ONCE = 4
IDLE_CONNECTIONS = 30  # ten for each client of the engine
SESSIONS, THEIR_BYTES = 300, 2**30

# A process of its own that uses a sandbox until it is killed.
HOST = """
import sys, threading
from sandboxes.base import BackendOptions, Limits
from sandboxes.open import open_sandbox
sandbox = open_sandbox(sys.argv[1], Limits(wall_s=30.0), options=BackendOptions(allow_unsafe=True))
idle, busy = sandbox.session(), sandbox.session()
idle.run("x = 1")
idle.run("import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()")
def work():
    while True:
        sandbox.run("print(1)")
threading.Thread(target=work, daemon=True).start()
busy.run("1")
print("ready", flush=True)
busy.run("while True: pass")
"""

PROGRAMS: tuple[tuple[str, ExecStatus], ...] = (
    ("", ExecStatus.OK),
    ("1 / 0", ExecStatus.EXCEPTION),
    ("import sys; sys.exit(3)", ExecStatus.NONZERO_EXIT),
    ("import os; os._exit(2)", ExecStatus.NONZERO_EXIT),
    ("import ctypes; ctypes.string_at(0)", ExecStatus.SIGNAL),
)


@pytest.fixture(params=EXECUTIONS)
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """The name of a backend that works here; temporary files go to a folder of the test."""
    name: str = request.param
    if name == "docker":
        request.getfixturevalue("docker_image")
    if reason := probe(name, options=OPTIONS):
        pytest.skip(f"{name} does not work here: {reason}")
    close_all()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield name
    close_all()


@pytest.fixture
def sandbox(backend: str) -> Iterator[PooledSandbox]:
    with closing(open_sandbox(backend, Limits(wall_s=20.0), options=OPTIONS)) as sandbox:
        yield sandbox


def left_behind(backend: str, owner: int | None = None) -> dict[str, Any]:
    """What there is that a sandbox of this process, or of another, may have made."""
    pid = owner or os.getpid()
    places = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
    groups = {str(group) for place in places for group in place.glob(f"mopd-sandbox-*-{pid}-*")}
    return {
        "processes": descendants(os.getpid()),
        "control groups": groups,
        "containers": {each.id for each in containers(backend, pid)},
        "descriptors": set(os.listdir("/proc/self/fd")),
        "mounts": Path("/proc/self/mounts").read_text(),
        "temporary files": set(os.listdir(tempfile.gettempdir())),
    }


def containers(backend: str, pid: int) -> list[Any]:
    if backend != "docker":
        return []
    import docker

    from sandboxes.docker_backend import OWNER_LABEL

    with closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": OWNER_LABEL}, sparse=True)
        return [each for each in found if Owner.parse(each.attrs["Labels"][OWNER_LABEL]).pid == pid]


def await_equal(measure: Callable[[], Any], wanted: Any, patience_s: float = GONE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while measure() != wanted and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert measure() == wanted


def kill_one(backend: str, spared: set[int], rng: random.Random) -> None:
    """Kill a process of this process's sandboxes, or a container, whichever chance picks."""
    if backend == "docker":
        import docker

        for container in containers(backend, os.getpid())[:1]:
            with contextlib.suppress(docker.errors.APIError):  # it is ending by itself
                container.kill()
        return
    candidates = sorted(descendants(os.getpid()) - spared)
    if not candidates:
        return
    with contextlib.suppress(ProcessLookupError, OSError):
        pid = rng.choice(candidates)
        pidfd = os.pidfd_open(pid)
        try:
            if pid in descendants(os.getpid()):  # still, so the number is no other process's
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


@contextlib.contextmanager
def host(backend: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses the backend."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", HOST, backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 60)
            assert ready
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_host_that_is_killed_leaves_nothing(backend: str, number: signal.Signals) -> None:
    before = left_behind(backend, owner=-1)
    with host(backend) as process:
        its_own = descendants(process.pid)
        assert its_own or backend == "docker"
        assert containers(backend, process.pid) or backend != "docker"
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # tells where each of its threads is
            pytest.fail(f"it goes on: {process.communicate(timeout=10)[1].decode()}")
        deadline_s = time.monotonic() + GONE_S
        while left := set(filter(is_running, its_own)):
            assert time.monotonic() < deadline_s, left
            time.sleep(0.02)
        await_equal(lambda: [c for c in containers(backend, process.pid) if has_run(c)], [])
        # What every process that has a sandbox does at its start. An engine keeps a container that
        # was about to be started: nobody can end it with a host that dies between two requests.
        cgroup.reap()
        if backend == "docker":
            reap_containers()
        assert containers(backend, process.pid) == []
        assert left_behind(backend, process.pid)["control groups"] == set()
    if backend == "unsafe_local":  # nobody removes its folder
        return
    assert set(os.listdir(tempfile.gettempdir())) == before["temporary files"]


def has_run(container: Any) -> bool:
    """Whether there is, or was, a process in it."""
    return bool(container.status != "created")


def is_running(pid: int) -> bool:
    """Whether it has not ended; to bury what a dead host leaves is init's business."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_a_sandbox_outlives_the_thread_that_opened_it(backend: str) -> None:
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(open_sandbox, backend, Limits(wall_s=21.0), options=OPTIONS)
        session = opened.result().session()
        thread.submit(session.run, "kept = 42").result()
    with closing(opened.result()) as sandbox, closing(session):
        time.sleep(0.2)
        assert session.run("kept").stdout == "42\n"
        assert sandbox.run("print(1)").ok


def test_a_killed_runner_is_the_sandboxs_failure_and_the_next_run_works(
    backend: str, sandbox: PooledSandbox
) -> None:
    with closing(sandbox.session()) as session:
        others = descendants(os.getpid())
        assert session.run("kept = 1").ok
        if backend == "docker":
            for container in containers(backend, os.getpid()):
                container.kill()
        else:
            for pid in sorted(descendants(os.getpid()) - others):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError):
            session.run("kept")
        assert session.run("6 * 7").stdout == "42\n"
    assert sandbox.run("print(6 * 7)").stdout == "42\n"


def test_an_exception_of_the_host_in_the_middle_of_a_run_ends_the_process(
    backend: str, sandbox: PooledSandbox
) -> None:
    class Cancelled(BaseException):
        pass

    def cancel() -> None:
        raise Cancelled

    with closing(sandbox.session()) as session:
        session.run("kept = 1")
        with pytest.raises(Cancelled):
            session.run("cancel()\nwhile True: pass", callbacks={"cancel": cancel})
        assert "NameError" in session.run("kept").stderr


def test_policies_never_share_a_process(backend: str) -> None:
    """Also after one has given its runner up."""
    other = Policy(preload=("json",))
    seen: list[set[int]] = []
    for policy in (Policy(), other, Policy(), other):
        known = descendants(os.getpid())
        with closing(open_sandbox(backend, Limits(wall_s=22.0), policy, OPTIONS)) as sandbox:
            loaded = sandbox.run("import sys; print('json' in sys.modules)").stdout
            assert loaded == f"{policy == other}\n"
        seen.append(descendants(os.getpid()) - known)
    if backend != "docker":
        assert seen[0]
        assert seen[1]
        assert not seen[0] & seen[1]


def test_three_hundred_sessions_are_open_at_once_in_a_gigabyte(backend: str) -> None:
    if backend == "docker" or os.geteuid() != 0:
        pytest.skip("only root can measure what the processes of other users take")
    known = descendants(os.getpid())
    with closing(open_sandbox(backend, Limits(wall_s=60.0), options=OPTIONS)) as sandbox:
        sessions = [sandbox.session() for _ in range(SESSIONS)]
        for number, session in enumerate(sessions):
            assert session.run(f"own = {number}").ok
        taken = sum(map(proportional_bytes, descendants(os.getpid()) - known))
        assert SESSIONS * 2**16 < taken < THEIR_BYTES
        for number, session in enumerate(sessions):
            assert session.run("own").stdout == f"{number}\n"


def proportional_bytes(pid: int) -> int:
    """What a process takes, memory that it shares counted in parts."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def test_thousands_of_executions_among_random_kills_leave_nothing_and_end_typed(
    backend: str,
) -> None:
    rng = random.Random(0)
    warm_up(backend)
    close_all()
    before = left_behind(backend)
    statuses: Counter[str] = Counter()
    done, spared = threading.Event(), set(before["processes"])
    executions = EXECUTIONS[backend]
    hosts = threading.Thread(target=kill_hosts, args=(backend, spared, random.Random(1)))
    with closing(open_sandbox(backend, Limits(wall_s=20.0), options=OPTIONS)) as sandbox:
        counted = [0]

        def execute(number: int) -> None:
            statuses[one_execution(sandbox, number)] += 1
            counted[0] += 1

        def kill() -> None:
            for kill in range(1, KILLS[backend] + 1):
                while counted[0] < kill * executions // (KILLS[backend] + 1) and not done.is_set():
                    time.sleep(0.01)
                # What another host started is that host's to lose.
                kill_one(backend, spared | descendants_of_hosts(spared), rng)

        killer = threading.Thread(target=kill)
        killer.start()
        hosts.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(execute, range(executions)))
        finally:
            done.set()
            killer.join()
            hosts.join()
        assert sum(statuses.values()) == executions
        assert statuses["as expected"] > 0.9 * executions, statuses
        await_equal(lambda: sandbox.run("print(6 * 7)").stdout, "42\n")
    close_all()
    cgroup.reap()
    gc.collect()
    for what in ("processes", "control groups", "containers", "mounts"):
        await_equal(lambda what=what: left_behind(backend)[what], before[what])  # type: ignore[misc]
    kept = len(left_behind(backend)["descriptors"] - before["descriptors"])
    assert kept <= (IDLE_CONNECTIONS if backend == "docker" else 0)
    if backend != "unsafe_local":  # the folders of killed hosts are nobody's
        assert left_behind(backend)["temporary files"] == before["temporary files"]


def warm_up(backend: str) -> None:
    """Have done what a process does once: imports, threads, the descriptors that they keep."""
    with closing(open_sandbox(backend, Limits(wall_s=23.0), options=OPTIONS)) as sandbox:
        sandbox.run("")


def one_execution(sandbox: PooledSandbox, number: int) -> str:
    """How it ended: as it should, in the sandbox's own failure, or killed; anything else fails."""
    code, expected = PROGRAMS[number % len(PROGRAMS)]
    try:
        if number % 10 == 9:
            with closing(sandbox.session()) as session:
                result = session.run(f"print({number})")
                expected = ExecStatus.OK
        else:
            result = sandbox.run(f"print({number}, flush=True)\n{code}")
    except SandboxError:
        return "sandbox error"
    assert isinstance(result, ExecResult)
    # No program here ends by SIGKILL, and one of them ends by another signal as it should.
    if result.status is expected and result.exit_code != -signal.SIGKILL:
        assert result.stdout == f"{number}\n"
        return "as expected"
    killed = (ExecStatus.SIGNAL, ExecStatus.SESSION_DEAD)
    assert result.status in killed, result
    return "killed"


HOSTS: set[int] = set()


def descendants_of_hosts(spared: set[int]) -> set[int]:
    """The hosts that are at work now, and all that they have started."""
    pids = set(HOSTS)
    return pids | {child for pid in pids - spared for child in descendants(pid)}


def kill_hosts(backend: str, spared: set[int], rng: random.Random) -> None:
    """Start processes that use the backend too, and kill each at some moment."""
    for _ in range(DEAD_HOSTS[backend]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOST, backend], stdout=subprocess.PIPE, env=environment
        )
        HOSTS.add(process.pid)
        assert process.stdout is not None
        if rng.random() < 0.7:
            process.stdout.readline()
        time.sleep(rng.random() / 2)
        process.kill()
        process.wait()
        process.stdout.close()
        time.sleep(0.2)
        HOSTS.discard(process.pid)
