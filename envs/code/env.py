"""`CodeEnv`: write a Python function with a stateful interpreter as the one tool."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from envs.base import ToolEnv
from envs.code import problems
from envs.grading.feedback import REVEALS, Reveal
from envs.grading.program import extract_program, judge_cases, judge_script
from envs.grading.stdio import judge_stdio
from envs.tasks import stable_seed
from envs.types import Message, Task, Verdict
from sandboxes.base import ExecResult, ExecStatus, Session


class CodeEnv(ToolEnv):
    """Program-writing tasks, procedural or from files.

    Task:
        A pipeline of `level` (1 to 4) list steps to write as `f(xs)`, or rows with a `prompt` and
        the hidden tests: `entry_point` and `test` as in HumanEval, `entry_point` and `cases` of
        [arguments, expected], or `stdin_cases` of [input, expected output] for whole programs.
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
        payload = task.payload
        tolerance, reveal = payload.get("tolerance", 0.0), self._reveal
        if "stdin_cases" in payload:
            cases = payload["stdin_cases"]
            return judge_stdio(self.sandbox, program, cases, tolerance=tolerance, reveal=reveal)
        entry_point = str(payload["entry_point"])
        if "cases" in payload:
            cases = payload["cases"]
            return judge_cases(
                self.sandbox, program, entry_point, cases, tolerance=tolerance, reveal=reveal
            )
        return judge_script(
            self.sandbox,
            str(payload["preamble"]) + program,
            entry_point,
            str(payload["test"]),
            support=str(payload["prompt"]),  # tests may use what the prompt defines
            reveal=reveal,
        )

    def generate_task(self, rng: random.Random) -> Task:
        """A pipeline of list steps."""
        return problems.generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """A row of one of the formats that the class names."""
        prompt = _text(row, "prompt")
        name = str(row.get("task_id", f"code/file/{stable_seed(prompt):x}"))
        if "stdin_cases" in row:
            asked = "Write a program that reads standard input and writes standard output."
            payload: dict[str, Any] = {"stdin_cases": _pairs(row, "stdin_cases", str, str)}
        elif "cases" in row:
            asked = f"Write the function {_text(row, 'entry_point')}."
            payload = {
                "entry_point": row["entry_point"],
                "cases": _pairs(row, "cases", list, object),
            }
        else:
            return _humaneval(row, name)
        payload["tolerance"] = float(row.get("tolerance", 0.0))
        return Task(name, f"{asked}\n{prompt}", str(row.get("canonical_solution", "")), payload)

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


def _humaneval(row: Mapping[str, Any], name: str) -> Task:
    """Complete the function of `prompt`; `test` defines check()."""
    fields = {field: _text(row, field) for field in ("prompt", "entry_point", "test")}
    # Imports and helpers of the prompt, so that an answer which omits them still runs.
    preamble, _, _ = fields["prompt"].partition(f"def {fields['entry_point']}")
    return Task(
        id=name,
        prompt=f"Complete this function.\n```python\n{fields['prompt'].rstrip()}\n```",
        answer=fields["prompt"] + str(row.get("canonical_solution", "")),
        payload={**fields, "preamble": preamble},
    )


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text in {field!r}, got {type(value).__name__}")
    return value


def _pairs(row: Mapping[str, Any], field: str, *kinds: type) -> tuple[tuple[Any, ...], ...]:
    cases = row[field]
    if not (isinstance(cases, list) and cases) or not all(
        isinstance(case, list) and len(case) == 2 and all(map(isinstance, case, kinds))
        for case in cases
    ):
        kind, other = (kind.__name__ for kind in kinds)
        raise ValueError(f"expected a list of pairs [{kind}, {other}] in {field!r}")
    return tuple(map(tuple, cases))
