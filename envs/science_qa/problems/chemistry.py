"""Amounts of substance: molar masses, moles, compounds, and what a reaction makes."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from envs.science_qa.problems.draft import Draft, Work
from envs.science_qa.problems.measures import MASSES

Formula = Mapping[str, int]
MOLAR_MASS = (
    "What is the molar mass of {name} in g/mol?",
    "How many g does one mol of {name} atoms weigh?",
    "What is the mass of 1 mol of {name} atoms in g?",
)
DIATOMIC = ("H", "N", "O", "F", "Cl", "Br", "I")
COMPOUNDS: Mapping[str, Formula] = {
    "H2O": {"H": 2, "O": 1},
    "CO2": {"C": 1, "O": 2},
    "CO": {"C": 1, "O": 1},
    "NH3": {"N": 1, "H": 3},
    "CH4": {"C": 1, "H": 4},
    "C3H8": {"C": 3, "H": 8},
    "SO2": {"S": 1, "O": 2},
    "NO2": {"N": 1, "O": 2},
    "MgO": {"Mg": 1, "O": 1},
    "CuO": {"Cu": 1, "O": 1},
    "ZnS": {"Zn": 1, "S": 1},
    "NaCl": {"Na": 1, "Cl": 1},
    "CaCl2": {"Ca": 1, "Cl": 2},
    "AlCl3": {"Al": 1, "Cl": 3},
    "Al2O3": {"Al": 2, "O": 3},
    "Fe2O3": {"Fe": 2, "O": 3},
    "Fe3O4": {"Fe": 3, "O": 4},
    "P4O10": {"P": 4, "O": 10},
    "SiO2": {"Si": 1, "O": 2},
    "TiO2": {"Ti": 1, "O": 2},
}


@dataclass(frozen=True, slots=True)
class Reaction:
    """An equation with an element that is used up, and the compound that it becomes."""

    equation: str
    element: str
    used: int  # atoms of the element for each `made` of the product
    product: str
    made: int


REACTIONS = (
    Reaction("2 Mg + O2 -> 2 MgO", "Mg", 2, "MgO", 2),
    Reaction("4 Fe + 3 O2 -> 2 Fe2O3", "Fe", 4, "Fe2O3", 2),
    Reaction("3 Fe + 2 O2 -> Fe3O4", "Fe", 3, "Fe3O4", 1),
    Reaction("4 Al + 3 O2 -> 2 Al2O3", "Al", 4, "Al2O3", 2),
    Reaction("2 Al + 3 Cl2 -> 2 AlCl3", "Al", 2, "AlCl3", 2),
    Reaction("2 Na + Cl2 -> 2 NaCl", "Na", 2, "NaCl", 2),
    Reaction("Ca + Cl2 -> CaCl2", "Ca", 1, "CaCl2", 1),
    Reaction("C + O2 -> CO2", "C", 1, "CO2", 1),
    Reaction("2 C + O2 -> 2 CO", "C", 2, "CO", 2),
    Reaction("S + O2 -> SO2", "S", 1, "SO2", 1),
    Reaction("Zn + S -> ZnS", "Zn", 1, "ZnS", 1),
    Reaction("2 Cu + O2 -> 2 CuO", "Cu", 2, "CuO", 2),
    Reaction("4 P + 5 O2 -> P4O10", "P", 4, "P4O10", 1),
    Reaction("Si + O2 -> SiO2", "Si", 1, "SiO2", 1),
)
FORMED = (
    "{equation}: how many g of {product} form from {m} g of {element}?",
    "{equation}: {m} g of {element} react completely. What mass of {product} forms, in g?",
)
NEEDED = (
    "{equation}: how many g of {element} are needed for {m} g of {product}?",
    "{equation}: {m} g of {product} form. What mass of {element} was used up, in g?",
)


def draw(rng: random.Random, level: int) -> Draft:
    """A molar mass; moles of an element (2), of a compound (3); a reaction (4)."""
    return (_molar_mass, _element, _compound, _reaction)[level - 1](rng)


def _molar_mass(rng: random.Random) -> Draft:
    symbol, question = rng.choice(tuple(MASSES)), rng.choice(MOLAR_MASS)
    work = Work()
    value = work.molar_mass(symbol)
    unit = "g/mol" if "molar" in question else "g"
    prompt = question.format(name=MASSES[symbol][0])
    return Draft(f"{symbol}|{question}", prompt, value, unit, work.steps)


def _element(rng: random.Random) -> Draft:
    """From grams to moles or back; O2 molecules are two atoms each."""
    symbol = rng.choice((*MASSES, *DIATOMIC, *DIATOMIC))
    what, atoms = f"{MASSES[symbol][0]} atoms", 1
    if symbol in DIATOMIC and rng.random() < 0.6:
        what, atoms = f"{symbol}2 molecules", 2
    to_moles = rng.random() < 0.5
    work, number = Work(), rng.randint(2, 60)
    mass = work.molar_mass(symbol)
    share = f" / {atoms}" if atoms > 1 else ""
    if to_moles:
        value = work.calculate("{} / {}" + share, number, mass)
        prompt = f"How many mol of {what} are {number} g of {MASSES[symbol][0]}?"
        return Draft(f"{what}|mol", prompt, value, "mol", work.steps)
    value = work.calculate("{} * {}" + share.replace("/", "*"), number, mass)
    prompt = f"What is the mass of {number} mol of {what}, in g?"
    return Draft(f"{what}|g", prompt, value, "g", work.steps)


def _compound(rng: random.Random) -> Draft:
    """Moles of a compound, or of the atoms in it."""
    name = rng.choice(tuple(COMPOUNDS))
    formula = COMPOUNDS[name]
    inside = rng.choice((None, *formula))
    work, number = Work(), rng.randint(2, 90)
    total = _sum(formula, work)
    atoms = formula[inside] if inside else 1
    if inside or rng.random() < 0.5:
        what = f"{MASSES[inside][0]} atoms are in" if inside else f"{name} are"
        of = f"{number} g of {name}" if inside else f"{number} g of it"
        times = f" * {atoms}" if atoms > 1 else ""
        value = work.calculate("{} / (" + total + ")" + times, number)
        prompt = f"How many mol of {what} {of}?"
        return Draft(f"{name}|{inside}", prompt, value, "mol", work.steps)
    value = work.calculate("{} * (" + total + ")", number)
    prompt = f"What is the mass of {number} mol of {name}, in g?"
    return Draft(f"{name}|g", prompt, value, "g", work.steps)


def _reaction(rng: random.Random) -> Draft:
    """Grams of the element to grams of its product, or back."""
    reaction = rng.choice(REACTIONS)
    formula = COMPOUNDS[reaction.product]
    work, m = Work(), rng.randint(2, 90)
    total = _sum(formula, work)
    mass = MASSES[reaction.element][1]
    ratio = Fraction(reaction.used, reaction.made)
    forward = rng.random() < 0.5
    if forward:
        moles = work.calculate("{} / {}", m, mass)
        value = work.calculate(f"{{}}{_over(ratio)} * ({total})", moles)
    else:
        moles = work.calculate(f"{{}} / ({total})", m)
        value = work.calculate(f"{{}}{_over(1 / ratio)} * {{}}", moles, mass)
    question = rng.choice(FORMED if forward else NEEDED)
    prompt = question.format(
        equation=reaction.equation, product=reaction.product, element=reaction.element, m=m
    )
    return Draft(f"{reaction.equation}|{question}", prompt, value, "g", work.steps)


def _sum(formula: Formula, work: Work) -> str:
    """Look each element up, and write the compound's mass as a sum."""
    return " + ".join(
        f"{count} * {float(work.molar_mass(symbol)):g}"
        if count > 1
        else f"{float(work.molar_mass(symbol)):g}"
        for symbol, count in formula.items()
    )


def _over(ratio: Fraction) -> str:
    if ratio == 1:
        return ""
    if ratio.numerator == 1:
        return f" * {ratio.denominator}"
    return (
        f" / {ratio}" if ratio.denominator == 1 else f" * {ratio.denominator} / {ratio.numerator}"
    )
