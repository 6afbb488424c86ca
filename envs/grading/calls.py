"""ToolAlpaca's published rule for calls: names as a multiset, inputs merged in order.

Written calls stand in a text as `Action: name` and `Action Input: {...}`; recorded calls come
from a model's native tool calls and hold one name with its arguments each. Both are judged by the
same rule, so native calling differs from the text in what becomes a call, not in the comparison:

- Text that is not JSON is left out of the written inputs without a word; a native call with
  broken JSON is refused with an observation, and the model can repair it.
- A written name ends where a word ends (`get-facts` counts as `get`) and counts wherever
  `Action:` stands, also in a thought; a native name is compared whole.
- A written call of an unknown name, or with arguments that the documentation does not allow,
  counts and fails; natively it is refused, does not count, and can be repaired.
- A written name may lack its input, an input its name; a native call always has both.
- All written calls come in one message; native calls come one after the other, each with an
  observation, and so end with the limits of an episode.
"""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.grading.feedback import failed
from envs.types import Verdict

_NAME = re.compile(r"Action:\s*(\w+)")
_INPUT = re.compile(r"Action Input:\s*(?=\{)")
_DECODER = json.JSONDecoder()
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an API."""

    name: str
    arguments: Mapping[str, Any]


def grade_written(text: str, expected: Sequence[Call]) -> Verdict:
    """Judge the calls that `text` writes down."""
    return _grade(written_names(text), written_inputs(text), expected)


def grade_recorded(calls: Sequence[Call], expected: Sequence[Call]) -> Verdict:
    """Judge calls that were made natively, in the order in which they were made."""
    return _grade([call.name for call in calls], [call.arguments for call in calls], expected)


def written_names(text: str) -> list[str]:
    """The word after each `Action:`."""
    return _NAME.findall(text)


def written_inputs(text: str) -> list[dict[str, Any]]:
    """The JSON object after each `Action Input:`; what is no JSON is left out.

    The published code takes an object to end at its first closing brace, so it reads no object
    that holds another one or a brace in a string. Here such an object is read whole; everything
    else is read as there, also that broken JSON reaches to the next closing brace.
    """
    inputs, place = [], 0
    while found := _INPUT.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, found.end())
            inputs.append(value)
        except (ValueError, RecursionError):
            place = text.find("}", found.end()) + 1
            if place == 0:
                break
    return inputs


def write(calls: Iterable[Call]) -> str:
    """The published text format of calls."""
    return "\n".join(
        f"Action: {call.name}\nAction Input: {json.dumps(dict(call.arguments), ensure_ascii=False)}"
        for call in calls
    )


def merged(inputs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All inputs as one; the last one with a key has its value."""
    return {key: value for one in inputs for key, value in one.items()}


def _grade(
    names: Sequence[str], inputs: Sequence[Mapping[str, Any]], expected: Sequence[Call]
) -> Verdict:
    wanted_names = [call.name for call in expected]
    got, wanted = merged(inputs), merged(call.arguments for call in expected)
    names_equal, inputs_equal = Counter(names) == Counter(wanted_names), got == wanted
    parts = {"names": float(names_equal), "inputs": float(inputs_equal)}
    if names_equal and inputs_equal:
        return Verdict(1.0, True, "The calls are the expected ones.", parts)
    reasons = []
    if not names_equal:
        reasons.append(f"The calls are {_list(names)}, expected {_list(wanted_names)}.")
    if not inputs_equal:
        reasons.append(_first_difference(got, wanted))
    return failed(" ".join(reasons), **parts)


def _first_difference(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for key, value in wanted.items():
        if key not in got:
            return f"The argument {key!r} is missing, expected {_SHORT.repr(value)}."
        if got[key] != value:
            return (
                f"The argument {key!r} is {_SHORT.repr(got[key])}, expected {_SHORT.repr(value)}."
            )
    extra = next(key for key in got if key not in wanted)
    return f"The argument {_SHORT.repr(extra)} was not expected."


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:8])
    return (shown or "none") + (f" and {len(names) - 8} more" if len(names) > 8 else "")
