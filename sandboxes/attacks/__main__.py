"""Runs the attacks on one backend of this machine: `python -m sandboxes.attacks --backend jail`."""

import argparse
import json
import sys
from dataclasses import asdict

from sandboxes.attacks import Outcome, run_attacks
from sandboxes.attacks.cage import NoCage, enter_cage
from sandboxes.base import BackendOptions
from sandboxes.open import open_sandbox

_MEMORY_BYTES, _PROCESSES = 3 * 2**30, 512
_UNSAFE_MEMORY_BYTES, _UNSAFE_PROCESSES = 2**30, 64
NO_CAGE = 3  # the exit code where none can be made


def main() -> int:
    """Print an outcome a line; the exit code is 1 if the sandbox did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="jail")
    parser.add_argument("--ids", nargs="*", metavar="A01", help="only these attacks")
    parser.add_argument("--json", action="store_true", help="an object of JSON a line")
    parser.add_argument("--caged", action="store_true", help="in a control group; root only")
    arguments = parser.parse_args()
    unsafe = arguments.backend == "unsafe_local"
    if unsafe or arguments.caged:
        try:
            enter_cage(
                _UNSAFE_MEMORY_BYTES if unsafe else _MEMORY_BYTES,
                _UNSAFE_PROCESSES if unsafe else _PROCESSES,
            )
        except NoCage as reason:
            print(reason, file=sys.stderr)
            return NO_CAGE
    options = BackendOptions(allow_unsafe=unsafe)
    held = True
    for outcome in run_attacks(
        lambda limits, policy: open_sandbox(arguments.backend, limits, policy, options),
        backend=arguments.backend,
        ids=arguments.ids,
    ):
        held = held and outcome.held is not False
        print(json.dumps(asdict(outcome)) if arguments.json else _line(outcome), flush=True)
    return 0 if held else 1


def _line(outcome: Outcome) -> str:
    word = {True: "held", False: "LEAK", None: "n/a "}[outcome.held]
    return f"{outcome.id} {word} {outcome.title}" + (f": {outcome.detail}" * bool(outcome.detail))


if __name__ == "__main__":
    sys.exit(main())
