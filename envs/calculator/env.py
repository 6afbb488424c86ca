"""`CalculatorEnv`: multi-step arithmetic with an exact calculator as its one tool."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, ToolException, tool

from envs.base import ToolEnv
from envs.calculator import arithmetic, problems
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
    """Arithmetic problems, procedural or GSM8K-format files.

    Task:
        Stories and expressions of `level` (1 to 4) steps, or rows with `question` and `answer`
        whose last line is `#### number`.
    Tools:
        `calculate(expression)`: exact, bounded arithmetic.
    Reward:
        1 where the last `\\boxed{}` of the answer (or its last number) equals the known answer
        by math-verify, else 0.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = "Solve the problem. Use calculate. Give the final answer in \\boxed{}."
    levels = problems.LEVELS
    default_level = 2

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
        """GSM8K's format: the number behind `####` is the answer."""
        question, rationale = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(rationale, str):
            raise ValueError("expected texts in 'question' and 'answer'")
        _, mark, number = rationale.rpartition("####")
        if not mark:
            raise ValueError("expected an answer that ends with '#### number'")
        identity = str(row.get("id", problems.identity("gsm8k", question)))
        return Task(identity, question, number.strip().replace(",", ""))
