"""Procedural science problems in graded difficulty, their answers known by construction."""

import random
from collections.abc import Callable, Mapping

from envs.science_qa.problems import chemistry, conversion, decay, genetics, motion
from envs.science_qa.problems.draft import Draft, written
from envs.tasks import held_out, stable_seed
from envs.types import Task

LEVELS = range(1, 5)
TOLERANCE = 0.01  # of the answers, relative
SUBJECTS: Mapping[str, Callable[[random.Random, int], Draft | None]] = {
    "conversion": conversion.draw,
    "chemistry": chemistry.draw,
    "motion": motion.draw,
    "decay": decay.draw,
    "genetics": genetics.draw,
}


def generate(rng: random.Random, level: int, held: bool) -> Task:
    """Draw a problem of a subject, from its train or its held-out families.

    A family is all that a problem says but its numbers; one in four is held out. The levels are
    those of the subjects' `draw`; they need calculate, convert_units and element, nothing else.
    """
    subject = rng.choice(tuple(SUBJECTS))
    while True:
        draft = SUBJECTS[subject](rng, level)
        if draft is not None and held_out(f"{subject}|{draft.family}") == held:
            return _task(subject, draft)


def _task(subject: str, draft: Draft) -> Task:
    answer = f"{written(draft.value)} {draft.unit or draft.counted}"
    payload = {
        "kind": "quantity",
        "value": float(draft.value),
        "unit": draft.unit,
        "unit_required": draft.unit_required,
        "counted": draft.counted,
        "tolerance": TOLERANCE,
        "steps": tuple((step.tool, dict(step.arguments)) for step in draft.steps),
    }
    identity = f"science_qa/{subject}/{stable_seed(draft.prompt) % 16**10:010x}"
    return Task(identity, draft.prompt, answer, payload)
