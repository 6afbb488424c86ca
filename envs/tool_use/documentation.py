"""ToolAlpaca's API documentation, read into real tools that check their arguments."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool, ToolException

from envs.grading.calls import Call

_API = re.compile(
    r"^(?P<name>[^\s:]+): (?P<summary>[^\n]*)\nParameters: (?P<parameters>.*?)\nOutput: ",
    re.MULTILINE | re.DOTALL,
)
_SCALAR = re.compile(r"(string|integer|number|boolean)\b\.?\s*")
_ARRAY = re.compile(r"Array\[(string|integer|number|boolean)?")
_CHOICES = re.compile(r"One of: \[([^\]]*)\]")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, slots=True)
class Api:
    """One documented API; `parameters` is the JSON schema of its arguments."""

    name: str
    summary: str
    parameters: Mapping[str, Any]


def parse(documentation: str) -> tuple[Api, ...]:
    """The APIs of a documentation.

    Raises:
        ValueError: it is not of the published form, or names an API twice.
    """
    apis = [
        Api(found["name"], found["summary"].strip(), _parameters(found["name"], found[3]))
        for found in _API.finditer(documentation)
    ]
    listed = len(re.findall(r"^Parameters: ", documentation, re.MULTILINE))
    if not apis or len(apis) != listed:
        raise ValueError(
            f"the documentation has {listed} lists of parameters, of which {len(apis)} could be "
            "read; expected 'name: summary', 'Parameters: {...}' and 'Output: ...' for each API"
        )
    names = [api.name for api in apis]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the documentation has the API {twice[0]!r} twice; expected it once")
    return tuple(apis)


def problem(call: Call, apis: Sequence[Api]) -> str:
    """Why the documentation does not allow a call; empty where it does."""
    for api in apis:
        if api.name == call.name:
            return _unfit(api, call.arguments)
    return f"the documentation has no API {call.name[:80]!r}"


def tools(apis: Sequence[Api], record: Callable[[Call], None]) -> tuple[BaseTool, ...]:
    """A tool for each API: good calls go to `record`, others are refused with the reason."""
    return tuple(
        _ApiTool(
            name=api.name,
            description=api.summary or api.name,
            args_schema=dict(api.parameters),
            api=api,
            record=record,
        )
        for api in apis
    )


class _ApiTool(BaseTool):
    """A documented API whose backend only acknowledges."""

    api: Api
    record: Callable[[Call], None]

    # Positional: an API may have a parameter that is called self.
    def _run(self, /, **arguments: Any) -> str:
        if reason := _unfit(self.api, arguments):
            raise ToolException(f"{reason}. Expected {self.name}({_signature(self.api)}).")
        self.record(Call(self.name, arguments))
        return json.dumps({"status": "success", "api": self.name})


def _parameters(name: str, text: str) -> dict[str, Any]:
    try:
        listed = json.loads(text, strict=False)  # descriptions may hold line breaks
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the parameters of {name} are no JSON: {str(error)[:120]}") from error
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise ValueError(f"the parameters of {name} are no JSON object of descriptions")
    return {
        "type": "object",
        "properties": {key: _schema(text) for key, text in listed.items()},
        "required": [key for key, text in listed.items() if text.startswith("Required.")],
    }


def _schema(described: str) -> dict[str, Any]:
    """`Required. string. One of: [a, b]. What it is.` as a JSON schema."""
    text = described.removeprefix("Required.").strip()
    if scalar := _SCALAR.match(text):
        schema: dict[str, Any] = {"type": scalar[1]}
        if choices := _CHOICES.search(text):
            schema["enum"] = [_choice(c.strip(), scalar[1]) for c in choices[1].split(",")]
        text = text[scalar.end() :]
    elif array := _ARRAY.match(text):
        schema = {"type": "array", "items": {"type": array[1]} if array[1] else {}}
    else:
        schema = {"type": "object"} if text.startswith("Object") else {}
    return schema | ({"description": text} if text else {})


def _choice(written: str, kind: str) -> Any:
    if kind == "string":
        return written
    try:
        return json.loads(written.lower())
    except ValueError:
        return written


def _unfit(api: Api, arguments: Mapping[str, Any]) -> str:
    properties, required = api.parameters["properties"], api.parameters["required"]
    for key in arguments:
        if key not in properties:
            return f"{api.name} has no argument {key[:80]!r}"
    for key in required:
        if key not in arguments:
            return f"{api.name} needs the argument {key!r}"
    for key, value in arguments.items():
        schema = properties[key]
        if value == "" and key not in required:
            continue  # how the published answers leave an argument out
        if not _fits(value, schema):
            got = str(value)[:40] if isinstance(value, (str, int, float)) else type(value).__name__
            wanted = schema.get("enum") or schema["type"]
            return f"the argument {key!r} of {api.name} is {got!r}; expected {wanted}"
    return ""


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if kind is None:
        return True
    if isinstance(value, bool) != (kind == "boolean") or not isinstance(value, _TYPES[kind]):
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    if kind == "array" and isinstance(value, list):
        return all(_fits(item, schema["items"]) for item in value)
    return "enum" not in schema or value in schema["enum"]


def _signature(api: Api) -> str:
    required = api.parameters["required"]
    return ", ".join(
        f"{key}: {schema.get('type', 'any')}{'' if key in required else ', optional'}"
        for key, schema in api.parameters["properties"].items()
    )
