"""A scientist's tools, each offered where the library that it is made of is installed."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from langchain_core.tools import BaseTool, ToolException, tool

from envs.calculator.env import calculate
from envs.science_qa import constants, elements, molecules, units


@tool
def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a value between units such as km/h and m/s."""
    try:
        return f"{units.convert(value, from_unit, to_unit):.8g} {to_unit.strip()}"
    except units.UnitProblem as error:
        raise ToolException(str(error)) from error


@tool
def element(name: str) -> str:
    """Data of a chemical element (Na, sodium) or isotope (U-235)."""
    try:
        return elements.describe(name)
    except elements.ElementProblem as error:
        raise ToolException(str(error)) from error


@tool
def constant(name: str) -> str:
    """The CODATA value of a physical constant."""
    try:
        return constants.describe(name)
    except constants.ConstantProblem as error:
        raise ToolException(str(error)) from error


@tool
def molecule(smiles: str) -> str:
    """Formula, mass, logP, rings and more of a SMILES."""
    try:
        return molecules.describe(smiles)
    except molecules.SmilesProblem as error:
        raise ToolException(str(error)) from error


# Each with its library, and what installs it; the first three come with the package itself.
_TOOLS: dict[str, tuple[BaseTool, str | None, str]] = {
    "calculate": (calculate, None, ""),
    "convert_units": (convert_units, "pint", "pint"),
    "element": (element, "periodictable", "periodictable"),
    "constant": (constant, "scipy", "mopd[science]"),
    "molecule": (molecule, "rdkit", "mopd[science]"),
}
NAMES = tuple(_TOOLS)


def choose(
    names: Sequence[str] | None = None, *, installed: Callable[[str], bool] | None = None
) -> tuple[BaseTool, ...]:
    """The tools of these names; without names, all whose library is installed.

    Raises:
        ValueError: there is no such tool, or its library is missing.
    """
    installed = installed or (lambda library: find_spec(library) is not None)
    if names is None:
        return tuple(t for t, library, _ in _TOOLS.values() if not library or installed(library))
    chosen = []
    for name in names:
        if name not in _TOOLS:
            raise ValueError(f"env.tools: got {name!r}; there are {', '.join(NAMES)}")
        found, library, cure = _TOOLS[name]
        if library and not installed(library):
            raise ValueError(f"env.tools: {name} needs {library}; pip install '{cure}'")
        chosen.append(found)
    return tuple(chosen)
