"""Where an attack is tried: a sandbox under each policy, the bait, and what came of it."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sandboxes.attacks.bait import Bait
from sandboxes.base import ExecResult, ExecStatus, Limits, Policy, Sandbox, SandboxError, Session

Open = Callable[[Limits, Policy], Sandbox]

PLAIN = Policy()
LOOPBACK = Policy(network="loopback")
OPEN = Policy(network="loopback", subprocesses=True)
LIMITS = Limits()
SHORT = Limits(wall_s=1.0)
CORES = 2  # on which the attacks run: there are as many runners
_AT_ONCE = 6
GRACE_S = 3.0  # from the end of the wall time to the result; it includes the kill

# A call that the kernel turned down before it looked at the arguments.
REFUSALS = frozenset({"EPERM", "EACCES", "ENOSYS"})
_ERRNO = re.compile("E[A-Z0-9]+")
_INSIDE = Path(__file__).with_name("inside.py").read_text()


class Inapplicable(Exception):  # noqa: N818 - a finding
    """The attack makes no sense on this backend; the text says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe said; each thing under its name, in the order in which it was said."""

    result: ExecResult
    said: dict[str, str]
    policy: Policy

    def __getitem__(self, name: str) -> str:
        return self.said.get(name, "")

    @property
    def where(self) -> str:
        """The policy in a word, for the evidence."""
        return f"[{self.policy.network}{', subprocesses' if self.policy.subprocesses else ''}]"

    def unfinished(self) -> Iterator[str]:
        """Why this report proves nothing, if it does not reach its end or a probe is broken."""
        if "end" not in self.said:
            last = (self.result.stderr.strip().splitlines() or [""])[-1]
            status, code = self.result.status, self.result.exit_code
            yield f"{self.where} inconclusive: ended early with {status} {code} {last[:200]}"
        for name, value in self.said.items():
            if value.startswith("broken"):
                yield f"{self.where} inconclusive: {name} {value}"

    def successes(self, refusals: frozenset[str] | None = None) -> Iterator[str]:
        """The attempts that did not fail, or with no error of `refusals`; None: any error will do.

        A probe that proves nothing counts as a success of the attack.
        """
        yield from self.unfinished()
        for name, value in self.said.items():
            if value.startswith("done"):
                yield f"{self.where} {name} {value}"
            elif refusals is not None and _ERRNO.fullmatch(value) and value not in refusals:
                yield f"{self.where} {name} reached the kernel: {value}"


class Bench:
    """The sandboxes of one backend, opened when they are first needed."""

    def __init__(self, open_sandbox: Open, backend: str, bait: Bait) -> None:
        self._open = open_sandbox
        self.backend = backend
        self.bait = bait
        self._sandboxes: dict[tuple[Limits, Policy], Sandbox] = {}
        self._warm: set[tuple[Limits, Policy]] = set()
        self._unavailable: dict[Policy, str] = {}
        self._lock = threading.RLock()

    def sandbox(self, policy: Policy = PLAIN, limits: Limits = LIMITS) -> Sandbox:
        """The sandbox with these limits under this policy.

        Raises:
            Inapplicable: the backend has no such policy.
        """
        with self._lock:
            if policy in self._unavailable:
                raise Inapplicable(self._unavailable[policy])
            if (limits, policy) not in self._sandboxes:
                try:
                    sandbox = self._open(limits, policy)
                    sandbox.run("")  # it starts at its first use
                    self._sandboxes[limits, policy] = sandbox
                except SandboxError as reason:
                    if policy == PLAIN:
                        raise
                    self._unavailable[policy] = str(reason)
                    raise Inapplicable(str(reason)) from reason
            return self._sandboxes[limits, policy]

    def policies(self) -> tuple[Policy, ...]:
        """The strictest and the widest policy, as far as the backend has them."""
        for widest in (OPEN, LOOPBACK):
            with contextlib.suppress(Inapplicable):
                self.sandbox(widest)
                return PLAIN, widest
        return (PLAIN,)

    def probe(
        self, code: str, policy: Policy = PLAIN, limits: Limits = LIMITS, stdin: str = ""
    ) -> Report:
        """Run a probe as a program of its own."""
        result = self.sandbox(policy, limits).run(self.source(code), stdin=stdin)
        return Report(result, _said(result.stdout), policy)

    def probe_each(self, code: str, limits: Limits = LIMITS) -> Iterator[Report]:
        """Run a probe under each policy."""
        for policy in self.policies():
            yield self.probe(code, policy, limits)

    @contextlib.contextmanager
    def session(self, policy: Policy = PLAIN, limits: Limits = LIMITS) -> Iterator[Session]:
        """A session, closed in the end."""
        with closing(self.sandbox(policy, limits).session()) as session:
            yield session

    @contextlib.contextmanager
    def siblings(
        self, policy: Policy = PLAIN, limits: Limits = LIMITS
    ) -> Iterator[tuple[Session, ...]]:
        """Other sessions, at least one of them in each runner where an attacker may come to be."""
        sandbox = self.sandbox(policy, limits)
        if (limits, policy) not in self._warm:
            self._warm.add((limits, policy))
            with contextlib.ExitStack() as stack:
                for _ in range(CORES + 1):  # while more are open than runners, another one starts
                    stack.enter_context(closing(sandbox.session())).run("1")
                    time.sleep(0.3)
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(closing(sandbox.session())) for _ in range(CORES)]
            for session in sessions:
                session.run("1")
            yield tuple(sessions)

    def ask(self, session: Session, code: str, policy: Policy = PLAIN) -> Report:
        """Run a probe as a cell of a session."""
        result = session.run(self.source(code))
        return Report(result, _said(result.stdout), policy)

    def at_once(self, checks: Iterable[Iterator[str]]) -> Iterator[str]:
        """The evidence of several checks, most of whose time is spent in waiting."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            futures = [threads.submit(list[str], check) for check in checks]
            for future in futures:
                yield from future.result()

    def source(self, code: str) -> str:
        """The probe with all that it builds on."""
        return f"BAIT = {self.bait.public()!r}\n{_INSIDE}\n{code}\nend()\n"

    def aftermath(self) -> Iterator[str]:
        """What an attack must never leave behind, whatever it was after."""
        if pids := self.bait.survivors():
            yield f"still alive: processes {pids[:5]}"
        if names := self.bait.changed_host_files():
            yield f"changed on the host: {', '.join(names)}"
        if touched := self.bait.touched_listeners():
            yield f"reached on the host: {', '.join(touched)}"
        if self.bait.victim_was_signalled():
            yield "a process of the host was signalled"
        for key, sandbox in tuple(self._sandboxes.items()):
            started_s = time.monotonic()
            try:
                result = sandbox.run("print(6 * 7)")
                if (result.status, result.stdout) != (ExecStatus.OK, "42\n"):
                    yield f"the next program failed: {result.status} {result.stderr[-200:]}"
            except SandboxError as error:
                yield f"the next program found the sandbox broken: {error}"
                del self._sandboxes[key]
            if (took_s := time.monotonic() - started_s) > GRACE_S:
                yield f"the next program took {took_s:.1f} s"

    def abandon(self) -> None:
        """Forget the sandboxes without closing them, which might hang."""
        self._sandboxes.clear()

    def close(self) -> None:
        """Close the sandboxes."""
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()


def _said(output: str) -> dict[str, str]:
    lines = (line[1:].partition("\t") for line in output.splitlines() if line.startswith("@"))
    return {name: value for name, _, value in lines}
