"""Tools of MCP servers in an environment, through langchain-mcp-adapters (the extra `mcp`)."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, ToolException

from envs.any_tool import wait_for
from envs.tools import WorldError

if TYPE_CHECKING:
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest

START_S = 30.0


class McpServers:
    """Servers that run as long as this is open, with one session each.

    An environment opens them in its `__init__`, gives `tools` out of `make_tools` and closes them
    in `close`. Sessions may keep state: give each environment servers of its own.

    Args:
        connections: by name, as `langchain_mcp_adapters.client.MultiServerMCPClient` takes them:
            `{"files": {"transport": "stdio", "command": "python", "args": ["server.py"]}}`.
        timeout_s: for starting them, and for each call.

    Raises:
        WorldError: a server does not start; a tool raises it where its server fails.
    """

    def __init__(self, connections: Mapping[str, Any], *, timeout_s: float = START_S) -> None:
        if find_spec("langchain_mcp_adapters") is None:
            raise ModuleNotFoundError("MCP tools need the extra mcp: pip install 'mopd[mcp]'")
        self.tools: tuple[BaseTool, ...] = ()
        self._connections = dict(connections)
        self._timeout_s = timeout_s
        self._stop = asyncio.Event()
        wait_for(self._open())

    def close(self) -> None:
        """End the sessions and the servers that were started; closing twice is allowed."""
        wait_for(self._close())

    def __enter__(self) -> "McpServers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _open(self) -> None:
        """Start the task that holds the sessions; they have to be left where they were entered."""
        ready: asyncio.Future[tuple[BaseTool, ...]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready))
        try:
            self.tools = await asyncio.wait_for(ready, self._timeout_s)
        except Exception as error:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise WorldError(
                f"MCP servers {', '.join(self._connections)}: {_said(error)}"
            ) from error

    async def _hold(self, ready: "asyncio.Future[tuple[BaseTool, ...]]") -> None:
        try:
            from langchain_mcp_adapters.client import MultiServerMCPClient
            from langchain_mcp_adapters.tools import load_mcp_tools

            client = MultiServerMCPClient(self._connections)
            async with AsyncExitStack() as stack:
                tools: list[BaseTool] = []
                for name in self._connections:
                    session = await stack.enter_async_context(client.session(name))
                    tools += await load_mcp_tools(
                        session, tool_interceptors=[self._call], server_name=name
                    )
                ready.set_result(tuple(tools))
                await self._stop.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _call(self, request: "MCPToolCallRequest", handler: Any) -> Any:
        """Tell a call that the server refuses from a server that is out of order."""
        from mcp.shared.exceptions import McpError
        from mcp.types import INVALID_PARAMS

        try:
            return await asyncio.wait_for(handler(request), self._timeout_s)
        except McpError as error:
            if error.error.code == INVALID_PARAMS:
                raise ToolException(error.error.message) from error
            raise WorldError(f"MCP tool {request.name}: {_said(error)}") from error
        except Exception as error:
            raise WorldError(f"MCP tool {request.name}: {_said(error)}") from error

    async def _close(self) -> None:
        self._stop.set()
        await asyncio.gather(self._task, return_exceptions=True)


def _said(error: BaseException) -> str:
    """The cause inside of the groups that asynchronous libraries raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
