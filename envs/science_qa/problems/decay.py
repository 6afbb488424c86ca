"""Half-lives: what is left of a sample, or gone, after a while."""

import random
from fractions import Fraction

from envs.science_qa.problems.draft import Draft, Work, counted, short, written
from envs.science_qa.problems.measures import UNITS

SAMPLES = ("isotope A", "isotope B", "drug C", "drug D", "toxin E", "dye F", "tracer G", "salt H")
# What is said of a period, and the share that is left after it.
PLAIN = {
    "It halves every {p}.": Fraction(1, 2),
    "Its half-life is {p}.": Fraction(1, 2),
}
TRICKY = {
    "It falls to a quarter every {p}.": Fraction(1, 4),
    "It falls by a quarter every {p}.": Fraction(3, 4),
    "It falls to a third every {p}.": Fraction(1, 3),
    "It falls by a third every {p}.": Fraction(2, 3),
    "It loses half every {p}.": Fraction(1, 2),
}
TIMES = ("s", "min", "hour", "day", "week")
MASSES = ("ug", "mg", "g", "kg")
# A unit with two smaller ones, of which whole numbers fit.
SPANS = (("week", "day", "hour"), ("day", "hour", "min"), ("hour", "min", "s"))


def draw(rng: random.Random, level: int) -> Draft | None:
    """Whole periods; told in another unit of time (2), asked in another of mass (3); of two (4)."""
    return _two(rng) if level == 4 else _one(rng, level)


def _one(rng: random.Random, level: int) -> Draft | None:
    name = rng.choice(SAMPLES)
    phrases = PLAIN | (TRICKY if level > 1 else {})
    phrase = rng.choice(tuple(phrases))
    gone = rng.random() < 0.5
    m_unit = rng.choice(MASSES)
    shown = rng.choice([u for u in MASSES if u != m_unit]) if level == 3 else m_unit
    work = Work()
    told = _periods(rng, work, level > 1)
    if told is None:
        return None
    period, after, count, times = told
    m = _amount(rng, phrases[phrase], count)
    power = f"({phrases[phrase]}) ** {times}"
    value = work.calculate(f"{{}} * (1 - {power})" if gone else f"{{}} * {power}", m)
    if shown != m_unit:
        value = work.convert(value, m_unit, shown)
    if not short(value):
        return None
    ask = f"How many {shown} {'are gone' if gone else 'are left'} after {after}?"
    prompt = f"There are {written(m)} {m_unit} of {name}. {phrase.format(p=period)} {ask}"
    family = f"{name}|{phrase}|{gone}|{m_unit}|{shown}"
    return Draft(family, prompt, value, shown, work.steps)


def _two(rng: random.Random) -> Draft | None:
    """Two samples with periods of their own, and one time."""
    phrases = PLAIN | TRICKY
    one, other = rng.sample(SAMPLES, 2)
    first, second = rng.choice(tuple(phrases)), rng.choice(tuple(phrases))
    unit, *smaller = rng.choice(SPANS)
    p_unit, q_unit = rng.sample(smaller, 2)
    d, counts = rng.choice((1, 2, 3, 4, 6, 12)), (rng.randint(1, 4), rng.randint(1, 4))
    work = Work()
    in_p, in_q = work.convert(d, unit, p_unit), work.convert(d, unit, q_unit)
    p, q = in_p / counts[0], in_q / counts[1]
    if not all(period.denominator == 1 and period <= 1000 for period in (p, q)):
        return None
    m, n = _amount(rng, phrases[first], counts[0]), _amount(rng, phrases[second], counts[1])
    left = work.calculate(f"{{}} * ({phrases[first]}) ** ({{}} / {{}})", m, in_p, p)
    rest = work.calculate(f"{{}} * ({phrases[second]}) ** ({{}} / {{}})", n, in_q, q)
    value = work.calculate("{} + {}", left, rest)
    if not short(value):
        return None
    prompt = (
        f"There are {m} mg of {one} and {n} mg of {other}. "
        f"Of {one}: {_lower(first).format(p=counted(p, p_unit))} "
        f"Of {other}: {_lower(second).format(p=counted(q, q_unit))} "
        f"How many mg are left of both together after {counted(d, unit)}?"
    )
    family = f"{one}|{other}|{first}|{second}"
    return Draft(family, prompt, value, "mg", work.steps)


def _periods(rng: random.Random, work: Work, converted: bool) -> tuple[str, str, int, str] | None:
    """A period, a time in words, how many periods it holds, and that as it is computed."""
    p_unit, d_unit = rng.sample(TIMES, 2) if converted else (rng.choice(TIMES),) * 2
    period, count = rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30)), rng.randint(1, 5)
    time = Fraction(period * count) * UNITS[p_unit].size / UNITS[d_unit].size
    if not short(time) or not Fraction(1, 10) <= time <= 1000:
        return None
    if converted:
        if Fraction(written(time)) != time:
            return None
        work.convert(time, d_unit, p_unit)
    times = f"({period * count} / {period})"
    return counted(period, p_unit), counted(time, d_unit), count, times


def _amount(rng: random.Random, share: Fraction, count: int) -> int:
    """An amount that divides well."""
    base = int(share.denominator**count)
    return base * rng.randint(1, max(1, 400 // base))


def _lower(phrase: str) -> str:
    return phrase[0].lower() + phrase[1:]
