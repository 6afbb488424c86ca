"""`ToolUseEnv`: errands in an office, chores in generated worlds, and calls of documented APIs."""

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from langchain_core.tools import BaseTool

from envs.base import ToolEnv, Transcript
from envs.grading.calls import Call, grade_recorded, grade_written, write
from envs.grading.feedback import failed
from envs.grading.number import boxed
from envs.tool_use import chores, desk, documentation, errands, generated_tools, rows
from envs.tool_use.acting import Store
from envs.tool_use.corruption import corrupted_calls, corrupted_chore, corrupted_errand
from envs.tool_use.toolbox import read_toolbox
from envs.tool_use.world import World, difference
from envs.types import Message, Task, ToolCall, Verdict

log = logging.getLogger(__name__)

DONE = "Done."
NATIVE_PROMPT = (
    "Answer the user's question by calling the tools, with arguments from the question. Make "
    "each call that is needed once, then say that you are done."
)
CHORE_PROMPT = (
    "Do what is asked with the tools, and change nothing that is not needed for it. If there is a "
    "question, give the answer in \\boxed{}."
)


class ToolUseEnv(ToolEnv):
    """Errands in small worlds, or questions that calls of documented APIs answer.

    Task:
        Procedural: orders and questions that need one call (level 1) to six (level 4), the later
        ones with arguments that earlier ones found out, among records and tools that are not
        needed. With `world="office"` they are about contacts, events, files and shop items; with
        "generated", about a home, a library, a warehouse, a clinic or a garage, held out also a
        harbour, where something may have to be done first. Or rows of ToolAlpaca's questions.
    Tools:
        Office: `find`, `show`, `set_phone`, `move`, `delete`, `archive`, `buy`. Generated worlds:
        three to a dozen made for the task, with names and arguments of its own, some of them of no
        use or nearly the right ones; a refusal says what would help. Rows with
        `calling="native"`: the documented APIs of each row, which check their arguments,
        remember good calls and acknowledge them; with "text" there are none.
    Reward:
        Worlds: 1 where all records are exactly as they should be and the answer, if one was asked
        for, stands in the last `\\boxed{}` of the final message, or is its last word. Rows: 1
        where names and arguments of the calls fit by the published rule, be they made natively
        or written as `Action:` and `Action Input:` in the final message. Else 0.
    Episode end:
        The first message without a tool call, or a limit.
    """

    system_prompt = (
        "Do what is asked with the tools. If there is a question, give the answer in \\boxed{}."
    )
    levels = errands.LEVELS
    default_level = 2
    formats: ClassVar[tuple[str, ...]] = ("ToolAlpaca", "ToolAlpaca in the published prompt")

    def __init__(
        self,
        *,
        calling: rows.Calling = "native",
        world: Literal["office", "generated"] = "office",
        data: str | Path | None = None,
        **options: Any,
    ) -> None:
        if calling not in ("text", "native"):
            raise ValueError(f"env.calling={calling!r}: expected 'text' or 'native'")
        if world not in ("office", "generated"):
            raise ValueError(f"env.world={world!r}: expected 'office' or 'generated'")
        if data is not None and world == "generated":
            raise ValueError(
                "env.world='generated' makes procedural tasks and does nothing with data; give one"
            )
        self.calling: rows.Calling = calling
        self.world = world
        self._brings_tools = data is not None or world == "generated"
        self._desk = desk.Desk(())
        self._store = Store(())
        self._desk_tools = desk.make_tools(lambda: self._desk)
        self._made: list[Call] = []
        self._system = self.system_prompt
        super().__init__(data=data, **options)
        self._tell_what_is_text()

    def _tell_what_is_text(self) -> None:
        """One warning for the rows that should have been native and cannot be."""
        told = [(t.id, t.payload["text_because"]) for t in self.rows or () if _is_fallback(t)]
        if told:
            (identity, reason), total = told[0], len(self.rows or ())
            log.warning(
                f"{len(told)} of {total} rows are asked as text, the first: {identity}: {reason}"
            )

    def make_tools(self) -> Sequence[BaseTool]:
        """The office's tools; those of a row or of a generated world come with its episode."""
        return () if self._brings_tools else self._desk_tools

    def start_episode(self, task: Task) -> None:
        """A fresh world, or the row's APIs with nothing called yet."""
        self._made = []
        tools: Sequence[BaseTool] = ()
        if _is_errand(task):
            self._system = self.system_prompt
            self._desk, tools = desk.Desk(task.payload["world"]), self._desk_tools
        elif _is_chore(task):
            self._system = CHORE_PROMPT
            toolbox = read_toolbox(task.payload)
            self._store = Store(task.payload["world"], toolbox.said, toolbox.names)
            tools = generated_tools.make_tools(toolbox, lambda: self._store)
        elif _is_native(task):
            self._system = NATIVE_PROMPT
            apis = documentation.parse(task.payload["documentation"])
            tools = documentation.tools(apis, self._made.append)
        else:
            self._system = ""
        self.tools = {tool.name: tool for tool in tools}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Transcript, dict[str, Any]]:
        """As `ToolEnv.reset`; the published text format has no system message."""
        (system, user), info = super().reset(seed=seed, options=options)
        system = replace(system, content=self._system, tools=self._brought())
        self.transcript = [system, user] if self._system else [user]
        return tuple(self.transcript), info

    def _brought(self) -> tuple[str, ...]:
        """The schemas of tools that are this task's own."""
        own = self.current_task is not None and not _is_errand(self.current_task)
        return tuple(map(json.dumps, self.schemas())) if own else ()

    def grade(self, task: Task, answer: Message) -> Verdict:
        """The world's state and the answer, or the published rule for calls."""
        if _is_errand(task):
            return _grade_state(self._desk, task, answer.content)
        if _is_chore(task):
            return _grade_state(self._store, task, answer.content)
        expected = rows.expected_calls(task)
        if _is_native(task):
            return grade_recorded(self._made, expected)
        return grade_written(answer.content, expected)

    def generate_task(self, rng: random.Random) -> Task:
        """An errand in the office, or a chore in a generated world."""
        generate = errands.generate if self.world == "office" else chores.generate
        return generate(rng, self.level, self.split == "held_out")

    def read_row(self, row: Mapping[str, Any]) -> Task:
        """A question with its calls, as in the published experiments."""
        return rows.read(row, self.calling)

    @classmethod
    def rows_of(cls, document: Any) -> Iterable[Any]:
        """Also ToolAlpaca's own files, which hold many questions to an API."""
        return rows.rows_of(document)

    def solution(self, task: Task) -> Transcript:
        """The calls of the solution, each in a turn of its own, then the answer."""
        if _is_errand(task) or _is_chore(task):
            return _spoken(_steps(task), _said(task.payload["asked"]))
        return _answered(task, rows.expected_calls(task))

    def corrupted(self, task: Task, rng: random.Random) -> Transcript:
        """A solution with one call, argument or answer changed, so that it must fail."""
        if _is_errand(task) or _is_chore(task):
            corrupted = corrupted_errand if _is_errand(task) else corrupted_chore
            steps, answer = corrupted(task, _steps(task), rng)
            return _spoken(steps, _said(answer))
        apis = documentation.parse(task.payload["documentation"]) if _is_native(task) else None
        return _answered(task, corrupted_calls(rows.expected_calls(task), apis, rng))


def _answered(task: Task, calls: Sequence[Call]) -> Transcript:
    """The calls that answer a row, in the way in which the task takes them."""
    if _is_native(task):
        return _spoken(calls, DONE)
    return (Message("assistant", f"Thought: These calls answer it.\n{write(calls)}"),)


def _is_errand(task: Task) -> bool:
    return bool(task.payload["kind"] == "errand")


def _is_chore(task: Task) -> bool:
    return bool(task.payload["kind"] == "chore")


def _is_native(task: Task) -> bool:
    return bool(task.payload["calling"] == "native")


def _is_fallback(task: Task) -> bool:
    return "text_because" in task.payload


def _steps(task: Task) -> tuple[Call, ...]:
    return tuple(Call(name, json.loads(text)) for name, text in task.payload["steps"])


def _said(answer: str) -> str:
    return f"\\boxed{{{answer}}}" if answer else DONE


def _spoken(calls: Sequence[Call], last: str) -> Transcript:
    """A message for each call, and the last one."""
    return (
        *(
            Message(
                "assistant", "", (ToolCall(f"call_{i}", c.name, json.dumps(dict(c.arguments))),)
            )
            for i, c in enumerate(calls)
        ),
        Message("assistant", last),
    )


def _grade_state(world: World, task: Task, said: str) -> Verdict:
    differs = difference(world, task.payload["goal"])
    asked = task.payload["asked"]
    wrong = asked and _answer(said) != asked.lower()
    parts = {"state": float(not differs)} | ({"answer": float(not wrong)} if asked else {})
    if differs:
        return failed(f"{differs[:1].upper()}{differs[1:]}.", **parts)
    if wrong:
        return failed(f"The answer is {_answer(said)[:40]!r}, expected {asked!r}.", **parts)
    return Verdict(1.0, True, "Everything is as it should be.", parts)


def _answer(said: str) -> str:
    """What stands in the last box, or else the last word."""
    inside = boxed(said)
    words = said.split()
    last = inside if inside is not None else words[-1] if words else ""
    return last.strip(" \t\n.,;:!?*\"'()").lower()
