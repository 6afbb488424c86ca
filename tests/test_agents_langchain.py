"""A chat model of LangChain plays: through its own tool calls, without tokens."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

import envs
from agents.base import EngineError
from agents.by_message import play_episode, play_episodes
from agents.langchain_agent import LangChainAgent, from_langchain, load_chat_model, to_langchain
from envs.evaluate import main as evaluate
from envs.play import main as play
from envs.run import main as run
from envs.types import Message, StopReason, ToolCall


class Solver(BaseChatModel):
    """Calls `calculate` with the problem's two numbers, then answers with what it says."""

    tools: tuple[str, ...] = ()
    fails: bool = False

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> "Solver":
        return Solver(tools=tuple(tool["function"]["name"] for tool in tools), fails=self.fails)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **more: Any
    ) -> ChatResult:
        if self.fails:
            raise ConnectionError("the provider is down")
        last = messages[-1]
        if isinstance(last, ToolMessage):
            said = AIMessage(f"\\boxed{{{last.text}}}")
        else:
            assert self.tools == ("calculate",)
            assert isinstance(messages[0], SystemMessage)
            first, second = re.findall(r"\d+", last.text)[:2]
            sign = "*" if "grow" in last.text else "/" if "splits" in last.text else "+"
            arguments = {"expression": f"{first} {sign} {second}"}
            call = {"name": "calculate", "args": arguments, "id": "one"}
            said = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=said)])

    @property
    def _llm_type(self) -> str:
        return "solver"


def solver() -> Solver:
    return Solver()


NAME = f"langchain:{__name__}:solver"
EASY = ["--env", "calculator", "--set", "env.level=1", "--model", NAME]


def test_it_evaluates_with_the_environments_own_verdicts(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert evaluate([*EASY, "--tasks", "12", "--samples", "2", "--json", str(report)]) == 0
    numbers = json.loads(report.read_text())
    assert numbers["mean_at_k"]["mean"] > 0
    assert numbers["rollouts"] == 24
    lines = report.with_suffix(".rollouts.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    assert [m["role"] for m in record["messages"]][2:] == ["assistant", "tool", "assistant"]
    assert (record["token_ids"], record["adapter_version"]) == ([], NAME)


def test_it_plays(capsys: pytest.CaptureFixture[str]) -> None:
    assert play([*EASY, "--no-pause"]) == 0
    out = capsys.readouterr().out
    assert "calculate" in out
    assert "\\boxed{" in out


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        (run, NAME, f"model.name={NAME}: a chat model of LangChain shows no tokens, which"),
        (evaluate, "langchain:nothing", "--model langchain:nothing: expected langchain:package"),
        (evaluate, "langchain:no.such:x", "--model langchain:no.such:x: No module named 'no'"),
        (evaluate, "langchain:json:x", "--model langchain:json:x: module 'json' has no attribute"),
        (play, "langchain:math:pi", "--model langchain:math:pi: it is a float; expected a chat mo"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    command: Any, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--env", "calculator", "--model", name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {message}")


def test_a_provider_that_fails_ends_one_episode_without_a_verdict() -> None:
    env = envs.make("calculator", level=1)
    agent = LangChainAgent(Solver(fails=True), version="test")
    trajectory = play_episode(agent, env, env.task(0))
    assert (trajectory.stop_reason, trajectory.verdict) == (StopReason.ERROR, None)
    assert trajectory.error == "EngineError: test: ConnectionError: the provider is down"
    env.close()


def test_episodes_run_beside_each_other_and_come_back_in_order() -> None:
    source = envs.make("calculator", level=1)
    places = [(source.task(seed), index, 0) for seed in range(3) for index in range(2)]
    played = play_episodes(
        LangChainAgent(Solver(), version="test"),
        lambda: envs.make("calculator", level=1),
        places,
        at_once=4,
    )
    assert [(t.task, t.index) for t in played] == [(task, index) for task, index, _ in places]
    assert all(t.verdict is not None and t.verdict.success for t in played)


@pytest.mark.parametrize(
    "message",
    [
        Message("system", "Be brief."),
        Message("user", "What?"),
        Message("tool", "42", tool_call_id="a"),
        Message("assistant", "Well.", (ToolCall("a", "f", '{"x": 1}'),)),
        Message("assistant", "Yes."),
    ],
)
def test_messages_keep_all_that_they_say(message: Message) -> None:
    there = to_langchain(message)
    assert there.text == message.content
    if isinstance(there, AIMessage):
        assert from_langchain(there) == message


def test_a_call_that_nobody_could_read_stays_one() -> None:
    broken = Message("assistant", "", (ToolCall("a", "f", "{not json"),))
    there = to_langchain(broken)
    assert isinstance(there, AIMessage)
    assert not there.tool_calls
    assert from_langchain(there) == broken


def test_calls_that_a_provider_leaves_in_the_text_are_read() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    (call,) = from_langchain(AIMessage(text)).tool_calls
    assert (call.name, json.loads(call.arguments)) == ("f", {"x": 1})


def test_an_object_or_a_function_that_makes_one() -> None:
    assert isinstance(load_chat_model(NAME), Solver)
    with pytest.raises(EngineError, match="the provider is down"):
        LangChainAgent(Solver(fails=True), version="v").reply([Message("user", "?")], [], 0)
