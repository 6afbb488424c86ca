"""Kinematics: uniform motion, constant acceleration, two movers."""

import random

from envs.science_qa.problems.draft import Draft, Work, counted, short

RUNNERS = ("A runner", "A horse", "A boat", "A deer", "A skater", "A robot")
VEHICLES = ("A car", "A train", "A bus", "A truck", "A tram", "A motorcycle")
KMH = tuple(range(18, 145, 18))  # whole m/s


def draw(rng: random.Random, level: int) -> Draft | None:
    """One formula; a speed in km/h (2), two (3); stopping or meeting (4)."""
    return rng.choice(_FORMS[level])(rng)


def _distance(rng: random.Random) -> Draft:
    who, v, t = rng.choice(RUNNERS), rng.randint(2, 20), rng.randint(3, 90)
    work = Work()
    value = work.calculate("{} * {}", v, t)
    prompt = f"{who} moves at {v} m/s for {t} s. How many m is that?"
    return Draft(f"{who}|distance", prompt, value, "m", work.steps)


def _duration(rng: random.Random) -> Draft | None:
    who, v, d = rng.choice(RUNNERS), rng.randint(2, 20), rng.randint(20, 900)
    work = Work()
    value = work.calculate("{} / {}", d, v)
    prompt = f"{who} moves {d} m at {v} m/s. How many s does that take?"
    return Draft(f"{who}|duration", prompt, value, "s", work.steps) if short(value) else None


def _mean_speed(rng: random.Random) -> Draft | None:
    who, t, d = rng.choice(RUNNERS), rng.randint(2, 60), rng.randint(20, 900)
    work = Work()
    value = work.calculate("{} / {}", d, t)
    prompt = f"{who} needs {t} s for {d} m. How fast is that, in m/s?"
    return Draft(f"{who}|speed", prompt, value, "m/s", work.steps) if short(value) else None


def _gained(rng: random.Random) -> Draft:
    who, a, t = rng.choice(RUNNERS), rng.randint(2, 9), rng.randint(2, 12)
    v = rng.randint(1, 9)
    by = rng.random() < 0.5
    work = Work()
    value = work.calculate("{} + {} * {}", v, a, t) if by else work.calculate("{} * {}", a, t)
    start = f"at {v} m/s" if by else "at rest"
    prompt = (
        f"{who} starts {start} and gains {a} m/s every second. How fast is it after {t} s, in m/s?"
    )
    return Draft(f"{who}|gain|{by}", prompt, value, "m/s", work.steps)


def _drive(rng: random.Random) -> Draft:
    who, v, t = rng.choice(VEHICLES), rng.choice(KMH), rng.randint(3, 60)
    work = Work()
    value = work.calculate("{} * {}", work.convert(v, "km/h", "m/s"), t)
    prompt = f"{who} drives at {v} km/h for {t} s. How many m is that?"
    return Draft(f"{who}|drive", prompt, value, "m", work.steps)


def _braking(rng: random.Random) -> Draft | None:
    who, v, t = rng.choice(VEHICLES), rng.choice(KMH), rng.randint(2, 12)
    ask = rng.choice(("to", "from"))
    work = Work()
    value = work.calculate("{} / {}", work.convert(v, "km/h", "m/s"), t)
    told = f"comes from {v} km/h to rest" if ask == "to" else f"gets from rest to {v} km/h"
    size = "How large is its deceleration?" if ask == "to" else "What is its acceleration?"
    prompt = f"{who} {told} in {t} s. {size} Give the unit."
    family = f"{who}|brake|{ask}"
    return Draft(family, prompt, value, "m/s^2", work.steps, True) if short(value) else None


def _walk(rng: random.Random) -> Draft:
    who, v, t = rng.choice(RUNNERS), rng.randint(2, 15), rng.randint(2, 50)
    unit = rng.choice(("min", "hour"))
    work = Work()
    value = work.calculate("{} * {}", v, work.convert(t, unit, "s"))
    prompt = f"{who} moves at {v} m/s for {counted(t, unit)}. How far does it get? Give the unit."
    return Draft(f"{who}|walk|{unit}", prompt, value, "m", work.steps, True)


def _speeding(rng: random.Random) -> Draft | None:
    """Speeding up to a speed is not speeding up by it."""
    who, t = rng.choice(VEHICLES), rng.randint(2, 12)
    u, v = sorted(rng.sample(KMH, 2))
    how, word = rng.choice((("speeds up", "to"), ("speeds up", "by"), ("slows down", "to")))
    if how == "slows down":
        u, v = v, u
    work = Work()
    first, second = work.convert(u, "km/h", "m/s"), work.convert(v, "km/h", "m/s")
    mean = "({} + {}) / 2 * {}" if word == "to" else "(2 * {} + {}) / 2 * {}"
    value = work.calculate(mean, first, second, t)
    prompt = (
        f"{who} at {u} km/h {how} evenly {word} {v} km/h within {t} s. "
        "How many m does it drive meanwhile?"
    )
    return Draft(f"{who}|{how}|{word}", prompt, value, "m", work.steps) if short(value) else None


def _rate_of_change(rng: random.Random) -> Draft | None:
    who, t = rng.choice(VEHICLES), rng.randint(2, 12)
    u, v = sorted(rng.sample(KMH, 2))
    work = Work()
    first, second = work.convert(u, "km/h", "m/s"), work.convert(v, "km/h", "m/s")
    value = work.calculate("({} - {}) / {}", second, first, t)
    prompt = (
        f"{who} gets from {u} km/h to {v} km/h in {t} s. What is its acceleration? Give the unit."
    )
    family = f"{who}|acceleration"
    return Draft(family, prompt, value, "m/s^2", work.steps, True) if short(value) else None


def _stopping(rng: random.Random) -> Draft | None:
    """The way while reacting and while braking, or only one of them."""
    who, v, a = rng.choice(VEHICLES), rng.choice(KMH), rng.randint(2, 8)
    t = rng.choice((1, 2, 3))
    whole = rng.random() < 0.5
    work = Work()
    speed = work.convert(v, "km/h", "m/s")
    reacting = work.calculate("{} * {}", speed, t)
    braking = work.calculate("{} ** 2 / (2 * {})", speed, a)
    if not (short(reacting) and short(braking)):
        return None
    if whole:
        value = work.calculate("{} + {}", reacting, braking)
        ask = "How many m does it need to stop, from seeing the danger on?"
    else:
        value = work.calculate("{} - {}", braking, reacting)
        ask = "How many m longer is the way while braking than the way while reacting?"
    prompt = (
        f"{who} drives at {v} km/h. Its driver reacts for {t} s, then brakes with {a} m/s^2. {ask}"
    )
    family = f"{who}|stop|{whole}"
    return Draft(family, prompt, value, "m", work.steps) if value > 0 and short(value) else None


def _meeting(rng: random.Random) -> Draft | None:
    """Towards each other speeds add, behind each other they do not."""
    who, other = rng.sample(VEHICLES, 2)
    u, v = sorted(rng.sample(KMH, 2))
    d, towards = rng.randint(2, 40) * 10, rng.random() < 0.5
    work = Work()
    first, second = work.convert(v, "km/h", "m/s"), work.convert(u, "km/h", "m/s")
    closing = work.calculate("{} + {}" if towards else "{} - {}", first, second)
    value = work.calculate("{} / {}", d, closing)
    told = (
        f"drives towards {other.lower()} that comes at {u} km/h"
        if towards
        else f"drives behind {other.lower()} that leaves at {u} km/h"
    )
    prompt = f"{who} at {v} km/h {told}, {d} m ahead. After how many s do they meet?"
    family = f"{who}|{other}|{towards}"
    return Draft(family, prompt, value, "s", work.steps) if short(value) else None


_FORMS = {
    1: (_distance, _duration, _mean_speed, _gained),
    2: (_drive, _braking, _walk),
    3: (_speeding, _rate_of_change),
    4: (_stopping, _meeting),
}
