"""LangChain tools from a toolbox: they check the types of arguments, then act on the world."""

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from pydantic_core import SchemaValidator, core_schema

from envs.tool_use.acting import Store, type_of
from envs.tool_use.declaration import Choice
from envs.tool_use.toolbox import Argument, Tool, Toolbox

_NAMES = {str: "string", bool: "boolean", int: "integer"}


def make_tools(toolbox: Toolbox, store: Callable[[], Store]) -> tuple[BaseTool, ...]:
    """The tools on the world that is the current one whenever a tool is called."""
    return tuple(
        _WorldTool(
            name=tool.name,
            description=tool.description,
            args_schema=_schema(tool),
            tool=tool,
            store=store,
        )
        for tool in toolbox.tools
    )


def call(store: Store, tool: Tool, arguments: Mapping[str, Any]) -> str:
    """What a tool answers.

    Raises:
        pydantic.ValidationError: an argument is missing or of another type.
        ToolException: it cannot be done; the text says why.
    """
    valid: dict[str, Any] = _validator(tool).validate_python(dict(arguments))
    roles = {argument.role: valid[argument.name] for argument in tool.arguments}
    return store.act(tool.does, tool.form, roles)


class _WorldTool(BaseTool):
    """A tool of a generated world."""

    tool: Tool
    store: Callable[[], Store]

    def _run(self, /, **arguments: Any) -> str:
        return call(self.store(), self.tool, arguments)


def _schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {each.name: _property(tool, each) for each in tool.arguments},
        "required": [each.name for each in tool.arguments],
    }


def _property(tool: Tool, argument: Argument) -> dict[str, Any]:
    described = {"description": argument.description} if argument.description else {}
    if argument.role == "ids":
        return {"type": "array", "items": {"type": "string"}} | described
    kind = type_of(tool.action) if argument.role == "value" else str
    if isinstance(kind, Choice):
        return {"type": "string", "enum": list(kind.values)} | described
    return {"type": _NAMES[kind]} | described


def _validator(tool: Tool) -> SchemaValidator:
    """Pydantic's check of the arguments; a model class takes twenty times as long to make."""
    fields = {each.name: core_schema.typed_dict_field(_core(tool, each)) for each in tool.arguments}
    return SchemaValidator(core_schema.typed_dict_schema(fields, extra_behavior="forbid"))


def _core(tool: Tool, argument: Argument) -> core_schema.CoreSchema:
    text = core_schema.str_schema(strict=True)
    if argument.role == "ids":
        return core_schema.list_schema(text, strict=True)
    kind = type_of(tool.action) if argument.role == "value" else str
    if isinstance(kind, Choice):
        return core_schema.literal_schema(list(kind.values))
    checks: dict[type, core_schema.CoreSchema] = {
        bool: core_schema.bool_schema(strict=True),
        int: core_schema.int_schema(strict=True),
    }
    return checks.get(kind, text)
