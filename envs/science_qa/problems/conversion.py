"""Unit chains: conversions, and rates over times and amounts that are told in other units."""

import random
from fractions import Fraction

from envs.science_qa.problems.draft import Draft, Work, counted, plural, short, written
from envs.science_qa.problems.measures import UNITS, units_of

DIMENSIONS = tuple(sorted({unit.dimension for unit in UNITS.values()} - {"temperature"}))
QUESTIONS = ("Convert {x} {a} to {b}.", "How many {b} are {x} {a}?", "Express {x} {a} in {b}.")
# Who, does what, to do what, with an amount of which dimension.
WORKERS = (
    ("A pump", "moves", "move", "volume"),
    ("A tap", "loses", "lose", "volume"),
    ("A tree", "drinks", "drink", "volume"),
    ("A mill", "grinds", "grind", "mass"),
    ("A plant", "binds", "bind", "mass"),
    ("A smelter", "makes", "make", "mass"),
    ("A snail", "crawls", "crawl", "length"),
    ("A drill", "digs", "dig", "length"),
    ("A lamp", "uses", "use", "energy"),
    ("A heater", "gives off", "give off", "energy"),
)
# What is said of a rate, and how many times in the unit of time the amount is moved.
PLAIN_RATES = {"{x} {a} a {t}": Fraction(1), "{x} {a} every {t}": Fraction(1)}
TRICKY_RATES = {
    "{x} {a} every two {t}s": Fraction(1, 2),
    "{x} {a} every other {t}": Fraction(1, 2),
    "{x} {a} twice a {t}": Fraction(2),
    "{x} {a} every half {t}": Fraction(2),
}
TIMES = {"min": "minute", "hour": "hour", "day": "day", "week": "week"}
# What is said of a second time, and its sign beside the first.
PHASES = {
    "for {d}, then for {e} more": "+",
    "in {d} and another {e}": "+",
    "in {d}, of which it rests for {e}": "-",
    "in {d} with a pause of {e}": "-",
}


def draw(rng: random.Random, level: int) -> Draft | None:
    """One conversion; or a rate, told in other units of time (2), also of amount (3), twice (4)."""
    return _conversion(rng) if level == 1 else _rate(rng, level)


def _conversion(rng: random.Random) -> Draft | None:
    dimension = rng.choice((*DIMENSIONS, "temperature"))
    a, b = rng.sample(units_of(dimension), 2)
    question = rng.choice(QUESTIONS)
    for _ in range(12):
        x = Fraction(rng.randint(2, 400), rng.choice((1, 1, 2, 10)))
        work = Work()
        value = work.convert(x, a, b)
        if short(value) and value:
            prompt = question.format(x=written(x), a=plural(a), b=plural(b))
            return Draft(f"{a}>{b}|{question}", prompt, value, b, work.steps)
    return None


def _rate(rng: random.Random, level: int) -> Draft | None:
    who, does, do, dimension = rng.choice(WORKERS)
    rates = TRICKY_RATES if rng.random() < 0.6 else PLAIN_RATES
    rate = rng.choice(tuple(rates))
    unit, shown = rng.sample(units_of(dimension), 2)
    t, d_unit, e_unit = rng.sample(tuple(TIMES), 3)
    if level == 2:
        shown = unit
    x, d, e = rng.randint(2, 30), rng.randint(2, 12), rng.randint(2, 30)
    work = Work()
    time = work.convert(d, d_unit, t)
    asked, phase = f"in {counted(d, d_unit)}", ""
    if level == 4:
        phase = rng.choice(tuple(PHASES))
        asked = phase.format(d=counted(d, d_unit), e=counted(e, e_unit))
        pause = work.convert(e, e_unit, t)
        time = work.calculate("{} " + PHASES[phase] + " {}", time, pause)
    factor = rates[rate]
    value = work.calculate(f"{{}} * {{}}{_times(factor)}", x, time)
    if shown != unit:
        value = work.convert(value, unit, shown)
    if time <= 0 or not (short(value) and short(time)):
        return None
    told = f"{who} {does} {rate.format(x=x, a=plural(unit), t=TIMES[t])}."
    prompt = f"{told} How many {plural(shown)} does it {do} {asked}?"
    family = f"{who}|{rate}|{unit}|{shown}|{t}|{d_unit}|{phase}"
    return Draft(family, prompt, value, shown, work.steps)


def _times(factor: Fraction) -> str:
    if factor == 1:
        return ""
    return f" * {factor}" if factor > 1 else f" / {1 / factor}"
