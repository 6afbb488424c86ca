"""Where a backend's name becomes a sandbox, on a pool that all of this process share."""

import atexit
import os
import threading
import time
from collections.abc import Callable

from sandboxes import cgroup
from sandboxes.backend import Backend, Unavailable
from sandboxes.base import BackendOptions, Limits, Policy, SandboxError
from sandboxes.jail import JailBackend
from sandboxes.landlock import LandlockBackend
from sandboxes.pool import Pool
from sandboxes.pooled import PooledSandbox
from sandboxes.reap import reap_containers
from sandboxes.unsafe_local import UnsafeLocalBackend


def _docker(options: BackendOptions) -> Backend:
    from sandboxes.docker_backend import DockerBackend  # its library is an extra

    return DockerBackend(options)


# The strongest first; `auto` takes the first that works, and never unsafe_local.
_BACKENDS: dict[str, Callable[[BackendOptions], Backend]] = {
    "jail": lambda options: JailBackend(),
    "landlock": lambda options: LandlockBackend(),
    "docker": _docker,
    "unsafe_local": lambda options: UnsafeLocalBackend(allow_unsafe=options.allow_unsafe),
}
BACKENDS = tuple(_BACKENDS)
_KEPT_S = 120.0  # a pool without users is kept warm so long
_TEND_S = 30.0

_Key = tuple[str, Limits, Policy, BackendOptions, str | None]
_lock = threading.RLock()
_pools: dict[_Key, Pool] = {}
_findings: dict[tuple[str, Policy, BackendOptions, str | None], str | None] = {}
_tending = threading.Event()


def open_sandbox(
    backend: str = "auto",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    policy: Policy = Policy(),  # noqa: B008
    options: BackendOptions = BackendOptions(),  # noqa: B008
) -> PooledSandbox:
    """The sandbox called `backend`, or the first that works here; others may share its processes.

    Raises:
        ValueError: there is no such backend.
        SandboxError: it does not work here, with what would cure it.
    """
    if backend == "auto":
        backend = choose(policy, options)
    made = _make(backend, options)
    with _lock:
        key = (backend, limits, policy, options, os.environ.get("DOCKER_HOST"))
        if key not in _pools:
            _pools[key] = Pool(made, limits, policy, options.max_sessions)
            _begin_tending()
        return PooledSandbox(_pools[key])


def choose(
    policy: Policy = Policy(),  # noqa: B008 - frozen
    options: BackendOptions = BackendOptions(),  # noqa: B008
) -> str:
    """The first backend that works here under this policy.

    Raises:
        SandboxError: none does, with what would cure each.
    """
    reasons = []
    for name in BACKENDS:
        if name == "unsafe_local":
            continue
        reason = probe(name, policy, options)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise SandboxError("no sandbox works here; " + "; ".join(reasons))


def probe(
    backend: str,
    policy: Policy = Policy(),  # noqa: B008 - frozen
    options: BackendOptions = BackendOptions(),  # noqa: B008
) -> str | None:
    """Why the backend does not work here, None if it does: found once, by running code in it."""
    key = (backend, policy, options, os.environ.get("DOCKER_HOST"))
    if key not in _findings:
        _findings[key] = _try(_make(backend, options), policy)
    return _findings[key]


def isolation(backend: str) -> dict[str, str]:
    """What the backend keeps apart, and how well."""
    kept = _make(backend, BackendOptions()).isolation
    return {name: getattr(kept, name) for name in kept.__slots__}


def close_all() -> None:
    """End every pool of this process; sandboxes that are opened later start afresh."""
    with _lock:
        pools = tuple(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()


def _make(backend: str, options: BackendOptions) -> Backend:
    if backend not in _BACKENDS:
        names = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"unknown sandbox backend {backend!r}: there are {names}")
    return _BACKENDS[backend](options)


def _try(backend: Backend, policy: Policy) -> str | None:
    sandbox = None
    pool = Pool(backend, Limits(), policy, 1)
    try:
        sandbox = PooledSandbox(pool)
        result = sandbox.run("print(6 * 7)")
    except (SandboxError, Unavailable) as error:
        return str(error).removeprefix(f"{backend.name}: no runner could be started: ")
    finally:
        pool.close()
    if result.stdout != "42\n":
        return f"6 * 7 gave {result.stdout!r}, {result.status}: {result.stderr[-500:]}"
    return None


def _begin_tending() -> None:
    if not _tending.is_set():
        _tending.set()
        threading.Thread(target=_tend, name="sandbox-tend", daemon=True).start()


def _tend() -> None:
    """Remove what killed processes left, close what nobody uses, and drop what broke."""
    while True:
        cgroup.reap()
        with _lock:
            uses_docker = any(name == "docker" for name, *_ in _pools)
        if uses_docker:
            reap_containers()
        time.sleep(_TEND_S)
        now_s = time.monotonic()
        with _lock:
            idle = [
                key
                for key, pool in _pools.items()
                if pool.users <= 0 and now_s - pool.unused_since_s > _KEPT_S
            ]
            pools = [_pools.pop(key) for key in idle]
            kept = tuple(_pools.values())
        for pool in pools:
            pool.close()
        for pool in kept:
            pool.tend()


def _start_anew_in_child() -> None:
    """A fork has no threads and must not hold its parent's lines: it begins without pools."""
    global _lock
    _lock = threading.RLock()
    for pool in _pools.values():
        pool.abandon()
    _pools.clear()
    _tending.clear()


os.register_at_fork(after_in_child=_start_anew_in_child)
atexit.register(close_all)
