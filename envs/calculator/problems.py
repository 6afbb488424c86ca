"""Procedural calculator problems in graded difficulty, their answers known by construction."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from envs.calculator.arithmetic import calculate, evaluate
from envs.tasks import held_out, stable_seed
from envs.types import Task


@dataclass(frozen=True, slots=True)
class Phrase:
    """One sentence of a story and the operation that it means."""

    text: str
    operation: str


PLAIN = tuple(
    Phrase(text, operation)
    for operation, texts in {
        "+": ("buys {n} more", "finds {n} more", "is given {n}", "adds {n} to the pile"),
        "-": ("loses {n}", "gives away {n}", "sells {n}", "uses up {n}"),
        "*": (
            "gets {n} times as many",
            "swaps each one for {n} others",
            "multiplies the stock by {n}",
            "lets the number grow {n} times over",
        ),
        "/": (
            "splits them into {n} equal parts and keeps one part",
            "shares them equally among {n} people and keeps one share",
            "cuts the number by a factor of {n}",
            "keeps only one in every {n}",
        ),
    }.items()
    for text in texts
)
# Each reads at first like another operation.
TRICKY = tuple(
    Phrase(text, operation)
    for operation, texts in {
        "+": ("gets back {n} that were lent", "is repaid the {n} that others owed"),
        "-": ("returns {n} that were borrowed", "is left without {n} of them"),
        "*": ("trades each of them for {n}", "ends up with {n} for every one"),
        "/": ("trades every {n} of them for one", "packs them in bags of {n} and counts the bags"),
    }.items()
    for text in texts
)
PHRASES = {phrase.text: phrase for phrase in PLAIN + TRICKY}
NAMES = ("Ann", "Bob", "Cara", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivan", "Jill")
THINGS = ("apples", "coins", "books", "cards", "pens", "stamps", "shells", "marbles")
SHAPES: dict[int, tuple[str, ...]] = {
    1: ("{} {} {}",),
    2: ("({} {} {}) {} {}", "{} {} {} {} {}", "{} {} ({} {} {})"),
    3: ("({} {} {}) {} ({} {} {})", "({} {} {}) {} {} {} {}", "{} {} ({} {} {}) {} {}"),
    4: ("(({} {} {}) {} {}) {} ({} {} {})", "({} {} {}) {} ({} {} {} {} {})"),
}
QUESTIONS = ("Compute {}.", "What is {}?", "Evaluate {}.")
LEVELS = range(1, 5)
MAX_VALUE = 999


@dataclass(frozen=True, slots=True)
class Mix:
    """What the problems of each level are made of."""

    expressions: Mapping[int, float]  # the share of expressions, the rest are stories
    tricky: Mapping[int, tuple[int, int]]  # the fewest and the most tricky phrases of a story


LEVEL_MIX = Mix(
    expressions={1: 0.25, 2: 0.25, 3: 0.0, 4: 0.0},
    tricky={1: (0, 0), 2: (1, 1), 3: (1, 1), 4: (1, 2)},
)


def generate(rng: random.Random, level: int, held: bool, mix: Mix = LEVEL_MIX) -> Task:
    """Draw a problem of `level` steps from the train or the held-out families.

    Stories have `level` phrases, from level 2 on with one or two tricky ones among them;
    expressions have `level` operators. A story's family is its sequence of phrases (at level 1
    with the thing it is about), an expression's is its shape and operators. One family in four
    is held out.
    """
    while True:
        story = rng.random() < 1 - mix.expressions[level]
        task = _story(rng, level, held, mix) if story else _expression(rng, level, held)
        if task is not None:
            return task


def story_prompt(name: str, thing: str, start: int, phrases: Sequence[str]) -> str:
    """The text of a story; `phrases` already hold their numbers."""
    steps = " ".join(f"{'Then ' if i else ''}{name} {phrase}." for i, phrase in enumerate(phrases))
    return f"{name} has {start} {thing}. {steps} How many {thing} does {name} have now?"


def apply_operations(
    start: int, operations: Sequence[str], numbers: Sequence[int]
) -> Fraction | None:
    """The value after all steps; None where a step leaves 1..MAX_VALUE or the whole numbers."""
    value = Fraction(start)
    for operation, number in zip(operations, numbers, strict=True):
        value = evaluate(f"{value} {operation} {number}")
        if value.denominator != 1 or not 1 <= value <= MAX_VALUE:
            return None
    return value


def _story(rng: random.Random, level: int, held: bool, mix: Mix) -> Task | None:
    fewest, most = mix.tricky[level]
    tricky = fewest if fewest == most else rng.randint(fewest, most)
    phrases = rng.choices(PLAIN, k=level - tricky) + rng.choices(TRICKY, k=tricky)
    rng.shuffle(phrases)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    family = "|".join(p.text for p in phrases) + (f"|{thing}" if level == 1 else "")
    if held_out(family) != held:
        return None
    numbers = [rng.randint(2, 12) for _ in phrases]
    for start in rng.sample(range(2, 61), 12):  # divisions want a start that they divide
        value = apply_operations(start, [p.operation for p in phrases], numbers)
        if value is not None:
            break
    else:
        return None
    steps = [p.text.format(n=n) for p, n in zip(phrases, numbers, strict=True)]
    payload = {
        "kind": "story",
        "start": start,
        "phrases": tuple(p.text for p in phrases),
        "numbers": tuple(numbers),
    }
    prompt = story_prompt(name, thing, start, steps)
    return Task(identity("story", prompt), prompt, calculate(str(value)), payload)


def _expression(rng: random.Random, level: int, held: bool) -> Task | None:
    shape = rng.choice(SHAPES[level])
    operators = [rng.choice("+-*") for _ in range(level)]
    if held_out(shape + "".join(operators)) != held:
        return None
    parts: list[object] = [rng.randint(2, 30)]
    for operator in operators:
        parts += [operator, rng.randint(2, 30)]
    expression = shape.format(*parts)
    prompt = rng.choice(QUESTIONS).format(expression)
    payload = {"kind": "expression", "expression": expression}
    return Task(identity("expression", prompt), prompt, calculate(expression), payload)


def identity(kind: str, prompt: str) -> str:
    """A stable name for a problem."""
    return f"calculator/{kind}/{stable_seed(prompt) % 16**8:08x}"
