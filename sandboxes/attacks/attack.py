"""An attack, its outcome, and how to make one of a piece of code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sandboxes.attacks.bench import LIMITS, Bench
from sandboxes.base import Limits

Check = Callable[[Bench], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Attack:
    """Something that must not succeed."""

    id: str
    title: str  # what must not happen
    check: Check  # yields the evidence that it did; raises Inapplicable
    harmless: bool = False  # may be tried where nothing holds it back
    claim: str = ""  # the field of `Isolation` that a backend must call hard, if it need not hold


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attack: whether the sandbox held, None where it does not apply."""

    id: str
    title: str
    held: bool | None
    detail: str


def all_refused(
    code: str, refusals: frozenset[str] | None = None, limits: Limits = LIMITS
) -> Check:
    """A check that every attempt of the code fails under each policy."""

    def check(bench: Bench) -> Iterator[str]:
        for report in bench.probe_each(code, limits):
            yield from report.successes(refusals)

    return check
