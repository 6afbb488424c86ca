"""Crosses of one or more genes, and genes in a population at equilibrium."""

import random
from collections.abc import Mapping
from fractions import Fraction

from envs.science_qa.problems.draft import Draft, Work, short

# Who has it: letter, dominant and recessive trait.
TRAITS = {
    "peas": (("R", "round", "wrinkled"), ("Y", "yellow", "green"), ("T", "tall", "dwarf")),
    "flies": (("E", "red-eyed", "brown-eyed"), ("G", "gray", "black"), ("W", "winged", "wingless")),
    "rabbits": (
        ("B", "black", "white"),
        ("L", "lop-eared", "prick-eared"),
        ("S", "short-haired", "long-haired"),
    ),
    "tomatoes": (
        ("P", "purple", "pale"),
        ("H", "hairy", "smooth"),
        ("C", "cut-leaved", "whole-leaved"),
    ),
}
# Of a cross: the share with both, one and no dominant allele.
CROSSES: Mapping[str, tuple[Fraction, Fraction, Fraction]] = {
    "{D}{d} x {D}{d}": (Fraction(1, 4), Fraction(1, 2), Fraction(1, 4)),
    "{D}{d} x {d}{d}": (Fraction(0), Fraction(1, 2), Fraction(1, 2)),
    "{D}{D} x {D}{d}": (Fraction(1, 2), Fraction(1, 2), Fraction(0)),
}
# What is asked, and which of the three are meant.
ASKED: Mapping[str, tuple[int, ...]] = {
    "are {dominant}": (0, 1),
    "are {recessive}": (2,),
    "carry just one {d}": (1,),
    "carry at least one {d}": (1, 2),
    "are {D}{D} or {d}{d}": (0, 2),
    "are {D}{D}": (0,),
}
FROM = (
    "Of {n} {who} of the cross {cross}, how many {ask}?",
    "{cross} gives {n} {who}. How many {ask}?",
)


def draw(rng: random.Random, level: int) -> Draft | None:
    """One gene; two (2); a population (3), with two genes (4)."""
    return _cross(rng, level) if level <= 2 else _population(rng, level - 2)


def _cross(rng: random.Random, genes: int) -> Draft | None:
    who = rng.choice(tuple(TRAITS))
    traits = rng.sample(TRAITS[who], genes)
    crosses = [rng.choice(tuple(CROSSES)) for _ in traits]
    asked = [rng.choice(tuple(ASKED)) for _ in traits]
    shares = [
        sum((CROSSES[cross][i] for i in ASKED[ask]), Fraction(0))
        for cross, ask in zip(crosses, asked, strict=True)
    ]
    if not all(0 < share < 1 for share in shares):
        return None
    n = rng.randint(2, 15) * 16
    work = Work()
    share = shares[0]
    if genes > 1:
        share = work.calculate(" * ".join(map(str, shares)))
    value = work.calculate(f"{n} * {share}")
    if not short(value):
        return None
    told = ", ".join(_dominance(trait) for trait in traits)
    texts = [_filled(ask, trait) for ask, trait in zip(asked, traits, strict=True)]
    parents = [
        [_filled(side, t) for side in c.split(" x ")] for c, t in zip(crosses, traits, strict=True)
    ]
    cross = " x ".join("".join(side) for side in zip(*parents, strict=True))
    question = rng.choice(FROM)
    prompt = f"In {who}, {told}. " + question.format(
        n=n, who=who, cross=cross, ask=" and ".join(texts)
    )
    family = "|".join((who, question, *crosses, *asked, *(t[0] for t in traits)))
    return Draft(family, prompt, value, "", work.steps, counted=who)


POPULATION = {
    "carry {d} without showing it": "2 * {q} * (1 - {q})",
    "carry at least one {d}": "1 - (1 - {q}) ** 2",
    "carry no {d}": "(1 - {q}) ** 2",
    "are {dominant}": "1 - {q} ** 2",
}


def _population(rng: random.Random, genes: int) -> Draft | None:
    """Hardy and Weinberg: the share that shows a recessive trait is the square of q."""
    who = rng.choice(tuple(TRAITS))
    traits = rng.sample(TRAITS[who], genes)
    asked = [rng.choice(tuple(POPULATION)) for _ in traits]
    tenths = [rng.randint(1, 7) for _ in traits]
    n = rng.randint(2, 20) * 50
    work = Work()
    roots = [work.calculate(f"sqrt({t * t / 100:g})") for t in tenths]
    shares = [
        work.calculate(POPULATION[ask].format(q=f"{float(q):g}"))
        for ask, q in zip(asked, roots, strict=True)
    ]
    value = work.calculate(" * ".join((str(n), *(f"{float(share):g}" for share in shares))))
    if not short(value):
        return None
    told = ", ".join(
        f"{t * t} % are {recessive} ({letter.lower()}{letter.lower()})"
        for t, (letter, _, recessive) in zip(tenths, traits, strict=True)
    )
    texts = [_filled(ask, trait) for ask, trait in zip(asked, traits, strict=True)]
    prompt = (
        f"In a population of {who} at equilibrium, {told}. How many of {n} {' and '.join(texts)}?"
    )
    family = "|".join((who, *asked, *(t[0] for t in traits)))
    return Draft(family, prompt, value, "", work.steps, counted=who)


def _dominance(trait: tuple[str, str, str]) -> str:
    letter, dominant, recessive = trait
    return f"{letter} ({dominant}) is dominant over {letter.lower()} ({recessive})"


def _filled(text: str, trait: tuple[str, str, str]) -> str:
    letter, dominant, recessive = trait
    return text.format(D=letter, d=letter.lower(), dominant=dominant, recessive=recessive)
