"""Conversion of units with pint, behind a grammar that lets no arithmetic through."""

import difflib
import math
import re
import threading
from functools import lru_cache
from tokenize import TokenError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pint

MAX_CHARS = 60
_LOCK = threading.Lock()  # units of two registries do not mix: threads must not build one each

# pint evaluates what it is given: m**9**9**9 would run for hours, a thousand parentheses would
# exhaust the stack. What passes here are names, one-digit powers and one level of parentheses.
_NAME = r"[A-Za-z_%][A-Za-z0-9_]*(?:\^-?[1-9])?"
_PRODUCT = rf"{_NAME}(?:[*/ ]{_NAME})*"
_PART = rf"(?:{_NAME}|\({_PRODUCT}\))"
_FORM = re.compile(rf"(?:1/)?{_PART}(?:[*/ ]{_PART})*")
_SPELLINGS = {
    "**": "^",
    "°C": "degC",
    "°F": "degF",
    "°": "degree",
    "\u2103": "degC",
    "\u2109": "degF",
    "\u00b5": "u",
    "\u03bc": "u",
    "\u03a9": "ohm",
    "\u2126": "ohm",
    "\u00c5": "angstrom",
    "\u212b": "angstrom",
    "\u00b7": "*",
    "\u22c5": "*",
    "\u00d7": "*",
    "\u2212": "-",
    "\u207b": "^-",
    "^-\u00b9": "^-1",
    "^-\u00b2": "^-2",
    "^-\u00b3": "^-3",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u2074": "^4",
    "%": " percent ",
}


class UnitProblem(ValueError):  # noqa: N818 - the text's problem, not an error here
    """A unit or a conversion that makes no sense; the text says why."""


def convert(value: float, from_unit: str, to_unit: str) -> float:
    """The value in another unit.

    Raises:
        UnitProblem: not a unit, units of different dimensions, or too large a number.
    """
    if not math.isfinite(value):
        raise UnitProblem(f"the value is {value}; expected a finite number")
    with _LOCK:
        source, target = _parsed(from_unit), _parsed(to_unit)
        return _converted(value, source, target, f"{from_unit} to {to_unit}")


def _converted(value: float, source: "pint.Unit", target: "pint.Unit", what: str) -> float:
    import pint

    try:
        number = float(_registry().Quantity(value, source).to(target).magnitude)
    except pint.DimensionalityError as error:
        raise UnitProblem(
            f"cannot convert {what}: they are {_read(source)} and {_read(target)}"
        ) from error
    except (pint.PintError, AssertionError) as error:  # the second of a squared decibel
        raise UnitProblem(
            f"cannot convert {what}: {str(error) or 'there is no rule for it'}"
        ) from error
    except (OverflowError, ZeroDivisionError) as error:
        raise UnitProblem("the converted number is too large or too small") from error
    if not math.isfinite(number):
        raise UnitProblem("the converted number is too large")
    return number


def _parsed(text: str) -> "pint.Unit":
    """The unit that a text of the form `kg*m^2/s^2` means."""
    import pint

    if len(text) > MAX_CHARS:
        raise UnitProblem(f"a unit of {len(text)} characters; at most {MAX_CHARS} are allowed")
    form = _normal(text)
    if not _FORM.fullmatch(form):
        raise UnitProblem(f"{text!r} is not a unit; write units like m/s^2, kJ/(mol*K) or degC")
    try:
        return _registry().parse_units(form)
    except pint.UndefinedUnitError as error:
        raise UnitProblem(_unknown(error)) from error
    except (pint.PintError, ValueError, LookupError, AssertionError, TokenError) as error:
        raise UnitProblem(f"{text!r} is not a unit that can be used") from error


@lru_cache(maxsize=1)
def _registry() -> "pint.UnitRegistry[float]":
    """Built at the first conversion: it takes half a second."""
    import pint

    return pint.UnitRegistry()


def _normal(text: str) -> str:
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    text = re.sub(r"\s*([*/^()])\s*", r"\1", " ".join(text.split()))
    text = re.sub(r"(?<=[A-Za-z%0-9)])(?=\()", "*", text)
    # m3 and s-1, as they stand in many papers; the only units of pint that end so are c_2, cal_15.
    return re.sub(r"\b([A-Za-z]+)(-?[1-9])\b(?!\^)", r"\1^\2", text)


def _read(unit: "pint.Unit") -> str:
    return f"{unit} ({unit.dimensionality})"


def _unknown(error: "pint.UndefinedUnitError") -> str:
    names = (error.unit_names,) if isinstance(error.unit_names, str) else tuple(error.unit_names)
    name = str(names[0])
    near = difflib.get_close_matches(name.lower(), _known(), n=2, cutoff=0.75)
    cure = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no unit {name!r}{cure}"


@lru_cache(maxsize=1)
def _known() -> tuple[str, ...]:
    return tuple(name for name in dir(_registry()) if not name.startswith("_") and len(name) > 2)
