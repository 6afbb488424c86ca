"""`CodeEnv`: write a Python function with a stateful interpreter as the one tool."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from envs.base import ToolEnv
from envs.code import problems
from envs.grading.program import extract_program, judge_cases, judge_script
from envs.types import Message, Task, Verdict
from sandboxes.base import ExecResult, ExecStatus, Limits, Sandbox, Session
from sandboxes.local import LocalSandbox


class CodeEnv(ToolEnv):
    """Function-writing tasks, procedural or HumanEval-format files.

    Task:
        A pipeline of `level` (1 to 4) list steps to write as `f(xs)`, or rows with `prompt`,
        `entry_point` and `test`.
    Tools:
        `run_python(code)`: a Python session that lasts for the episode.
    Reward:
        1 where the last fenced program of the answer passes every hidden test, else 0.
        Expected values are compared on the host and never enter the program's process.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = (
        "Write the Python function. Try it with run_python. "
        "Give the final program in a ```python block."
    )
    levels = problems.LEVELS
    default_level = 2

    def __init__(self, *, sandbox: Callable[[], Sandbox] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._open_sandbox = sandbox or (lambda: LocalSandbox(Limits()))
        self._sandbox: Sandbox | None = None
        self._session: Session | None = None

    def make_tools(self) -> Sequence[BaseTool]:
        """`run_python`, bound to this instance's session."""
        return (StructuredTool.from_function(self.run_python),)

    def run_python(self, code: str) -> str:
        """Run Python code; variables are kept."""
        if self._session is None:
            self._session = self._box().session()
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
        entry_point = str(task.payload["entry_point"])
        if "cases" in task.payload:
            return judge_cases(self._box(), program, entry_point, task.payload["cases"])
        program = str(task.payload["preamble"]) + program
        return judge_script(self._box(), program, entry_point, str(task.payload["test"]))

    def generate_task(self, rng: random.Random) -> Task:
        """A pipeline of list steps."""
        return problems.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """HumanEval's format: complete the function of `prompt`; `test` defines check()."""
        fields = {name: row[name] for name in ("prompt", "entry_point", "test")}
        for name, value in fields.items():
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"expected a text in {name!r}, got {type(value).__name__}")
        # Imports and helpers of the prompt, so that an answer which omits them still runs.
        preamble, _, _ = fields["prompt"].partition(f"def {fields['entry_point']}")
        return Task(
            id=str(row.get("task_id", f"code/file/{problems.stable_seed(row['prompt']):x}")),
            prompt=f"Complete this function.\n```python\n{fields['prompt'].rstrip()}\n```",
            answer=fields["prompt"] + str(row.get("canonical_solution", "")),
            payload={**fields, "preamble": preamble},
        )

    def close(self) -> None:
        """End the session and everything that the sandbox started."""
        self._end_session()
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _box(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = self._open_sandbox()
        return self._sandbox

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
