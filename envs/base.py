"""`ToolEnv`, the one multi-turn environment: a subclass gives tasks, tools and a grade."""

import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium
from langchain_core.tools import BaseTool

from envs.data import NoTasks, Rejected, read_tasks
from envs.exclusive import alone
from envs.spaces import MessageSpace, TranscriptSpace
from envs.tasks import stable_seed
from envs.tools import MalformedCall, call_tool, tool_message, tool_schemas
from envs.types import Message, StopReason, Task, Verdict
from sandboxes.base import Limits, Sandbox
from sandboxes.open import open_sandbox

log = logging.getLogger(__name__)

Split = Literal["train", "held_out"]
Transcript = tuple[Message, ...]


class NoSolution(LookupError):  # noqa: N818 - a gap in the data, not an error here
    """A task comes without a reference solution, as in benchmarks that publish only tests."""


@dataclass(frozen=True, slots=True)
class EnvLimits:
    """Bounds of one episode; reaching one ends it with its own `StopReason`."""

    max_turns: int = 8
    max_tool_calls: int = 16
    max_observation_chars: int = 2000
    max_episode_s: float = 120.0  # in tools: an agent that shares its batch cannot hurry
    max_malformed_turns: int = 3  # in a row


class ToolEnv(gymnasium.Env[Transcript, Message], ABC):
    """An episode is one task: the agent speaks in messages, the environment answers calls.

    An observation is the tuple of messages that are new to the agent: system and user after
    `reset`, one tool message for each call after `step`. A message without a call is the final
    answer: it is graded, and the episode ends. Reward is 0 before the end.

    A subclass sets `system_prompt`, `levels` and `default_level` and writes `make_tools`,
    `grade`, `generate_task` and `read_row`; `solution` and `corrupted` where a task's `answer` is
    no final message. Equal (seed, task) gives equal episodes.

    Tools of several episodes run beside each other, in threads. One that cannot says so with
    `metadata={"exclusive": True}`, or with a name that it shares with others; see `envs.exclusive`.
    """

    # Gymnasium's own name; its check_env asks for the frames per second of text, too.
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012
    system_prompt: ClassVar[str]
    levels: ClassVar[range]
    default_level: ClassVar[int]
    needs_sandbox: ClassVar[bool] = False  # whether tools or verifiers run code of the agent
    needs_data: ClassVar[bool] = False  # whether tools need what the tasks' file holds beside them
    formats: ClassVar[tuple[str, ...]] = ()  # names of the data formats that `read_row` knows

    def __init__(
        self,
        *,
        split: Split = "train",
        level: int | None = None,
        data: str | Path | None = None,
        strict: bool = False,
        limits: EnvLimits | None = None,
        sandbox: Callable[[], Sandbox] | None = None,
        render_mode: str | None = None,
    ) -> None:
        level = self.default_level if level is None else level
        if level not in self.levels:
            raise ValueError(
                f"env.level={level}: {type(self).__name__} has levels {self.levels.start} to "
                f"{self.levels.stop - 1}"
            )
        self.split: Split = split
        self.level = level
        self.limits = limits or EnvLimits()
        self.render_mode = render_mode
        self._open_sandbox = sandbox or (lambda: open_sandbox("auto", Limits()))
        self._sandbox: Sandbox | None = None
        self.rows: tuple[Task, ...] | None = None
        self.rejected: tuple[Rejected, ...] = ()
        if data is not None:
            self._read(data, strict)
        self.tools: Mapping[str, BaseTool] = {tool.name: tool for tool in self.make_tools()}
        self.action_space = MessageSpace(tuple(self.tools))
        self.observation_space = TranscriptSpace()
        self.current_task: Task | None = None
        self.verdict: Verdict | None = None
        self.stop_reason: StopReason | None = None
        self.transcript: list[Message] = []
        self._spent_s = 0.0
        self._due = math.inf  # when what runs now must be done

    # What a subclass writes.

    @abstractmethod
    def make_tools(self) -> Sequence[BaseTool]:
        """Tools of this instance; they may keep episode state on `self`."""

    @abstractmethod
    def grade(self, task: Task, answer: Message) -> Verdict:
        """Judge the final message."""

    @abstractmethod
    def generate_task(self, rng: random.Random) -> Task:
        """Draw a procedural task of `self.level`, from the families of `self.split`."""

    @abstractmethod
    def read_row(self, row: Mapping[str, Any]) -> Task:
        """Turn one row of a data file into a task; ValueError or KeyError says why not."""

    @classmethod
    def rows_of(cls, document: Any) -> Iterable[Any]:
        """The rows of a whole JSON document: a list's items, or the document itself."""
        return document if isinstance(document, list) else (document,)

    def solution(self, task: Task) -> Transcript:
        """What an agent says that solves the task: calls where they are needed, then the answer.

        Raises:
            NoSolution: the data gives none.
        """
        return (Message("assistant", task.answer),)

    def corrupted(self, task: Task, rng: random.Random) -> Transcript:
        """What looks like a solution and must fail: by default, the solution of another task."""
        for _ in range(100):
            other = self.task(rng.randrange(2**31))
            if other.answer != task.answer:
                return self.solution(other)
        return (Message("assistant", "I do not know."),)  # a file whose rows agree

    def start_episode(self, task: Task) -> None:
        """Set up what the tools of this episode need; called by `reset`."""

    @property
    def sandbox(self) -> Sandbox:
        """Where tools and verifiers run code; opened when it is first needed."""
        if self._sandbox is None:
            self._sandbox = self._open_sandbox()
        return self._sandbox

    # Tasks.

    def task(self, seed: int) -> Task:
        """The task of a seed: a row of the data file, or a generated instance."""
        if self.rows is not None:
            return self.rows[seed % len(self.rows)]
        return self.generate_task(random.Random(stable_seed(self.split, self.level, seed)))

    def schemas(self) -> tuple[dict[str, Any], ...]:
        """JSON schemas of the tools, for the chat template."""
        return tool_schemas(self.tools)

    def _read(self, data: str | Path, strict: bool) -> None:
        """Take the rows of `data`; unless `strict`, those that are no tasks cost one warning."""
        loaded = read_tasks(data, self, strict=strict)
        self.rows, self.rejected = loaded.tasks, loaded.rejected
        if not self.rows:
            raise NoTasks(self.rejected)
        if self.rejected:
            total = len(self.rows) + len(self.rejected)
            log.warning(
                f"{len(self.rejected)} of {total} rows left out, the first: {self.rejected[0]}"
            )

    # Gymnasium's contract.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Transcript, dict[str, Any]]:
        """Start the episode of `options["task"]`, or of the task that the seed draws."""
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            task = self.task(int(self.np_random.integers(2**31)))
        if not isinstance(task, Task):
            raise TypeError(f"options['task'] is {type(task).__name__}; expected envs.types.Task")
        self.current_task = task
        self.verdict = self.stop_reason = None
        self._turns = self._calls = self._malformed_turns = 0
        with self._within(self.limits.max_episode_s):
            self.start_episode(task)
        self._spent_s = 0.0
        self.transcript = [Message("system", self.system_prompt), Message("user", task.prompt)]
        return tuple(self.transcript), {"task": task.id}

    def step(self, action: Message) -> tuple[Transcript, float, bool, bool, dict[str, Any]]:
        """Take the agent's message; see the class for what comes back."""
        if self.current_task is None or self.stop_reason is not None:
            raise RuntimeError("step() outside an episode: call reset() first")
        self._turns += 1
        self.transcript.append(action)
        if not action.tool_calls:
            with self._within(self.limits.max_episode_s):
                self.verdict = self.grade(self.current_task, action)
            self.stop_reason = StopReason.ANSWERED
            return (), self.verdict.reward, True, False, self._info()
        self._calls += len(action.tool_calls)
        if self._calls > self.limits.max_tool_calls:
            self.stop(StopReason.MAX_TOOL_CALLS)
            return (), 0.0, False, True, self._info()
        observation = self._run_tools(action)
        self.transcript.extend(observation)
        if self._malformed_turns >= self.limits.max_malformed_turns:
            self.stop(StopReason.MALFORMED)
        elif self._turns >= self.limits.max_turns:
            self.stop(StopReason.MAX_TURNS)
        elif self._spent_s > self.limits.max_episode_s:
            self.stop(StopReason.TIMEOUT)
        return observation, 0.0, False, self.stop_reason is not None, self._info()

    def stop(self, reason: StopReason) -> None:
        """End the episode unanswered; what was cut off is a failure with its reason."""
        self.stop_reason = reason
        self.verdict = Verdict(0.0, False, f"The episode was stopped: {reason.value}.")

    @property
    def overdue(self) -> bool:
        """Whether a tool, the verifier or the start of the episode runs beyond `max_episode_s`.

        May be asked from another thread, which then gives the episode up: a thread that hangs
        cannot be ended from outside.
        """
        return time.monotonic() > self._due

    def close(self) -> None:
        """End everything that the episode started; closing twice is allowed."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def render(self) -> str | None:
        """The transcript so far as text, in the mode `ansi`."""
        if self.render_mode != "ansi":
            return None
        return "\n".join(f"{m.role}: {m.content}" for m in self.transcript)

    def _run_tools(self, action: Message) -> Transcript:
        observation, malformed = [], 0
        for call in action.tool_calls:
            limit_s = max(self.limits.max_episode_s - self._spent_s, 0.0)
            try:
                # Waiting for other episodes is no fault of this one.
                with alone(self.tools.get(call.name), limit_s), self._within(limit_s):
                    text = call_tool(self.tools, call, self.limits.max_observation_chars)
            except MalformedCall as error:
                text, malformed = str(error), malformed + 1
            observation.append(tool_message(call, text))
        self._malformed_turns = (
            self._malformed_turns + 1 if malformed == len(action.tool_calls) else 0
        )
        return tuple(observation)

    @contextmanager
    def _within(self, limit_s: float) -> Iterator[None]:
        """Count the time of what runs in here, and let `overdue` see when it is too much."""
        started = time.monotonic()
        self._due = started + limit_s
        try:
            yield
        finally:
            self._due = math.inf
            self._spent_s += time.monotonic() - started

    def _info(self) -> dict[str, Any]:
        return {
            "stop_reason": self.stop_reason.value if self.stop_reason else None,
            "success": self.verdict.success if self.verdict else None,
            "turns": self._turns,
            "tool_calls": self._calls,
        }
