"""What a judge says of a program that failed, as far as the hidden tests may be revealed."""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from envs.types import Verdict
from sandboxes.base import CallResult, ExecResult, ExecStatus

# What is told of the first failing test: the call (or input), what came of it and what was
# expected; the call and what came of it; or only how many tests passed, where that is known.
Reveal = Literal["expected", "call", "nothing"]
REVEALS: tuple[Reveal, ...] = get_args(Reveal)

_SHOWN_CHARS = 200
_LINE = re.compile(r'File "(?:<cell \d+>|(?:[^"]*/)?program\.py)", line (\d+)')
ENDINGS = {
    ExecStatus.NONZERO_EXIT: "ended with an error",
    ExecStatus.SIGNAL: "crashed the process",
    ExecStatus.WALL_TIMEOUT: "did not finish in time",
    ExecStatus.CPU_TIMEOUT: "used too much CPU time",
    ExecStatus.OUT_OF_MEMORY: "ran out of memory",
    ExecStatus.OUTPUT_LIMIT: "printed too much",
    ExecStatus.SESSION_DEAD: "ended the process",
}


def failed(feedback: str, **parts: float) -> Verdict:
    """No reward, and why."""
    # A program may raise half of a surrogate pair, which no file and no tokenizer takes.
    return Verdict(0.0, False, feedback.encode("utf-8", "replace").decode("utf-8"), parts)


def revealed(reveal: Reveal, happened: str, expectation: str, score: str) -> str:
    """As much as may be told of a failing test."""
    told = {
        "expected": happened + expectation,
        "call": happened + (expectation and ", and a hidden test failed"),
        "nothing": score,
    }
    return told[reveal]


def score(passed: int, total: int) -> str:
    """How many tests passed."""
    return f"{passed} of {total} hidden tests passed"


def outcome(entry_point: str, arguments: Sequence[Any], result: CallResult) -> str:
    """A call and what came of it."""
    call = f"{entry_point}({', '.join(map(shown, arguments))})"
    if result.ok:
        return f"{call} returned {shown(result.value)}"
    if result.error == f"NameError: name '{entry_point}' is not defined":
        return f"the program does not define {entry_point}"
    if result.status is ExecStatus.EXCEPTION:
        return f"{call} raised {cut(result.error)}"
    return f"{call} {ENDINGS[result.status]}"


def why_ended(result: ExecResult) -> str:
    """Why the program did not run to its end."""
    if result.status is not ExecStatus.EXCEPTION:
        return f"the program {ENDINGS[result.status]}"
    last = (result.stderr.strip().splitlines() or ["an exception"])[-1]
    where = _LINE.findall(result.stderr)
    line = f" in line {where[-1]}" if where else ""
    if last.startswith(("SyntaxError:", "IndentationError:", "TabError:")):
        return f"syntax error{line}: {cut(last.partition(': ')[2])}"
    return f"the program raised {cut(last)}{line}"


def shown(value: Any) -> str:
    """The value as it stands in a feedback."""
    try:
        return cut(repr(value))
    except ValueError:  # digits of an int beyond sys.get_int_max_str_digits()
        return "a value with a very long int"


def cut(text: str) -> str:
    """The text, shortened where it is long."""
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
