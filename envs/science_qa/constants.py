"""Physical constants as CODATA recommends them, from scipy."""

import difflib
from collections.abc import Mapping
from functools import lru_cache

MAX_CHARS = 100
_SYMBOLS = {  # as they are written: G is not g
    "c": "speed of light in vacuum",
    "h": "planck constant",
    "hbar": "reduced planck constant",
    "k": "boltzmann constant",
    "k_B": "boltzmann constant",
    "N_A": "avogadro constant",
    "e": "elementary charge",
    "G": "newtonian constant of gravitation",
    "g": "standard acceleration of gravity",
    "R": "molar gas constant",
    "F": "faraday constant",
    "m_e": "electron mass",
    "m_p": "proton mass",
    "m_n": "neutron mass",
    "epsilon_0": "vacuum electric permittivity",
    "mu_0": "vacuum mag. permeability",
    "alpha": "fine-structure constant",
    "sigma": "stefan-boltzmann constant",
}
_OTHER_NAMES = {
    "speed of light": "speed of light in vacuum",
    "avogadro number": "avogadro constant",
    "gravitational constant": "newtonian constant of gravitation",
    "gas constant": "molar gas constant",
    "vacuum permittivity": "vacuum electric permittivity",
    "vacuum permeability": "vacuum mag. permeability",
    "standard gravity": "standard acceleration of gravity",
}


class ConstantProblem(ValueError):  # noqa: N818 - the text's problem, not an error here
    """No such constant, or several; the text names those that are near."""


def describe(name: str) -> str:
    """One line: the full name, value, unit and uncertainty.

    Raises:
        ConstantProblem: no constant of this name, or no single one.
    """
    if len(name) > MAX_CHARS:
        raise ConstantProblem(f"a name of {len(name)} characters; at most {MAX_CHARS} are allowed")
    text = " ".join(name.split())
    wanted = _SYMBOLS.get(text) or _OTHER_NAMES.get(text.lower(), text.lower())
    table = _table()
    if wanted in table:
        return table[wanted]
    holding = [key for key in table if wanted and wanted in key]
    if len(holding) == 1:
        return table[holding[0]]
    if holding:
        some = ", ".join(sorted(holding, key=len)[:4])
        raise ConstantProblem(
            f"{len(holding)} constants have {name!r} in their names, such as {some}; "
            "give one name in full"
        )
    near = difflib.get_close_matches(wanted, table, n=3)
    cure = f"did you mean {' or '.join(near)}?" if near else "give a name like Planck constant"
    raise ConstantProblem(f"there is no constant {name!r}; {cure}")


@lru_cache(maxsize=1)
def _table() -> Mapping[str, str]:
    """What is said of each constant, by its name in lower case."""
    from scipy.constants import (  # type: ignore[import-untyped] # ships no types
        physical_constants,
    )

    lines = {}
    for name, (value, unit, uncertainty) in physical_constants.items():
        accuracy = f"uncertainty {uncertainty:.2g}" if uncertainty else "exact"
        lines[name.lower()] = f"{name} = {value!r} {unit}".rstrip() + f" ({accuracy})"
    return lines
