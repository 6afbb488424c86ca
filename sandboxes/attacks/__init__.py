"""What no sandbox may let through, as data: `run_attacks` tries it on any of them."""

import os
import threading
from collections.abc import Collection, Iterator

from sandboxes.attacks import channel, files, kernel, leaks, network, processes, resources, results
from sandboxes.attacks.attack import Attack, Outcome
from sandboxes.attacks.bait import Bait
from sandboxes.attacks.bench import CORES, Bench, Inapplicable, Open
from sandboxes.base import SandboxError
from sandboxes.open import isolation

ATTACKS: tuple[Attack, ...] = tuple(
    sorted(
        (
            *network.ATTACKS,
            *files.ATTACKS,
            *resources.ATTACKS,
            *processes.ATTACKS,
            *kernel.ATTACKS,
            *results.ATTACKS,
            *leaks.ATTACKS,
            *channel.ATTACKS,
        ),
        key=lambda attack: attack.id,
    )
)
_HUNG_S = 120.0

__all__ = ["ATTACKS", "Attack", "Outcome", "run_attacks"]


def run_attacks(
    open_sandbox: Open, *, backend: str, ids: Collection[str] | None = None
) -> Iterator[Outcome]:
    """Try the attacks, or those of `ids`, one after another; a finding of the host counts too.

    On `unsafe_local` only harmless ones are tried: nothing would hold the others back.
    """
    cores, kept = os.sched_getaffinity(0), isolation(backend)
    with Bait() as bait:
        bench = Bench(open_sandbox, backend, bait)
        os.sched_setaffinity(0, sorted(cores)[:CORES])
        try:
            for attack in ATTACKS:
                if ids is not None and attack.id not in ids:
                    continue
                claimed = not attack.claim or kept[attack.claim] == "hard"
                if backend == "unsafe_local" and not attack.harmless:
                    reason = "it would harm this machine"
                    yield Outcome(attack.id, attack.title, None, reason)
                elif not claimed:
                    reason = f"{attack.claim} is kept apart {kept[attack.claim]}"
                    yield Outcome(attack.id, attack.title, None, reason)
                else:
                    yield _tried(attack, bench)
        finally:
            os.sched_setaffinity(0, cores)
            bench.close()


def _tried(attack: Attack, bench: Bench) -> Outcome:
    evidence: list[str] = []
    reasons: list[str] = []
    thread = threading.Thread(
        target=_collect, args=(attack, bench, evidence, reasons), name="attack", daemon=True
    )
    thread.start()
    thread.join(_HUNG_S)
    if thread.is_alive():
        evidence.append(f"it hung for {_HUNG_S:g} s")
        bench.abandon()
    if evidence:
        return Outcome(attack.id, attack.title, False, "; ".join(evidence)[:2000])
    if reasons:
        return Outcome(attack.id, attack.title, None, reasons[0])
    return Outcome(attack.id, attack.title, True, "")


def _collect(attack: Attack, bench: Bench, evidence: list[str], reasons: list[str]) -> None:
    try:
        evidence.extend(attack.check(bench))
    except Inapplicable as reason:
        reasons.append(str(reason))
    except SandboxError as error:
        evidence.append(f"the sandbox broke: {error}")
    except Exception as error:  # a host that the attack brings to raise anything else has lost
        evidence.append(f"the host raised {error!r}")
    evidence.extend(bench.aftermath())
