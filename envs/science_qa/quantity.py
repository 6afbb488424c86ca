"""Grading of a number with its unit, within a relative tolerance."""

import math
import re
from dataclasses import dataclass

from envs.grading.choice import shown, tagged
from envs.science_qa import units
from envs.types import Verdict

MAX_CHARS = 200
_NUMBER = re.compile(
    r"(?P<mantissa>[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,50})?(?:\.\d{0,50})?)"
    r"(?:/(?P<divisor>\d{1,50}(?:\.\d{1,50})?)|[eE](?P<e>[-+]?\d{1,3})"
    r"|\s*(?:x|\*|\\times|\\cdot|\u00d7|\u00b7)\s*10(?:\^|\*\*)(?P<ten>[-+]?\d{1,3}))?"
)
_FORM = " Write it like <answer>12.5 m/s</answer>."


@dataclass(frozen=True, slots=True)
class Quantity:
    """A right answer, and how near to it counts."""

    value: float
    unit: str  # as pint knows it
    tolerance: float  # relative
    unit_required: bool = False  # a missing unit is then a mistake, else it is understood
    counted: str = ""  # what is counted, in place of a unit


def grade_quantity(text: str, expected: Quantity) -> Verdict:
    """Judge what stands between the last `<answer>` and the next `</answer>`.

    Another unit of the same dimension is as good; one of another dimension is wrong.
    """
    answer = tagged(text)
    if len(answer) > MAX_CHARS:
        return Verdict(0.0, False, "There is no short text between <answer> and </answer>." + _FORM)
    plain = _plain(answer)
    match = _NUMBER.match(plain)
    value = _value(match) if match else None
    if match is None or value is None:
        said = f"The answer {shown(answer)!r} is no number." if answer else "There is no answer."
        return Verdict(0.0, False, said + _FORM)
    unit = plain[match.end() :].strip()
    try:
        value = _in_unit(value, unit, expected)
    except units.UnitProblem as error:
        return Verdict(0.0, False, f"The answer {shown(answer)} is not correct: {error}.")
    if abs(value - expected.value) <= expected.tolerance * abs(expected.value):
        return Verdict(1.0, True, f"The answer {shown(answer)} is correct.")
    return Verdict(0.0, False, f"The answer {shown(answer)} is {_how_wrong(value, expected)}.")


def _plain(answer: str) -> str:
    """Without the LaTeX around numbers and units, and without a last full stop."""
    text = answer.replace("\u2212", "-").replace("\\%", "%").replace("$", "")
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\^\{([-+]?\d+)\}", r"^\1", text)
    return re.sub(r"\\[,;: ]", " ", text).strip().removesuffix(".")


def _value(match: re.Match[str]) -> float | None:
    mantissa = match["mantissa"].replace(",", "")
    if not any(digit.isdigit() for digit in mantissa):
        return None
    value = float(mantissa)
    try:
        if match["divisor"]:
            value /= float(match["divisor"])
        exponent = int(match["e"] or match["ten"] or 0)
        value *= 10.0**exponent if abs(exponent) <= 300 else math.inf
    except (OverflowError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _in_unit(value: float, unit: str, expected: Quantity) -> float:
    """The value in the expected unit."""
    if expected.counted:
        if unit and expected.counted not in unit.lower().split():
            raise units.UnitProblem(f"expected a number of {expected.counted}")
        return value
    if not unit and expected.unit_required:
        raise units.UnitProblem("its unit is missing")
    return units.convert(value, unit, expected.unit) if unit else value


def _how_wrong(value: float, expected: Quantity) -> str:
    right = expected.value
    if value == -right:
        return "of the wrong sign"
    if value * right <= 0:
        return "not correct"
    ratio = value / right
    size = "too large" if ratio > 1 else "too small"
    return f"{'far ' if not 0.1 < ratio < 10 else ''}{size}"
