"""Units and molar masses that problems are made of, known here without a library."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit by its size, and its zero, in the unit that its dimension starts with."""

    dimension: str
    size: Fraction
    zero: Fraction = Fraction(0)


_SIZES = {
    "length": {
        "m": "1",
        "mm": "1/1000",
        "cm": "1/100",
        "km": "1000",
        "ft": "0.3048",
        "mile": "1609.344",
    },
    "mass": {"g": "1", "ug": "1/1000000", "mg": "1/1000", "kg": "1000", "tonne": "1000000"},
    "time": {"s": "1", "min": "60", "hour": "3600", "day": "86400", "week": "604800"},
    "speed": {"m/s": "1", "km/h": "5/18", "cm/s": "1/100", "m/min": "1/60"},
    "volume": {"L": "1", "mL": "1/1000", "m^3": "1000", "cm^3": "1/1000"},
    "energy": {
        "J": "1",
        "kJ": "1000",
        "MJ": "1000000",
        "kWh": "3600000",
        "cal": "4.184",
        "kcal": "4184",
    },
    "pressure": {"Pa": "1", "kPa": "1000", "bar": "100000", "atm": "101325"},
    "amount": {"mol": "1", "mmol": "1/1000"},
}
UNITS = {
    name: Unit(dimension, Fraction(size))
    for dimension, sizes in _SIZES.items()
    for name, size in sizes.items()
} | {
    "K": Unit("temperature", Fraction(1)),
    "degC": Unit("temperature", Fraction(1), Fraction("273.15")),
    "degF": Unit("temperature", Fraction(5, 9), Fraction("273.15") - 32 * Fraction(5, 9)),
}


def units_of(dimension: str) -> tuple[str, ...]:
    """The units of a dimension."""
    return tuple(name for name, unit in UNITS.items() if unit.dimension == dimension)


# Symbol -> name and molar mass in g/mol: IUPAC's conventional values.
MASSES = {
    symbol: (name, Fraction(mass))
    for symbol, name, mass in (
        line.split()
        for line in """H hydrogen 1.008
        He helium 4.0026
        Li lithium 6.94
        B boron 10.81
        C carbon 12.011
        N nitrogen 14.007
        O oxygen 15.999
        F fluorine 18.9984
        Ne neon 20.1797
        Na sodium 22.9898
        Mg magnesium 24.305
        Al aluminum 26.9815
        Si silicon 28.085
        P phosphorus 30.9738
        S sulfur 32.06
        Cl chlorine 35.45
        Ar argon 39.95
        K potassium 39.0983
        Ca calcium 40.078
        Ti titanium 47.867
        Cr chromium 51.9961
        Mn manganese 54.938
        Fe iron 55.845
        Co cobalt 58.9332
        Ni nickel 58.6934
        Cu copper 63.546
        Zn zinc 65.38
        Br bromine 79.904
        Ag silver 107.868
        Sn tin 118.71
        I iodine 126.904
        Ba barium 137.327
        W tungsten 183.84
        Pt platinum 195.084
        Au gold 196.967
        Hg mercury 200.592
        Pb lead 207.2
        U uranium 238.029""".splitlines()
    )
}
