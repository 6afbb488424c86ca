"""`CodeEnv`: write a Python function with a stateful interpreter as the one tool."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from envs.base import ToolEnv, Transcript
from envs.code import formats, problems, solutions
from envs.code.judging import judge
from envs.grading.feedback import REVEALS, Reveal
from envs.grading.program import extract_program
from envs.types import Message, Task, Verdict
from sandboxes.base import ExecResult, ExecStatus, Session


class CodeEnv(ToolEnv):
    """Program-writing tasks, procedural or from files.

    Task:
        A pipeline of `level` (1 to 4) list steps to write as `f(xs)`, or rows of HumanEval(+),
        MBPP(+), LiveCodeBench, Codeforces, CodeContests, or of our own two formats
        (`formats.read_row` has their fields). Public tests are shown, the others are hidden.
    Tools:
        `run_python(code)`: a Python session that lasts for the episode.
    Reward:
        1 where the last fenced program of the answer passes every hidden test, else 0.
        Expected values are compared on the host and never enter the program's process. The
        feedback tells of the first failing test as much as `reveal` allows.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = (
        "Write the Python function. Try it with run_python. "
        "Give the final program in a ```python block."
    )
    levels = problems.LEVELS
    default_level = 2
    needs_sandbox = True
    formats = formats.FORMATS

    def __init__(self, *, reveal: Reveal = "expected", **options: Any) -> None:
        if reveal not in REVEALS:
            raise ValueError(f"env.reveal={reveal!r}: there are {', '.join(REVEALS)}")
        self._reveal: Reveal = reveal
        self._session: Session | None = None
        super().__init__(**options)

    def make_tools(self) -> Sequence[BaseTool]:
        """`run_python`, bound to this instance's session."""
        return (StructuredTool.from_function(self.run_python),)

    def run_python(self, code: str) -> str:
        """Run Python code; variables are kept."""
        if self._session is None:
            self._session = self.sandbox.session()
        return observation(self._session.run(code))

    def start_episode(self, task: Task) -> None:
        """A new episode starts with an empty session, made when it is first used."""
        self._end_session()

    def grade(self, task: Task, answer: Message) -> Verdict:
        """Run the program of the answer against the hidden tests."""
        self._end_session()
        program = extract_program(answer.content)
        if program is None:
            return Verdict(0.0, False, "There is no ```python block in the answer.")
        return judge(self.sandbox, program, task.payload, self._reveal)

    def generate_task(self, rng: random.Random) -> Task:
        """A pipeline of list steps."""
        return problems.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """A row of one of the `formats`."""
        return formats.read_row(row)

    def solution(self, task: Task) -> Transcript:
        """The program, tried once, then handed in."""
        return solutions.solution(task)

    def corrupted(self, task: Task, rng: random.Random) -> Transcript:
        """The program with other results."""
        return solutions.corrupted(task, rng)

    def close(self) -> None:
        """End the session and everything that the sandbox started."""
        self._end_session()
        super().close()

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def observation(result: ExecResult) -> str:
    """What the agent sees of an execution."""
    text = "\n".join(part for part in (result.stdout.rstrip(), result.stderr.rstrip()) if part)
    if result.status in (ExecStatus.OK, ExecStatus.EXCEPTION):
        return text or "(no output)"
    note = {
        ExecStatus.WALL_TIMEOUT: "timed out",
        ExecStatus.CPU_TIMEOUT: "used too much processor time",
        ExecStatus.OUT_OF_MEMORY: "ran out of memory",
        ExecStatus.OUTPUT_LIMIT: "printed too much",
        ExecStatus.SIGNAL: "the interpreter died",
        ExecStatus.SESSION_DEAD: "the session had ended; its variables are lost",
    }[result.status]
    return f"{text}\n[{note}]".strip()
