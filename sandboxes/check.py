"""`python -m sandboxes.check`: which sandboxes work here, what each keeps apart, and attacks."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sandboxes.attacks import Outcome, run_attacks
from sandboxes.base import BackendOptions, Limits, Policy, SandboxError
from sandboxes.open import BACKENDS, choose, isolation, open_sandbox, probe
from sandboxes.pooled import PooledSandbox


def main(argv: Sequence[str] | None = None) -> int:
    """Probe, attack if asked to, show; 1 where something asked for does not work or hold."""
    args = parse(argv)
    options = BackendOptions(allow_unsafe=args.backend == "unsafe_local")
    names = [name for name in BACKENDS if args.backend in (None, name)]
    if args.attack and args.backend == "unsafe_local":
        print("error: --attack would really attack this machine with unsafe_local: choose "
              "jail, landlock or docker", file=sys.stderr)  # fmt: skip
        return 2
    reports = [report(name, options) for name in names if args.backend or name != "unsafe_local"]
    if args.json is False:
        show(reports)
    failed = args.backend is not None and not reports[0]["works"]
    if args.attack:
        for entry in reports:
            if entry["works"]:
                entry["attacks"] = [
                    shown(outcome, quiet=args.json) for outcome in attack(entry["backend"], options)
                ]
                failed |= any(outcome["held"] is False for outcome in entry["attacks"])
    if args.json:
        print(json.dumps(reports, indent=2))
    return int(failed or not any(entry["works"] for entry in reports))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m sandboxes.check", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="only this one; 1 if it does not work")
    parser.add_argument("--attack", action="store_true", help="run the suite of attacks, minutes")
    parser.add_argument("--json", action="store_true", help="one JSON list and nothing else")
    return parser.parse_args(argv)


def report(name: str, options: BackendOptions) -> dict[str, Any]:
    """Whether the backend works, why not, how long a first run takes, and what it isolates."""
    started_s = time.monotonic()
    reason = probe(name, options=options)
    return {
        "backend": name,
        "works": reason is None,
        "reason": reason,
        "first_run_s": round(time.monotonic() - started_s, 3) if reason is None else None,
        "isolation": isolation(name),
    }


def attack(name: str, options: BackendOptions) -> Iterator[Outcome]:
    """Run every attack of the suite on the backend."""

    def opened(limits: Limits, policy: Policy) -> PooledSandbox:
        return open_sandbox(name, limits, policy, options)

    yield from run_attacks(opened, backend=name)


def shown(outcome: Outcome, *, quiet: bool) -> dict[str, Any]:
    """The outcome as plain data, printed on the way if not quiet."""
    if not quiet:
        mark = {True: "held  ", False: "LEAKED", None: "  -   "}[outcome.held]
        detail = "" if outcome.held else f": {outcome.detail}"
        print(f"{mark} {outcome.id} {outcome.title}{detail}", flush=True)
    return {
        "id": outcome.id,
        "title": outcome.title,
        "held": outcome.held,
        "detail": outcome.detail,
    }


def show(reports: list[dict[str, Any]]) -> None:
    """Two tables: what works, and what it keeps apart."""
    try:
        first = choose()
    except SandboxError:
        first = ""  # none works, as the lines below say
    for entry in reports:
        if entry["works"]:
            chosen = ", the one that `auto` takes" if entry["backend"] == first else ""
            print(f"{entry['backend']:13}works{chosen} (first run after {entry['first_run_s']} s)")
        else:
            print(f"{entry['backend']:13}does not work: {entry['reason']}")
    print()
    subjects = list(reports[0]["isolation"])
    print(f"{'':13}" + "".join(f"{subject:13}" for subject in subjects))
    for entry in reports:
        holds = "".join(f"{entry['isolation'][subject]:13}" for subject in subjects)
        print(f"{entry['backend']:13}{holds}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
