"""A problem in the making: its steps are tool calls, and their results are its answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from envs.calculator.arithmetic import evaluate, show
from envs.science_qa.problems.measures import MASSES, UNITS


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A problem; its family is all that is not a number in it."""

    family: str
    prompt: str
    value: Fraction
    unit: str  # as pint knows it; "" where things are counted
    steps: tuple[Step, ...]
    unit_required: bool = False  # whether the answer must name it
    counted: str = ""  # what is counted


class Work:
    """Does steps and writes them down; a result is the number that the tool would show."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was done so far."""
        return tuple(self._steps)

    def calculate(self, expression: str, *values: Fraction | int) -> Fraction:
        """The value of an expression with a `{}` for each of the values."""
        text = expression.format(*map(written, values))
        self._steps.append(Step("calculate", {"expression": text}))
        exact, _, near = show(evaluate(text)).partition("about ")
        return Fraction(near.rstrip(")") or exact)

    def convert(self, value: Fraction | int, from_unit: str, to_unit: str) -> Fraction:
        """The value in another unit of the same dimension."""
        source, target = UNITS[from_unit], UNITS[to_unit]
        number = float(value)
        arguments = {
            "value": int(number) if number.is_integer() else number,
            "from_unit": from_unit,
            "to_unit": to_unit,
        }
        self._steps.append(Step("convert_units", arguments))
        exact = (value * source.size + source.zero - target.zero) / target.size
        return Fraction(f"{float(exact):.8g}")

    def molar_mass(self, symbol: str) -> Fraction:
        """Of an element, in g/mol."""
        self._steps.append(Step("element", {"name": symbol}))
        return MASSES[symbol][1]


def written(value: Fraction | int) -> str:
    """A number as it is typed into a tool."""
    return f"{float(value):.12g}"


def short(value: Fraction) -> bool:
    """Whether a value has few enough digits to be copied without trouble."""
    text = written(value)
    return len(text.replace(".", "").lstrip("0")) <= 6 and "e" not in text and len(text) <= 9


def counted(number: Fraction | int, unit: str) -> str:
    """A number with its unit, as one says it: 1 day, 2 days, 2 km."""
    return f"{written(number)} {unit if number == 1 else plural(unit)}"


def plural(unit: str) -> str:
    """The unit as it follows a number: days, km."""
    return f"{unit}s" if unit in ("hour", "day", "week", "mile", "tonne") else unit
