"""Questions of one to four hops about an invented world, their answers known by construction."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from envs.search.documents import text_key
from envs.search.world import RELATIONS, build_world
from envs.tasks import held_out, stable_seed
from envs.types import Task


@dataclass(frozen=True, slots=True)
class Phrase:
    """How a question names a relation; the entity, or another phrase, follows."""

    text: str
    relation: str


def _phrases(texts: Mapping[str, tuple[str, ...]]) -> tuple[Phrase, ...]:
    return tuple(Phrase(f"the {t}", name) for name, several in texts.items() for t in several)


PLAIN = _phrases(
    {
        "birthplace": ("birthplace of", "place of birth of"),
        "home": ("home of", "place of residence of"),
        "teacher": ("teacher of", "tutor of"),
        "pupil": ("pupil of", "student of"),
        "employer": ("employer of", "workplace of"),
        "mayor": ("mayor of", "governor of"),
        "founder": ("founder of", "builder of"),
        "river": ("river of", "river beside"),
        "twin": ("twin town of", "sister town of"),
        "head": ("head of", "director of"),
        "owner": ("owner of", "holder of"),
        "seat": ("seat of", "base of"),
        "source": ("source of", "start of"),
        "mouth": ("mouth of", "end of"),
    }
)
# Each holds a word of its relation's rival and reads at first like that one.
TRICKY = _phrases(
    {
        "birthplace": ("first home of", "home at birth of"),
        "home": ("town moved to after birth by", "home away from the birthplace of"),
        "teacher": ("one who had as pupil", "one whose student was"),
        "pupil": ("one who had as teacher", "one whose tutor was"),
        "mayor": ("present successor to the founder of",),
        "founder": ("one who came long before the mayor of",),
        "head": ("leader under the owner of",),
        "owner": ("one whom the head serves at",),
        "source": ("town farthest from the end of",),
        "mouth": ("town farthest from the source of",),
    }
)
PHRASES = {phrase.text: phrase for phrase in PLAIN + TRICKY}
LEVELS = range(1, 5)
# The fewest and the most tricky phrases of a question.
TRICKY_BY_LEVEL: Mapping[int, tuple[int, int]] = {1: (0, 0), 2: (1, 1), 3: (1, 1), 4: (1, 2)}
ASKING = {
    "person": "Who is",
    "town": "Which town is",
    "company": "Which company is",
    "river": "Which river is",
}


def generate(
    rng: random.Random,
    level: int,
    held: bool,
    tricky: Mapping[int, tuple[int, int]] = TRICKY_BY_LEVEL,
) -> Task:
    """Draw a world and a question of `level` hops in it.

    The two splits share no name, so no entity, document, question or answer; from level 2 on
    they share no sequence of phrases either. One name, and one sequence, in four is held out.
    """
    while True:
        seed = rng.randrange(2**31)
        phrases = _draw(rng, level, rng.randint(*tricky[level]))
        if level > 1 and held_out("|".join(p.text for p in phrases)) != held:
            continue
        start = rng.choice(_subjects(seed, held, phrases[0]))
        task = question(seed, held, start, phrases)
        if task is not None:
            return task


def question(seed: int, held: bool, start: str, phrases: tuple[Phrase, ...]) -> Task | None:
    """The question that follows `phrases` from `start`; None where it comes back to an entity."""
    world = build_world(seed, held)
    entities = [start]
    for phrase in phrases:
        entities.append(world.facts[entities[-1], phrase.relation])
    if len(set(entities)) < len(entities):
        return None
    answer = entities[-1]
    named = " ".join((*(phrase.text for phrase in reversed(phrases)), start))
    prompt = f"{ASKING[world.kinds[answer]]} {named}?"
    payload = {
        "kind": "world",
        "held_out": held,
        "phrases": tuple(phrase.text for phrase in phrases),
        "entities": tuple(entities),
        "answers": (answer,),
        "gold": tuple(text_key(world.documents[entity].text) for entity in entities[:-1]),
    }
    identity = f"search/world/{stable_seed(seed, held, prompt) % 16**12:012x}"
    return Task(identity, prompt, answer, payload, seed)


def query(entity: str, relation: str) -> str:
    """The search that shows a fact of an entity."""
    return f"{entity} {RELATIONS[relation].word}"


def _subjects(seed: int, held: bool, phrase: Phrase) -> list[str]:
    kind = RELATIONS[phrase.relation].subject
    return [name for name, its in build_world(seed, held).kinds.items() if its == kind]


def _draw(rng: random.Random, level: int, tricky: int) -> tuple[Phrase, ...]:
    """Phrases that can follow each other, so many of them tricky, at places drawn at random."""
    places = set(rng.sample(range(level), tricky))
    while True:
        phrases: list[Phrase] = []
        for place in range(level):
            fitting = [
                phrase
                for phrase in (TRICKY if place in places else PLAIN)
                if not phrases
                or RELATIONS[phrase.relation].subject == RELATIONS[phrases[-1].relation].object
            ]
            if not fitting:
                break
            phrases.append(rng.choice(fitting))
        else:
            return tuple(phrases)
