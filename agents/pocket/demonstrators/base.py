"""Noisy demonstrators, the pocket student's only teachers: they misread tasks on purpose.

A demonstrator reads each phrase of a task by its belief, a fixed distribution in which the
right meaning is only one candidate, and then acts on that reading without a further mistake.
Imitating them makes a student that knows the formats and is mediocre at the tasks.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from envs.base import ToolEnv
from envs.tools import call_tool
from envs.types import Message, Task, ToolCall

Belief = Mapping[str, float]  # candidate meaning -> probability
Reading = tuple[str, ...]  # one meaning for each phrase of the task
MAX_OBSERVATION_CHARS = 2000


class Demonstrator(ABC):
    """Somebody who plays one environment, badly on purpose."""

    levels: ClassVar[Mapping[int, float]]  # the shares of the levels in the warm start

    def __init__(self) -> None:
        self.envs = {level: self.env_class(level=level) for level in self.levels}
        self.env = next(iter(self.envs.values()))

    @property
    @abstractmethod
    def env_class(self) -> type[ToolEnv]:
        """The environment that it plays."""

    @abstractmethod
    def beliefs(self, task: Task) -> Sequence[Belief]:
        """One distribution over meanings for each phrase."""

    @abstractmethod
    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """The transcript, observations included, of somebody who reads the task so."""

    @abstractmethod
    def feedback(self, task: Task, reading: Reading) -> str:
        """What the verifier would say of a wrong reading."""

    def draw(self, rng: random.Random) -> Task:
        """A task of the train families, at any level."""
        return self.draw_at(rng, rng.choices(list(self.levels), list(self.levels.values()))[0])

    def draw_at(self, rng: random.Random, level: int) -> Task:
        """A task of the train families at one level."""
        return self.envs[level].generate_task(rng)

    def read(self, rng: random.Random, task: Task) -> Reading:
        """Read every phrase by belief."""
        return tuple(rng.choices(list(b), list(b.values()))[0] for b in self.beliefs(task))

    def guess(self, rng: random.Random, task: Task) -> Reading:
        """Read every phrase at random, whatever it says."""
        return tuple(rng.choice(list(b)) for b in self.beliefs(task))

    def use(self, name: str, /, **arguments: Any) -> list[Message]:
        """A call and what the environment answers."""
        turn = call(name, **arguments)
        text = call_tool(self.env.tools, turn.tool_calls[0], MAX_OBSERVATION_CHARS)
        return [turn, result(text)]

    def judged(self, task: Task, messages: Sequence[Message]) -> str:
        """The feedback of the environment's own verifier; tools must just have been used so."""
        return self.env.grade(task, messages[-1]).feedback


def belief(right: str, chance: float, confused_with: str, others: Sequence[str]) -> Belief:
    """Right with probability `chance`; most of the rest goes to one other meaning."""
    rest = [meaning for meaning in others if meaning not in (right, confused_with)]
    spread = 0.15 * (1 - chance) if rest else 0.0
    shares = {meaning: spread / len(rest) for meaning in rest}
    return {right: chance, confused_with: 1 - chance - spread, **shares}


def call(name: str, /, **arguments: Any) -> Message:
    """An assistant turn that only calls a tool."""
    return Message("assistant", "", (ToolCall("call_0", name, json.dumps(arguments)),))


def result(text: str) -> Message:
    """The observation of `call`."""
    return Message("tool", text, tool_call_id="call_0")
