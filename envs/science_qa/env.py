"""`ScienceQAEnv`: science questions, with the tools of a scientist."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool

from envs.base import ToolEnv, Transcript
from envs.grading.choice import grade_choice
from envs.science_qa import formats, problems, solutions
from envs.science_qa.quantity import Quantity, grade_quantity
from envs.science_qa.tools import choose
from envs.types import Message, Task, Verdict

PROCEDURAL = ("calculate", "convert_units", "element")  # the tools of generated problems


class ScienceQAEnv(ToolEnv):
    """Problems of biology, chemistry and physics, procedural or from files.

    Task:
        Unit chains, amounts of substance, motion, decay and genetics in `level` (1 to 4) steps,
        or multiple-choice rows of SciKnowEval, MMLU-Pro and GPQA (`formats.read_row` has their
        fields), with SciKnowEval's published prompts.
    Tools:
        `calculate(expression)`; `convert_units(value, from_unit, to_unit)` by pint; `element(name)`
        by periodictable; `constant(name)`, CODATA's, by scipy; `molecule(smiles)` by RDKit. A tool
        whose library is missing is not offered: the last two come with the extra `science`.
        Procedural tasks come with the first three, which they need, whatever is installed.
        `tools` names those to offer instead.
    Reward:
        1 where the text between the last `<answer>` and the next `</answer>` is right, else 0.
        Multiple choice, of all three, by SciKnowEval's published rule: it is the letter and nothing
        else. Procedural tasks: it is a number within 1 % of the answer, with a unit where the
        question asks for one; any unit of the right dimension will do.
        Beside the published setting, in which a reply is one text without tools: the rule sees the
        message without a tool call and none before it; an episode that a limit ends without such a
        message fails.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = (
        "Solve the problem with the tools. End with the number and its unit, within 1 %: "
        "<answer>12.5 m/s</answer>"
    )
    levels = problems.LEVELS
    default_level = 2
    formats = formats.FORMATS

    def __init__(
        self,
        *,
        tools: Sequence[str] | None = None,
        data: str | Path | None = None,
        **options: Any,
    ) -> None:
        if tools is None and data is None:
            tools = PROCEDURAL
        self._offered = choose(tools)
        super().__init__(data=data, **options)

    def make_tools(self) -> Sequence[BaseTool]:
        """They keep no state."""
        return self._offered

    def start_episode(self, task: Task) -> None:
        """A data file's tasks come with their own system prompt."""
        # The base class has one for all tasks.
        self.system_prompt = task.payload.get("system", type(self).system_prompt)  # type: ignore[misc]

    def grade(self, task: Task, answer: Message) -> Verdict:
        """By letter or by number."""
        payload = task.payload
        if payload["kind"] == "choice":
            return grade_choice(answer.content, task.answer)
        expected = Quantity(
            value=payload["value"],
            unit=payload["unit"],
            tolerance=payload["tolerance"],
            unit_required=payload["unit_required"],
            counted=payload["counted"],
        )
        return grade_quantity(answer.content, expected)

    def generate_task(self, rng: random.Random) -> Task:
        """A problem of one of the subjects."""
        return problems.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """A row of one of the `formats`."""
        return formats.read_row(row)

    def solution(self, task: Task) -> Transcript:
        """The steps with the tools, then the answer."""
        return solutions.solution(task)

    def corrupted(self, task: Task, rng: random.Random) -> Transcript:
        """The same steps, then another answer."""
        return solutions.corrupted(task, rng)
