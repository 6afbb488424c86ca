"""Who plays `science_qa`: takes operations for their inverses, and units in the wrong direction."""

import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from agents.pocket.demonstrators.base import Belief, Demonstrator, Reading
from envs.science_qa import ScienceQAEnv
from envs.science_qa.problems.draft import written
from envs.tasks import stable_seed
from envs.types import Message, Task

RIGHT, FLIPPED, SWAPPED, DROPPED = "right", "flipped", "swapped", "dropped"
_INVERSE = {" * ": " / ", " / ": " * ", " + ": " - ", " - ": " + "}
_OPERATION = re.compile(r" [*/+-] ")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MASS = re.compile(r"mass ([\d.]+)")  # of an element


class ScienceQADemonstrator(Demonstrator):
    """Does the steps of a problem, some of them wrongly."""

    env_class = ScienceQAEnv
    levels: ClassVar[Mapping[int, float]] = {1: 0.3, 2: 0.55, 3: 0.15}

    def beliefs(self, task: Task) -> Sequence[Belief]:
        """One for each step, by its form."""
        return [_belief(tool, arguments) for tool, arguments in task.payload["steps"]]

    def act(self, rng: random.Random, task: Task, reading: Reading) -> tuple[Message, ...]:
        """The steps as they were read; what one gives goes into those behind it."""
        messages: list[Message] = []
        results: dict[str, str] = {}  # what a right step would have given -> what it gave
        value = ""
        for (tool, right), meaning in zip(task.payload["steps"], reading, strict=True):
            expected = _shown(self.use(tool, **right)[-1].content)
            arguments = {key: _replaced(text, results) for key, text in right.items()}
            for tried in (_misread(tool, arguments, meaning), arguments, right):
                messages += self.use(tool, **tried)
                if not messages[-1].content.startswith("Error"):  # such as a division by zero
                    break
            value = _shown(messages[-1].content)
            if value != expected:
                results[expected] = value
        unit = task.answer.partition(" ")[2]
        return (*messages, Message("assistant", f"<answer>{value} {unit}</answer>"))

    def feedback(self, task: Task, reading: Reading) -> str:
        """The verifier says in which way the number is wrong."""
        return self.judged(task, self.act(random.Random(0), task, reading))


def _belief(tool: str, arguments: Mapping[str, Any]) -> Belief:
    if tool == "convert_units":
        form = f"{arguments['from_unit']} {arguments['to_unit']}"
        chance = (0.78, 0.68, 0.58, 0.48)[stable_seed(form) % 4]
        return {RIGHT: chance, SWAPPED: 1 - chance}
    if tool != "calculate" or not _OPERATION.search(arguments["expression"]):
        return {RIGHT: 1.0}
    form = _NUMBER.sub("#", arguments["expression"])
    chance = (0.78, 0.68, 0.58, 0.48)[stable_seed(form) % 4]
    return {RIGHT: chance, FLIPPED: 0.75 * (1 - chance), DROPPED: 0.25 * (1 - chance)}


def _misread(tool: str, arguments: dict[str, Any], meaning: str) -> dict[str, Any]:
    if meaning == SWAPPED:
        source, target = arguments["from_unit"], arguments["to_unit"]
        return {**arguments, "from_unit": target, "to_unit": source}
    if meaning == RIGHT:
        return arguments
    expression = str(arguments["expression"])
    last = list(_OPERATION.finditer(expression))[-1]
    if meaning == FLIPPED:
        head, tail = expression[: last.start()], expression[last.end() :]
        return {"expression": head + _INVERSE[last.group()] + tail}
    head = expression[: last.start()]  # without what is open in it, such as "(35 - 5"
    return {"expression": head.replace("(", "").replace(")", "")}


def _replaced(value: Any, results: Mapping[str, str]) -> Any:
    """An argument in which results of misread steps stand instead of the right ones."""
    if isinstance(value, str):
        return _NUMBER.sub(lambda found: results.get(found.group(), found.group()), value)
    if (text := results.get(written(Fraction(str(value))))) is None:
        return value
    number = float(text)
    return int(number) if number.is_integer() else number


def _shown(observation: str) -> str:
    """The number that a tool has shown, as one goes on with it."""
    if (mass := _MASS.search(observation)) is not None:
        return mass[1]
    exact, _, near = observation.partition("about ")
    return (near.rstrip(")") or exact).split(" ")[0]
