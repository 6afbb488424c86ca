"""Procedural function-writing problems: pipelines of list steps in graded difficulty."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.tasks import held_out, stable_seed
from envs.types import Task


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a pipeline: what the task says, and the expression over `xs` that it means."""

    text: str
    code: str


KEEP = (
    Step("keeps the even numbers", "[x for x in xs if x % 2 == 0]"),
    Step("keeps the odd numbers", "[x for x in xs if x % 2 == 1]"),
    Step("keeps the positive numbers", "[x for x in xs if x > 0]"),
    Step("keeps the negative numbers", "[x for x in xs if x < 0]"),
    Step("keeps the numbers above 3", "[x for x in xs if x > 3]"),
    Step("keeps the numbers below 5", "[x for x in xs if x < 5]"),
)
CHANGE = (
    Step("doubles each number", "[x * 2 for x in xs]"),
    Step("squares each number", "[x * x for x in xs]"),
    Step("negates each number", "[-x for x in xs]"),
    Step("takes absolute values", "[abs(x) for x in xs]"),
    Step("adds one to each number", "[x + 1 for x in xs]"),
    Step("takes one from each number", "[x - 1 for x in xs]"),
    Step("halves each number, rounding down", "[x // 2 for x in xs]"),
)
ORDER = (
    Step("sorts them in ascending order", "sorted(xs)"),
    Step("reverses the list", "xs[::-1]"),
    Step("drops the first number", "xs[1:]"),
    Step("drops the last number", "xs[:-1]"),
)
# Each reads at first like another step.
TRICKY = (
    Step("leaves out the even numbers", "[x for x in xs if x % 2 == 1]"),
    Step("leaves out the negative numbers", "[x for x in xs if x >= 0]"),
    Step("puts the largest first", "sorted(xs)[::-1]"),
    Step("multiplies each number by itself", "[x * x for x in xs]"),
    Step("replaces each number by its successor", "[x + 1 for x in xs]"),
    Step("turns the signs around", "[-x for x in xs]"),
)
RETURN = (
    Step("returns the sum", "sum(xs)"),
    Step("returns the largest", "max(xs)"),
    Step("returns the smallest", "min(xs)"),
    Step("returns how many there are", "len(xs)"),
    Step("returns the list", "xs"),
    Step("returns the first one", "xs[0]"),
    Step("returns the last one", "xs[-1]"),
)
PLAIN = KEEP + CHANGE + ORDER
STEPS = {step.text: step for step in (*PLAIN, *TRICKY, *RETURN)}
LEVELS = range(1, 5)
CASES = 12


def generate(rng: random.Random, level: int, held: bool) -> Task:
    """Draw a pipeline of `level` steps and a return, from the train or held-out families.

    A family is the sequence of steps; one in four is held out (there are 119 families at level
    1, 1,904 at level 2). At level 3 one step may be tricky, at level 4 one or two are.
    """
    while True:
        tricky = 0 if level < 3 else rng.randint(1, 2) if level == 4 else rng.randint(0, 1)
        steps = rng.sample(PLAIN, level - tricky) + rng.sample(TRICKY, tricky)
        rng.shuffle(steps)
        steps.append(rng.choice(RETURN))
        if held_out("|".join(s.text for s in steps)) != held:
            continue
        cases = draw_cases(rng, [s.code for s in steps])
        if cases is not None:
            break
    texts = [s.text for s in steps]
    identity = stable_seed(*texts, cases[0]) % 16**8
    return Task(
        id=f"code/pipeline/{identity:08x}",
        prompt=prompt(texts),
        answer=program([s.code for s in steps]),
        payload={"entry_point": "f", "cases": cases, "steps": tuple(texts)},
    )


def prompt(texts: Sequence[str]) -> str:
    """The task as a sentence."""
    return f"Write f(xs) that takes a list of integers, {', then '.join(texts)}."


def program(codes: Sequence[str]) -> str:
    """The function that applies the expressions one after another."""
    lines = [f"    xs = {code}" for code in codes[:-1]]
    return "\n".join(["def f(xs):", *lines, f"    return {codes[-1]}"])


def compiled(codes: Sequence[str]) -> Callable[[list[int]], Any]:
    """The function of `program(codes)`; for pipelines of this file only, never a model's text."""
    scope: dict[str, Any] = {}
    exec(program(codes), scope)
    return scope["f"]  # type: ignore[no-any-return] # exec's scope is untyped


def draw_cases(
    rng: random.Random, codes: Sequence[str]
) -> tuple[tuple[tuple[list[int]], Any], ...] | None:
    """Hidden cases as (arguments, expected), without inputs that the pipeline cannot take.

    None where the outputs are so alike that a constant would pass.
    """
    function, cases = compiled(codes), []
    for _ in range(4 * CASES):
        xs = [rng.randint(-9, 12) for _ in range(rng.randint(3, 8))]
        try:
            cases.append(((xs,), function(list(xs))))
        except (ValueError, IndexError):  # max() or xs[0] of an empty list
            continue
        if len(cases) == CASES:
            break
    if len(cases) < CASES or len({str(expected) for _, expected in cases}) < 3:
        return None
    return tuple(cases)
