"""`CalculatorEnv`: multi-step arithmetic with an exact calculator as its one tool."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, ToolException, tool

from envs.base import ToolEnv, Transcript
from envs.calculator import arithmetic, formats, problems, solutions
from envs.grading.number import grade_number
from envs.types import Message, Task, Verdict


@tool
def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    try:
        return arithmetic.calculate(expression)
    except arithmetic.ArithmeticProblem as error:
        raise ToolException(str(error)) from error


class CalculatorEnv(ToolEnv):
    """Arithmetic problems, procedural or from files.

    Task:
        Stories and expressions of `level` (1 to 4) steps, or rows of GSM8K, MATH, AIME, HMMT or
        DeepMath (`formats.read_row` has their fields).
    Tools:
        `calculate(expression)`: exact, bounded arithmetic.
    Reward:
        1 where the last `\\boxed{}` of the answer (without one: its last number, or its last
        formula where a formula is expected) equals the known answer by math-verify, else 0.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = "Solve the problem. Use calculate. Give the final answer in \\boxed{}."
    levels = problems.LEVELS
    default_level = 2
    formats = formats.FORMATS

    def make_tools(self) -> Sequence[BaseTool]:
        """`calculate` keeps no state."""
        return (calculate,)

    def grade(self, task: Task, answer: Message) -> Verdict:
        """Compare numbers, not strings."""
        return grade_number(answer.content, task.answer)

    def generate_task(self, rng: random.Random) -> Task:
        """A story or an expression."""
        return problems.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """A row of one of the `formats`."""
        return formats.read_row(row)

    def solution(self, task: Task) -> Transcript:
        """The steps with `calculate`, then the answer."""
        return solutions.solution(task)

    def corrupted(self, task: Task, rng: random.Random) -> Transcript:
        """The same steps, then another answer."""
        return solutions.corrupted(task, rng)
