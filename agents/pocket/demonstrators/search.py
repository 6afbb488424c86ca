"""Who plays `search`: confuses relations, such as teacher and pupil."""

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from agents.pocket.demonstrators.base import Belief, Demonstrator, Reading, belief
from envs.grading.text_match import CLOSE, OPEN
from envs.search import SearchEnv
from envs.search.questions import PHRASES, PLAIN, query
from envs.search.world import RELATIONS, build_world
from envs.types import Message, Task


class SearchDemonstrator(Demonstrator):
    """Follows the relations that it reads, one search each."""

    env_class = SearchEnv
    levels: ClassVar[Mapping[int, float]] = {1: 0.3, 2: 0.55, 3: 0.15}

    def beliefs(self, task: Task) -> Sequence[Belief]:
        """Each phrase read as a relation of the same two kinds; the last one of any kind."""
        texts = task.payload["phrases"]
        return [self._belief(text, last=i == len(texts) - 1) for i, text in enumerate(texts)]

    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """A search for each relation, each from what the one before has found."""
        self.env.reset(options={"task": task})
        facts = build_world(task.seed, task.payload["held_out"]).facts
        entity, messages = task.payload["entities"][0], []
        for relation in reading:
            messages += self.use("search", query=query(entity, relation), k=1)
            entity = facts[entity, relation]
        return (*messages, Message("assistant", f"{OPEN}{entity}{CLOSE}"))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The verifier only says which answer was wrong, and what was found."""
        return self.judged(task, self.act(random.Random(0), task, reading))

    def _belief(self, text: str, *, last: bool) -> Belief:
        right = PHRASES[text].relation
        order = list(PHRASES).index(text) % 4
        chance = (0.85, 0.75, 0.65, 0.55)[order]
        if PHRASES[text] not in PLAIN:
            chance = (0.45, 0.35)[order % 2]
        kinds = RELATIONS[right]
        others = [
            name
            for name, its in RELATIONS.items()
            if name != right
            and its.subject == kinds.subject
            and (last or its.object == kinds.object)
        ]
        if not others:
            return {right: 1.0}
        return belief(right, chance, kinds.rival or others[-1], others)
