"""Data of the chemical elements and their isotopes, from periodictable."""

import re
import threading
from typing import Any

_ISOTOPE = re.compile(r"(?:(\d{1,3})-?([A-Za-z]+)|([A-Za-z]+)-?(\d{1,3}))")
_LOCK = threading.Lock()  # periodictable loads its tables at first use, and not safely
_BRITISH = {"aluminium": "aluminum", "caesium": "cesium", "sulphur": "sulfur"}


class ElementProblem(ValueError):  # noqa: N818 - the text's problem, not an error here
    """No such element or isotope; the text says what would be one."""


def describe(name: str) -> str:
    """One line: symbol, name, atomic number, molar mass, and the density where it is known.

    Raises:
        ElementProblem: neither symbol nor name nor isotope.
    """
    text = name.strip()
    match = _ISOTOPE.fullmatch(text)
    with _LOCK:
        if match:
            number, symbol = match[1] or match[4], match[2] or match[3]
            return _isotope(_element(symbol), int(number))
        return _described(_element(text))


def _described(found: Any) -> str:
    line = f"{found.symbol} {found.name}: number {found.number}, mass {found.mass:.6g} g/mol"
    return f"{line}, density {found.density:.4g} g/cm^3" if found.density else line


def _element(text: str) -> Any:
    from periodictable import elements

    name = _BRITISH.get(text.lower(), text.lower())
    for candidate in elements:
        # na is sodium, but CO and NO are no elements; number 0 is the neutron.
        symbols = (candidate.symbol, candidate.symbol.lower())
        if candidate.number and (text in symbols or name == candidate.name):
            return candidate
    raise ElementProblem(
        f"there is no element {text[:40]!r}; give one symbol or name, such as Na or sodium, "
        "or an isotope, such as U-235"
    )


def _isotope(element: Any, number: int) -> str:
    if number not in element.isotopes:
        known = element.isotopes
        raise ElementProblem(
            f"no data for {element.symbol}-{number}; {element.name} has isotopes {known[0]} to "
            f"{known[-1]}"
        )
    isotope = element[number]
    natural = f", {isotope.abundance:.5g} % of natural {element.name}" if isotope.abundance else ""
    return (
        f"{element.symbol}-{number}: number {element.number}, mass {isotope.mass:.8g} g/mol"
        f"{natural}"
    )
