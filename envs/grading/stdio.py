"""The judge of whole programs that read standard input and write standard output."""

import math
import re
from collections.abc import Sequence
from itertools import zip_longest

from envs.grading.feedback import Reveal, failed, revealed, score, shown, why_ended
from envs.types import Verdict
from sandboxes.base import ExecResult, Sandbox

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def judge_stdio(
    sandbox: Sandbox,
    program: str,
    cases: Sequence[tuple[str, str]],
    *,
    tolerance: float = 0.0,
    reveal: Reveal = "expected",
) -> Verdict:
    """Whether the program, run anew for each case, prints what is expected and ends well.

    A case is the input and the expected output, which stays on the host. The first failing case
    is the last one that is run: the reward is 0 by then, and a program that hangs would cost the
    whole time limit in each of them. So `cases_passed` counts the cases before it.

    Raises:
        SandboxError: the sandbox failed, so there is no verdict.
        ValueError: no program could pass, or there are no cases.
    """
    if not cases:
        raise ValueError("no cases: a verdict needs at least one")
    longest = max(len(output.encode("utf-8", "replace")) for _, output in cases)
    if longest > (kept := sandbox.limits.max_output_bytes):
        raise ValueError(
            f"an output of {longest} bytes is expected, and the sandbox keeps {kept}: "
            "raise Limits.max_output_bytes"
        )
    for passed, (stdin, expected) in enumerate(cases):
        result = sandbox.run(program, stdin=stdin)
        happened, expectation = _ending(result), ""
        if not happened and (difference := first_difference(result.stdout, expected, tolerance)):
            line, got, wanted = difference
            happened = f"line {line} of the output is {'missing' if got is None else shown(got)}"
            expectation = f", expected {'no such line' if wanted is None else shown(wanted)}"
        if happened:
            happened = f"for the input {shown(stdin)} {happened}"
            so_far = f"{score(passed, len(cases))} before one that failed"
            share = passed / len(cases)
            return failed(revealed(reveal, happened, expectation, so_far), cases_passed=share)
    return Verdict(1.0, True, parts={"cases_passed": 1.0})


def first_difference(
    got: str, expected: str, tolerance: float = 0.0
) -> tuple[int, str | None, str | None] | None:
    """The number of the first line that differs, and the two lines; None where none does.

    White space at the end of a line and empty lines at the end of the output do not count. With
    a `tolerance`, lines are compared word by word, and numbers of which one has a fraction or an
    exponent may differ by it: relative, and absolute below 1.
    """
    pairs = zip_longest(_lines(got), _lines(expected))
    for number, (line, wanted) in enumerate(pairs, start=1):
        if line != wanted and not (
            tolerance and line is not None and wanted is not None and _near(line, wanted, tolerance)
        ):
            return number, line, wanted
    return None


def _lines(text: str) -> list[str]:
    # Not splitlines(): only a newline ends a line of a program's output.
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _near(line: str, wanted: str, tolerance: float) -> bool:
    words, wanted_words = line.split(), wanted.split()
    return len(words) == len(wanted_words) and all(
        word == other or _near_numbers(word, other, tolerance)
        for word, other in zip(words, wanted_words, strict=True)
    )


def _near_numbers(word: str, other: str, tolerance: float) -> bool:
    if not (_DECIMAL.fullmatch(word) and _DECIMAL.fullmatch(other)):  # nor nan and inf
        return False
    if _INTEGER.fullmatch(word) and _INTEGER.fullmatch(other):
        return False
    got, expected = float(word), float(other)
    return abs(got - expected) <= tolerance * max(1.0, abs(expected)) < math.inf


def _ending(result: ExecResult) -> str:
    """What is wrong with how the program ended, nothing where it ended well."""
    if not result.ok or result.exit_code != 0:
        return why_ended(result)
    return "the program printed too much" if result.stdout_truncated else ""
