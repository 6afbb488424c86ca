"""Tools of any origin in an environment: LangChain's kinds, and those of MCP servers."""

import asyncio
import json
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool

from envs.any_tool import invoke, text_of, wait_for
from envs.base import ToolEnv
from envs.tools import WorldError
from envs.types import Message, Task, ToolCall, Verdict

needs_mcp = pytest.mark.skipif(
    find_spec("langchain_mcp_adapters") is None, reason="needs the extra mcp"
)


class Workbench(ToolEnv):
    """An environment of whatever tools it is given."""

    system_prompt = "Use the tools."
    levels = range(1, 2)
    default_level = 1

    def __init__(self, bench: Sequence[BaseTool], **options: Any) -> None:
        self.bench = bench
        super().__init__(**options)

    def make_tools(self) -> Sequence[BaseTool]:
        return self.bench

    def generate_task(self, rng: random.Random) -> Task:
        return Task("workbench", "Go on.", "done")

    def grade(self, task: Task, answer: Message) -> Verdict:
        return Verdict(1.0, True)

    def read_row(self, row: Mapping[str, Any]) -> Task:
        raise ValueError("no data")


def observed(env: ToolEnv, name: str, **arguments: Any) -> str:
    """What the environment answers to one call."""
    (message,) = env.step(Message("assistant", "", (ToolCall("c", name, json.dumps(arguments)),)))[
        0
    ]
    return message.content


class Ruler(BaseTool):
    """A class, whose artifact is not for the model."""

    name: str = "measure"
    description: str = "Measure a text."
    response_format: Any = "content_and_artifact"

    def _run(self, text: str) -> tuple[str, dict[str, int]]:
        return f"{len(text)} characters", {"length": len(text)}


class Courier(BaseTool):
    """A class with only an asynchronous side."""

    name: str = "deliver"
    description: str = "Deliver a text."

    def _run(self, text: str) -> str:
        raise NotImplementedError("use _arun")

    async def _arun(self, text: str) -> str:
        await asyncio.sleep(0)
        return f"delivered {text}"


@tool
async def wait(turns: int) -> str:
    """Wait for some turns."""
    if turns > 3:
        raise ToolException("that is too long")
    for _ in range(turns):
        await asyncio.sleep(0)
    return f"waited {turns}"


@tool(response_format="content_and_artifact")
def draw(what: str) -> tuple[list[dict[str, str]], bytes]:
    """Draw something."""
    blocks = [
        {"type": "text", "text": f"A drawing of {what}.", "id": "lc_1"},
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
    ]
    return blocks, b"..."


def count(words: list[str]) -> dict[str, int]:
    """Count words."""
    return {word: words.count(word) for word in sorted(set(words))}


BENCH = (Ruler(), Courier(), wait, draw, StructuredTool.from_function(count))


def test_an_environment_takes_every_kind_of_langchain_tool() -> None:
    env = Workbench(BENCH)
    env.reset(seed=0)
    assert observed(env, "measure", text="four") == "4 characters"
    assert observed(env, "deliver", text="milk") == "delivered milk"
    assert observed(env, "wait", turns=2) == "waited 2"
    assert observed(env, "draw", what="a cat") == "A drawing of a cat.\n[image]"
    assert observed(env, "count", words=["a", "b", "a"]) == '{"a": 2, "b": 1}'
    assert [schema["function"]["name"] for schema in env.schemas()] == list(env.tools)


def test_an_asynchronous_tool_refuses_like_any_other() -> None:
    env = Workbench(BENCH)
    env.reset(seed=0)
    assert observed(env, "wait", turns=4) == "Error: that is too long"
    assert observed(env, "wait", turns="soon").startswith("Error: argument 'turns' of wait: Input")
    assert observed(env, "wait", turn=1).startswith("Error: wait has no argument 'turn'")


def test_asynchronous_tools_share_one_loop_and_wait_side_by_side() -> None:
    barrier = asyncio.Barrier(4)  # passes only if four calls wait at once, in one loop

    @tool
    async def meet() -> str:
        """Wait for three others."""
        await asyncio.wait_for(barrier.wait(), 10)
        return "met"

    met: list[str] = []
    threads = [threading.Thread(target=lambda: met.append(invoke(meet, {}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == ["met"] * 4


def test_a_tool_that_is_not_implemented_at_all_says_so() -> None:
    class Plan(BaseTool):
        name: str = "plan"
        description: str = "Nothing yet."

        def _run(self) -> str:
            raise NotImplementedError("next week")

    with pytest.raises(NotImplementedError, match="next week"):
        invoke(Plan(), {})


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ([], "[]"),
        (["a", "b"], '["a", "b"]'),
        ({"a": Path("b")}, '{"a": "b"}'),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        ([{"type": "file", "url": "x"}], "[file]"),
        ([{"type": "file", "size": 3}], '[{"type": "file", "size": 3}]'),  # a record, no block
        ([{"type": "text", "text": "one"}, 2], '[{"type": "text", "text": "one"}, 2]'),
        (ToolMessage("said", tool_call_id="1"), "said"),
    ],
)
def test_results_become_text(result: Any, text: str) -> None:
    assert text_of(result) == text


SERVER = '''
import os
from mcp.server.fastmcp import FastMCP

server = FastMCP("till", log_level="ERROR")
total = 0


@server.tool()
def add(amount: int) -> str:
    """Add to the sum."""
    global total
    total += amount
    return f"The sum is {total}."


@server.tool()
def refuse(reason: str) -> str:
    """Refuse."""
    raise ValueError(reason)


@server.tool()
def leave() -> str:
    """End the server."""
    os._exit(1)


server.run()
'''


@pytest.fixture
def connections(tmp_path: Path) -> dict[str, Any]:
    """A real server that talks over its standard streams."""
    file = tmp_path / "till.py"
    file.write_text(SERVER)
    return {"till": {"transport": "stdio", "command": sys.executable, "args": [str(file)]}}


class TillEnv(Workbench):
    """An environment with a server of its own."""

    def __init__(self, connections: Mapping[str, Any], **options: Any) -> None:
        from envs.mcp import McpServers

        self.servers = McpServers(connections)
        super().__init__(self.servers.tools, **options)

    def close(self) -> None:
        self.servers.close()
        super().close()


@pytest.fixture
def till(connections: dict[str, Any]) -> Iterator[TillEnv]:
    env = TillEnv(connections)
    env.reset(seed=0)
    yield env
    env.close()
    env.close()


@needs_mcp
def test_tools_of_an_mcp_server_keep_their_state_in_an_environment(till: TillEnv) -> None:
    assert sorted(till.tools) == ["add", "leave", "refuse"]
    assert till.schemas()[0]["function"]["parameters"]["required"] == ["amount"]
    assert observed(till, "add", amount=2) == "The sum is 2."
    assert observed(till, "add", amount=3) == "The sum is 5."
    assert "because" in observed(till, "refuse", reason="because")
    assert "should be a valid integer" in observed(till, "add", amount="much")
    assert observed(till, "add", total=1).startswith("Error: add has no argument 'total'")


@needs_mcp
def test_environments_have_servers_of_their_own(till: TillEnv, connections: Any) -> None:
    observed(till, "add", amount=2)
    other = TillEnv(connections)
    other.reset(seed=0)
    assert observed(other, "add", amount=5) == "The sum is 5."
    other.close()


@needs_mcp
def test_a_server_that_ends_is_a_failure_of_the_world(till: TillEnv) -> None:
    with pytest.raises(WorldError, match="MCP tool leave: McpError: Connection closed"):
        observed(till, "leave")
    with pytest.raises(WorldError, match="MCP tool add"):
        observed(till, "add", amount=1)


@needs_mcp
def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    from envs.mcp import McpServers

    missing = {"transport": "stdio", "command": str(tmp_path / "missing"), "args": []}
    with pytest.raises(WorldError, match=r"MCP servers ghost: .*No such file"):
        McpServers({"ghost": missing})


@needs_mcp
def test_closing_ends_the_server(connections: dict[str, Any], tmp_path: Path) -> None:
    from envs.mcp import McpServers

    with McpServers(connections) as servers:
        (add,) = (tool for tool in servers.tools if tool.name == "add")
        assert invoke(add, {"amount": 1}) == "The sum is 1."
    with pytest.raises(WorldError):
        invoke(add, {"amount": 1})


def test_a_coroutine_is_waited_for() -> None:
    async def answer() -> int:
        return 42

    assert wait_for(answer()) == 42
