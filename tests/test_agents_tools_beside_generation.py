"""Tools run beside generation: slow, exclusive, failing and hanging ones."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from langchain_core.tools import tool
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import pocket
from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.rollout import RolloutStats, rollout_groups
from agents.scripted import ScriptedAgent
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory, Turn
from envs.base import EnvLimits
from envs.calculator import CalculatorEnv
from envs.exclusive import alone
from envs.tools import WorldError
from envs.types import StopReason, Task

CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "17 + 4"}}\n</tool_call>'
ANSWER = "The answer is \\boxed{21}."


def tasks(count: int) -> list[Task]:
    return [Task(str(i), "What is 17 + 4?", "21") for i in range(count)]


class Calculator(CalculatorEnv):
    """Calls `before(task id)` ahead of each calculation; tells which environments are open."""

    before: Callable[[str], None] = staticmethod(lambda _: None)
    exclusive: bool | str = False
    open = 0
    most_open = 0

    def reset(self, **options: Any) -> Any:
        type(self).open += 1
        type(self).most_open = max(self.most_open, self.open)
        return super().reset(**options)

    def close(self) -> None:
        type(self).open -= 1
        super().close()

    def make_tools(self) -> Sequence[Any]:
        (inner,) = super().make_tools()

        @tool
        def calculate(expression: str) -> str:
            """Calculate."""
            assert self.current_task is not None
            self.before(self.current_task.id)
            return str(inner.invoke({"expression": expression}))

        calculate.metadata = {"exclusive": self.exclusive}
        return (calculate,)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), CalculatorEnv().schemas())


def play(agent: Any, count: int, kind: type[Calculator], **options: Any) -> list[Trajectory]:
    limits = options.pop("limits", EnvLimits())
    options = {"seed": 0, "max_new_tokens": 200, "max_context": 600, **options}
    groups = rollout_groups(agent, lambda: kind(limits=limits), tasks(count), 1, **options)
    return [group.trajectories[0] for group in groups]


@contextmanager
def left_hanging() -> Iterator[threading.Event]:
    """What a hanging tool waits for; it comes at the end, so that no thread outlives the test."""
    released = threading.Event()
    try:
        yield released
    finally:
        released.set()


def test_a_tool_that_hangs_ends_its_episode_and_holds_nobody_up(
    chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    with left_hanging() as released:

        class Hangs(Calculator):
            @staticmethod
            def before(task: str) -> None:
                if task in "01":
                    released.wait()

        stats = RolloutStats()
        # Both threads hang; others take their places.
        played = play(
            ScriptedAgent(chat, [CALL, ANSWER]), 6, Hangs, tool_workers=2, stats=stats,
            limits=EnvLimits(max_episode_s=0.3),
        )  # fmt: skip
        reasons = [trajectory.stop_reason for trajectory in played]
        assert reasons == [StopReason.TIMEOUT] * 2 + [StopReason.ANSWERED] * 4
        assert played[0].verdict is not None
        assert not played[0].verdict.success
        assert "task 0#0: a tool runs longer than max_episode_s=0.3" in caplog.text
        assert Hangs.open == 2
        assert stats.tool_wait_s < 5
    for _ in range(100):  # their environments are closed once the tools return
        if Hangs.open == 0:
            break
        time.sleep(0.02)
    assert Hangs.open == 0


@pytest.mark.parametrize("pause_steps", [0, 3])
def test_a_start_that_hangs_ends_its_episode(chat: Chat, pause_steps: int) -> None:
    with left_hanging() as released:

        class Hangs(Calculator):
            def start_episode(self, task: Task) -> None:
                if task.id == "1":
                    released.wait()

        class Paced(ScriptedAgent):
            max_episodes = 2

        Paced.pause_steps = pause_steps
        played = play(Paced(chat, [CALL, ANSWER]), 4, Hangs, limits=EnvLimits(max_episode_s=0.3))
        assert [t.stop_reason for t in played] == [
            StopReason.ANSWERED, StopReason.TIMEOUT, StopReason.ANSWERED, StopReason.ANSWERED
        ]  # fmt: skip


def test_an_exclusive_tool_runs_alone_and_waiting_for_it_costs_no_time_of_the_episode(
    chat: Chat,
) -> None:
    running: list[str] = []
    most: list[int] = []

    class Alone(Calculator):
        exclusive = "the one licence"

        @staticmethod
        def before(task: str) -> None:
            running.append(task)
            most.append(len(running))
            time.sleep(0.08)
            running.remove(task)

    played = play(
        ScriptedAgent(chat, [CALL, ANSWER]), 6, Alone, tool_workers=6,
        limits=EnvLimits(max_episode_s=0.4),
    )  # fmt: skip
    assert [t.stop_reason for t in played] == [StopReason.ANSWERED] * 6
    assert max(most) == 1
    assert len(most) == 6


def test_other_tools_run_beside_each_other(chat: Chat) -> None:
    together = threading.Barrier(3)

    class Beside(Calculator):
        @staticmethod
        def before(_: str) -> None:
            together.wait(10)  # breaks, and the tool reports it, unless three are here

    played = play(ScriptedAgent(chat, [CALL, ANSWER]), 3, Beside, tool_workers=3)
    assert all(trajectory.messages[3].content == "21" for trajectory in played)


def test_a_hanging_exclusive_tool_is_the_worlds_failure_for_those_who_wait() -> None:
    @tool
    def licensed() -> None:
        """One at a time."""

    licensed.metadata = {"exclusive": True}
    with left_hanging() as released:
        inside = threading.Event()

        def hang() -> None:
            with alone(licensed, 0.1):
                inside.set()
                released.wait()

        threading.Thread(target=hang, daemon=True).start()
        inside.wait()
        turn = alone(licensed, 0.1)
        with pytest.raises(WorldError, match="licensed may not run beside others"), turn:
            pass


@pytest.mark.parametrize("pause_steps", [0, 3])
def test_the_number_of_episodes_in_flight_is_bounded_and_none_waits_for_a_wave(
    chat: Chat, pause_steps: int
) -> None:
    class Counted(Calculator):
        pass

    class Bounded(ScriptedAgent):
        max_episodes = 3
        known: set[int] = set()  # noqa: RUF012 - of one test
        most = 0
        together: list[frozenset[int]] = []  # noqa: RUF012 - of one test

        def submit(self, requests: Sequence[TurnRequest]) -> None:
            self.known |= {request.episode for request in requests}
            Bounded.most = max(self.most, len(self.known))
            self.together.append(frozenset(self.known))
            super().submit(requests)

        def release(self, episode: int) -> None:
            self.known.discard(episode)
            super().release(episode)

    def script(episode: int, turn: int) -> str:
        return CALL if turn < 4 * (episode == 0) else ANSWER

    Bounded.pause_steps = pause_steps
    played = play(Bounded(chat, script), 8, Counted, tool_workers=2)
    assert len(played) == 8
    assert Bounded.most == 3
    assert any({0, 5} <= known for known in Bounded.together)  # 0 is long, and 5 did not wait
    assert Counted.most_open <= 3 + 2 + 2  # playing, started ahead, being closed
    assert Counted.open == 0


def test_an_engine_that_comes_back_plays_those_that_it_had_not_begun(chat: Chat) -> None:
    class Dies(ScriptedAgent):
        max_episodes = 2
        pause_steps = 3
        dead = True

        def advance(self, until: int | None = None) -> list[Turn]:
            if self.dead:
                self._queue, self.dead = [], False
                raise EngineError("killed")
            return super().advance(until)

    played = play(Dies(chat, [ANSWER]), 4, Calculator)
    assert [t.stop_reason for t in played] == [StopReason.ERROR] * 2 + [StopReason.ANSWERED] * 2


def test_without_the_fixed_pause_a_slow_tool_holds_nobody_up(chat: Chat) -> None:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(pocket.PATH, dtype=torch.float32)
    with left_hanging() as released:
        slow: list[int] = []

        class Slow(Calculator):
            @staticmethod
            def before(task: str) -> None:
                if not slow:
                    slow.append(int(task))
                    released.wait(60)

        over: list[int] = []

        class Watched(TransformersAgent):
            def release(self, episode: int) -> None:
                over.append(episode)
                if len(over) == 11:  # all others
                    released.set()
                super().release(episode)

        agent = Watched(model, chat, max_context=600, max_episodes=4, reproducible=False)
        held_up = play(agent, 12, Slow)
    assert over[11:] == slow
    quick = play(TransformersAgent(model, chat, max_context=600, max_episodes=4), 12, Calculator)
    assert [t.token_ids for t in held_up] == [t.token_ids for t in quick]
