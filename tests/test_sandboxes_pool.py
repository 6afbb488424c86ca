"""Who shares processes, who waits, and what becomes of them."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from sandboxes import cgroup, open
from sandboxes.backend import Unavailable
from sandboxes.base import BackendOptions, ExecStatus, Limits, Policy, SandboxError
from sandboxes.landlock import LandlockBackend
from sandboxes.open import BACKENDS, choose, close_all, open_sandbox, probe
from sandboxes.owner import Owner, this_process
from sandboxes.pool import Pool
from sandboxes.pooled import PooledSandbox
from sandboxes.runner import seccomp
from sandboxes.unsafe_local import UnsafeLocalBackend

UNSAFE = BackendOptions(allow_unsafe=True)


@pytest.fixture
def strongest() -> str:
    """The backend that `auto` takes on this machine."""
    return choose()


@pytest.fixture
def small_pool(strongest: str) -> Iterator[Pool]:
    """Room for two sessions."""
    pool = Pool(open._make(strongest, BackendOptions()), Limits(), Policy(), 2)
    yield pool
    pool.close()


def test_auto_takes_the_first_backend_that_works_and_never_the_unsafe_one(strongest: str) -> None:
    working = [name for name in BACKENDS if probe(name, options=UNSAFE) is None]
    assert strongest == working[0] != "unsafe_local"
    with closing(open_sandbox()) as sandbox:
        assert sandbox.name == strongest
        assert sandbox.run("print(1)").backend == strongest


def test_unsafe_local_refuses_to_start_unasked() -> None:
    with (
        closing(open_sandbox("unsafe_local")) as sandbox,
        pytest.raises(SandboxError, match=r"has to be asked for by sandbox.allow_unsafe"),
    ):
        sandbox.run("")


def test_a_policy_that_a_backend_cannot_keep_is_refused_with_the_cure() -> None:
    reason = probe("landlock", Policy(subprocesses=True))
    assert reason is not None
    if probe("landlock") is None:
        assert "use sandbox.backend=jail or docker" in reason


def test_sandboxes_with_equal_limits_share_processes_and_others_do_not(strongest: str) -> None:
    first, second = open_sandbox(strongest), open_sandbox(strongest)
    other = open_sandbox(strongest, Limits(wall_s=1.25))
    try:
        assert first._pool is second._pool
        assert first._pool is not other._pool
    finally:
        for sandbox in (first, second, other):
            sandbox.close()


def test_a_session_waits_for_room_and_the_wait_is_not_its_own_time(small_pool: Pool) -> None:
    with closing(PooledSandbox(small_pool)) as sandbox:
        sessions = [sandbox.session() for _ in range(2)]
        for session in sessions:
            session.run("1")
        threading.Timer(0.5, sessions[0].close).start()
        started_s = time.monotonic()
        result = sandbox.run("print('at last')")
        assert result.stdout == "at last\n"
        assert time.monotonic() - started_s > 0.4
        assert result.wall_s < 0.4


def test_a_pool_in_which_nothing_becomes_free_says_so(
    small_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxes.pool._WAIT_S", 0.2)
    with closing(PooledSandbox(small_pool)) as sandbox:
        for _ in range(2):
            sandbox.session().run("1")
        with pytest.raises(SandboxError, match=r"all 2 sessions were busy for 0.2 s.*max_sessions"):
            sandbox.run("1")


def test_closing_all_ends_what_is_open_and_later_sandboxes_work(strongest: str) -> None:
    old = open_sandbox(strongest)
    session = old.session()
    session.run("x = 1")
    close_all()
    with pytest.raises(SandboxError, match="closed"):
        session.run("x")
    with closing(open_sandbox(strongest)) as new:
        assert new.run("print(2)").stdout == "2\n"


def _use_in_a_fork(
    strongest: str, old: PooledSandbox, answer: "multiprocessing.Queue[str]"
) -> None:
    try:
        old.run("1")
    except SandboxError as error:
        answer.put(str(error))
    with closing(open_sandbox(strongest)) as own:
        answer.put(own.run("print('own')").stdout)


def test_a_fork_of_the_host_has_sandboxes_of_its_own_and_leaves_its_parents_alone(
    strongest: str,
) -> None:
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    with closing(open_sandbox(strongest)) as sandbox:
        session = sandbox.session()
        session.run("x = 1")
        child = context.Process(target=_use_in_a_fork, args=(strongest, sandbox, answer))
        child.start()
        assert "closed" in answer.get(timeout=30)
        assert answer.get(timeout=30) == "own\n"
        child.join(30)
        assert child.exitcode == 0
        assert session.run("x").stdout == "1\n"


def test_threads_of_a_session_do_not_run_between_its_turns(strongest: str) -> None:
    counting = (
        "import threading\nn = 0\ndef count():\n    global n\n    while True: n += 1\n"
        "threading.Thread(target=count, daemon=True).start()"
    )
    with closing(open_sandbox(strongest)) as sandbox:
        session = sandbox.session()
        session.run(counting)
        before = session.run("n")
        time.sleep(2.0)
        after = session.run("n")
    assert before.cpu_s is not None
    assert after.cpu_s is not None
    assert after.cpu_s < 1.0
    assert int(after.stdout) >= int(before.stdout)


def test_programs_of_others_are_not_in_a_sessions_memory(strongest: str) -> None:
    """A session is a fork: of a process that has never seen what others were sent."""
    search = (
        "import ctypes, re\nneedle = ''.join(['sec', 'ret-of-', 'another'])\nfound = 0\n"
        "import gc\nfor thing in gc.get_objects():\n"
        "    if type(thing) in (dict, list, tuple) and len(thing) < 1000:\n"
        "        found += needle in repr(thing)\nprint(found)"
    )
    with closing(open_sandbox(strongest)) as sandbox:
        for _ in range(3):
            sandbox.run("x = 'secret-of-another'", stdin="secret-of-another")
            assert sandbox.run(search).stdout == "1\n"  # its own name for it


def test_an_owner_is_known_again_by_pid_start_and_boot() -> None:
    owner = this_process()
    assert Owner.parse(str(owner)) == owner
    assert owner.alive
    assert not Owner(owner.boot, owner.pid, owner.started + 1).alive
    assert not Owner("another0boot", owner.pid, owner.started).alive
    with pytest.raises(ValueError, match="not enough values"):
        Owner.parse("nobody")


def test_a_control_group_of_a_dead_owner_is_reaped_and_that_of_a_live_one_spared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        own = cgroup.Cgroup(memory_bytes=2**26, processes=8)
    except OSError as error:
        pytest.skip(f"this user may make no control group: {error}")
    folders = list(own._folders)
    try:
        cgroup.reap()
        assert all(folder.exists() for folder in folders)
        monkeypatch.setattr(Owner, "alive", property(lambda owner: owner.pid != os.getpid()))
        assert cgroup.reap() >= len(folders)
        assert not any(folder.exists() for folder in folders)
    finally:
        own.remove()


@pytest.mark.parametrize("backend", [LandlockBackend(), UnsafeLocalBackend(allow_unsafe=False)])
def test_a_backend_that_cannot_says_what_would_cure_it(backend: LandlockBackend) -> None:
    with pytest.raises(Unavailable, match=r"use sandbox\.|sandbox\.allow_unsafe"):
        backend.launch(Limits(), Policy(network="loopback"), 1)


def test_the_filter_jumps_only_to_its_own_steps() -> None:
    for subprocesses in (False, True):
        for loopback in (False, True):
            made = seccomp.template(subprocesses=subprocesses, loopback=loopback, metadata=True)
            steps = [made[start : start + 8] for start in range(0, len(made), 8)]
            for place, step in enumerate(steps):
                assert place + 1 + max(step[2], step[3]) < len(steps) or step[0] == 0x06
            assert seccomp.for_process(made, 7) != made or subprocesses


def test_a_program_gets_its_input_arguments_and_files_and_gives_its_exit_code() -> None:
    program = "import sys\nprint(sys.argv[1:], input(), open('data/a.txt').read())\nsys.exit(3)"
    with closing(open_sandbox()) as sandbox:
        if not sandbox._pool.backend.writable:
            pytest.skip("nothing can be written here")
        files = {"data/a.txt": b"content"}
        result = sandbox.run(program, stdin="line\n", argv=["--x"], files=files)
    assert (result.status, result.exit_code) == (ExecStatus.NONZERO_EXIT, 3)
    assert result.stdout == "['--x'] line content\n"


def test_files_go_in_and_come_out_of_a_session() -> None:
    with closing(open_sandbox()) as sandbox:
        if not sandbox._pool.backend.writable:
            pytest.skip("nothing can be written here")
        session = sandbox.session()
        session.put("in/a.bin", b"\0\xff" * 1000)
        session.run("data = open('in/a.bin', 'rb').read()\nopen('out.bin', 'wb').write(data * 2)")
        assert session.get("out.bin") == b"\0\xff" * 2000
        with pytest.raises(ValueError, match="larger than 10 bytes"):
            session.get("out.bin", max_bytes=10)
        with pytest.raises(OSError, match="No such file"):
            session.get("nothing")
        for path in ("/etc/passwd", "../x", ""):
            with pytest.raises(ValueError, match="relative path"):
                session.get(path)


def test_a_backend_without_a_folder_for_files_refuses_them() -> None:
    if (reason := probe("landlock")) is not None:
        pytest.skip(reason)
    with closing(open_sandbox("landlock")) as sandbox:
        with pytest.raises(SandboxError, match=r"no folder for files: use sandbox.backend=jail"):
            sandbox.session().put("a", b"")
        with pytest.raises(SandboxError, match="no folder for files"):
            sandbox.run("", files={"a": b""})
