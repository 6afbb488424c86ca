"""Small invented worlds of documents, each made from a seed and never seen elsewhere."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from envs.search.documents import Document
from envs.tasks import held_out, stable_seed


@dataclass(frozen=True, slots=True)
class Relation:
    """A fact that every entity of a kind has, and how its document states it."""

    subject: str
    object: str
    fact: str
    word: str  # of the fact: a search for it beside the name shows the fact
    rival: str | None = None  # the relation that is easily taken for it; it has another value


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "birthplace": Relation("person", "town", "Born in {}.", "born", "home"),
        "home": Relation("person", "town", "Lives in {}.", "lives", "birthplace"),
        "teacher": Relation("person", "person", "Learnt from {}.", "learnt", "pupil"),
        "pupil": Relation("person", "person", "Taught {}.", "taught", "teacher"),
        "employer": Relation("person", "company", "Works for {}.", "works"),
        "mayor": Relation("town", "person", "The mayor is {}.", "mayor", "founder"),
        "founder": Relation("town", "person", "Founded by {}.", "founded", "mayor"),
        "river": Relation("town", "river", "Lies on the {}.", "lies"),
        "twin": Relation("town", "town", "Twinned with {}.", "twinned"),
        "head": Relation("company", "person", "Led by {}.", "led", "owner"),
        "owner": Relation("company", "person", "Owned by {}.", "owned", "head"),
        "seat": Relation("company", "town", "Based in {}.", "based"),
        "source": Relation("river", "town", "Rises near {}.", "rises", "mouth"),
        "mouth": Relation("river", "town", "Ends near {}.", "ends", "source"),
    }
)
SIZES = {"person": 14, "town": 12, "company": 5, "river": 5}
_INTROS = {
    "person": "{} is a {}.",
    "town": "{} is a town known for its {}.",
    "company": "{} is a company that makes {}.",
    "river": "The {} is a {} river.",
}
_ABOUT = {
    "person": "baker painter pilot doctor farmer singer lawyer tailor gardener judge",
    "town": "bread market bells bridges gardens tower harbour fair",
    "company": "rope paper soap bricks clocks boats lamps paint",
    "river": "short long calm fast wide narrow cold muddy",
}
_FAMILY = (
    "Salm Korr Bral Orvik Ashk Cordel Drum Feld Gant Holm Irsk Jarn Kell Lorn Mott Nask Oster "
    "Prill Quist Rask Sund Tarn Ulven Vask"
)
_PARTS = {  # first parts of a name, last parts, and what joins them
    "person": (
        "Bena Dov Ena Fim Gela Hok Ilin Jora Kesh Luma Miro Nal Orsa Pim Rudo Sefa Tull Vesk "
        "Wila Yano Zeb Arlu Cenn Dagmo",
        _FAMILY,
        " ",
    ),
    "town": (
        "Tar Mel Os Bry Kel Vor Lun Hes Dra Pol Sil Nor Gar Fen Rud Wex",
        "vo ka by mund lin ton dal ster nik ham ora wick fell gard ez um",
        "",
    ),
    "company": (_FAMILY, "Mills Lines Glass Press Ropes Forge", " "),
    "river": ("Ul Am Ker Sa Ven Ol Tis Ar Bre Em Il Ru", "la mer re sk dra ne sha ve", ""),
}


def _names(kind: str, held: bool) -> tuple[str, ...]:
    firsts, lasts, joint = _PARTS[kind]
    names = (f"{first}{joint}{last}" for first in firsts.split() for last in lasts.split())
    return tuple(name for name in names if held_out(f"search|{name}") == held)


_NAMES = {(kind, held): _names(kind, held) for kind in SIZES for held in (False, True)}


@dataclass(frozen=True, slots=True)
class World:
    """Entities, their facts, and a document for each."""

    kinds: Mapping[str, str]  # entity -> kind
    facts: Mapping[tuple[str, str], str]  # entity, relation -> entity
    documents: Mapping[str, Document]  # entity -> its document


@lru_cache(maxsize=256)
def build_world(seed: int, held: bool) -> World:
    """The world of a seed, with the names of the held-out or of the train split."""
    rng = random.Random(stable_seed("search world", seed))
    entities = {kind: rng.sample(_NAMES[kind, held], size) for kind, size in SIZES.items()}
    facts = _facts(rng, entities)
    kinds = {name: kind for kind, names in entities.items() for name in names}
    order = list(kinds)
    rng.shuffle(order)
    documents = {
        name: Document(f"d{number}", name, _text(rng, name, kinds[name], facts))
        for number, name in enumerate(order, start=1)
    }
    return World(kinds, facts, documents)


def _facts(rng: random.Random, entities: Mapping[str, list[str]]) -> dict[tuple[str, str], str]:
    facts: dict[tuple[str, str], str] = {}
    people, towns = entities["person"], entities["town"]
    for teacher, pupil in zip(people, people[1:] + people[:1], strict=True):  # one long ring
        facts[teacher, "pupil"], facts[pupil, "teacher"] = pupil, teacher
    for one, other in zip(towns[::2], towns[1::2], strict=True):
        facts[one, "twin"], facts[other, "twin"] = other, one
    for name, relation in RELATIONS.items():
        for subject in entities[relation.subject]:
            if (subject, name) in facts:
                continue
            taken = {subject, facts.get((subject, relation.rival or ""))}
            facts[subject, name] = rng.choice(
                [entity for entity in entities[relation.object] if entity not in taken]
            )
    return facts


def _text(rng: random.Random, name: str, kind: str, facts: Mapping[tuple[str, str], str]) -> str:
    sentences = [
        relation.fact.format(facts[name, key])
        for key, relation in RELATIONS.items()
        if relation.subject == kind
    ]
    rng.shuffle(sentences)
    return " ".join((_INTROS[kind].format(name, rng.choice(_ABOUT[kind].split())), *sentences))
