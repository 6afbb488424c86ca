"""A person as the agent: typed lines become messages with tool calls."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agents.stage import usage
from agents.types import Trajectory
from envs.base import ToolEnv, Transcript
from envs.tools import WORLD_ERRORS
from envs.types import Message, StopReason, Task, ToolCall

VERSION = "human"
LEFT = "the player left before the final answer"
FENCE = "```"
HELP = """\
A line is a message; one without a tool call is your final answer, and ends the episode.
  /NAME key=value ...   call a tool (or /NAME {json}; /NAME text where it has one argument)
  /call NAME {json}     the same, for any name, and with any text as its arguments
  ending in a \\         the turn goes on in the next line: more text, or another call
  ```                   opens a block that ends with the next line of ```
  //...                 a message that begins with a /
  /tools  /help  /quit"""

Show = Callable[[str], None]


class BadLine(ValueError):  # noqa: N818 - a person's slip, who is told
    """A line that is no message; the text says what would be."""


class Typist:
    """Reads messages from lines; what is no message is told and costs no turn."""

    def __init__(self, read: Callable[[], str | None], show: Show) -> None:
        """`read` gives the next line, None after the last one."""
        self._read, self._show = read, show

    def message(self, schemas: Sequence[Mapping[str, Any]]) -> Message | None:
        """The next message; None where the person leaves."""
        texts: list[str] = []
        calls: list[tuple[str, str]] = []
        while True:
            line = self._line()
            if line is None:
                return _message(texts, calls) if texts or calls else None
            goes_on = line.endswith("\\")
            line = line.removesuffix("\\").rstrip() if goes_on else line
            command = line.split(maxsplit=1)[0] if line.startswith("/") else ""
            if command == "/quit":
                return None
            if command in ("/help", "/tools"):
                self._show(HELP if command == "/help" else tools_text(schemas))
                continue
            try:
                if command and not command.startswith("//"):
                    calls.append(read_call(line, schemas))
                elif line.strip():
                    texts.append(line.removeprefix("/") if command else line)
            except BadLine as error:
                self._show(str(error))
                continue
            if not goes_on and (texts or calls):
                return _message(texts, calls)

    def _line(self) -> str | None:
        """One line, or all lines up to the end of the block that it opens."""
        line = self._read()
        if line is None or line.count(FENCE) % 2 == 0:
            return line
        lines = [line]
        while (more := self._read()) is not None:
            lines.append(more)
            if FENCE in more:
                break
        return "\n".join(lines)


def read_call(line: str, schemas: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Name and arguments (JSON text) of a line that begins with `/`.

    Raises:
        BadLine: no such tool, or arguments that cannot be told apart.
    """
    name, _, rest = line[1:].partition(" ")
    if name == "call":
        name, _, rest = rest.strip().partition(" ")
        if not name:
            raise BadLine("expected /call NAME {json}")
        return name, rest.strip() or "{}"
    functions = {schema["function"]["name"]: schema for schema in schemas}
    if name not in functions:
        near = difflib.get_close_matches(name, [*functions, "call", "tools", "help", "quit"], n=1)
        cure = f"did you mean /{near[0]}?" if near else "/tools lists them"
        raise BadLine(
            f"there is no tool or command {name!r}; {cure} (// begins a message with a slash)"
        )
    parameters = functions[name]["function"].get("parameters", {})
    rest = rest.strip()
    if rest.startswith("{"):
        return name, rest
    arguments = _arguments(rest, parameters)
    if arguments is None:
        raise BadLine(f"the arguments could not be told apart; write {usage(functions[name])}")
    return name, json.dumps(arguments, ensure_ascii=False)


def tools_text(schemas: Sequence[Mapping[str, Any]]) -> str:
    """The tools and how to call them."""
    lines = [f"  {usage(schema)}" for schema in schemas]
    return "\n".join(["tools:", *lines]) if lines else "there are no tools: answer in a message"


def play(
    env: ToolEnv,
    task: Task,
    say: Callable[[], Message | None],
    start: Callable[[Transcript], None],
    see: Callable[[Transcript], None],
) -> Trajectory:
    """One episode by hand. Nobody sampled anything, so the trajectory has no tokens.

    `start` is given the first messages, `see` what follows each message of `say`. Leaving, or a
    world that fails, ends the episode with `StopReason.ERROR`, without a verdict: nothing can be
    learnt from it.
    """
    transcript: list[Message] = []
    error = ""
    try:
        observation, _ = env.reset(seed=task.seed, options={"task": task})
        transcript += observation
        start(observation)
        while env.stop_reason is None and not error:
            message = say()
            if message is None:
                error = LEFT
            else:
                transcript.append(message)
                observation = env.step(message)[0]
                transcript += observation
                see(observation)
    except KeyboardInterrupt:
        error = LEFT
    except WORLD_ERRORS as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Trajectory(
        task=task,
        index=0,
        token_ids=(),
        sampled_mask=(),
        logprobs=(),
        messages=tuple(transcript),
        verdict=None if error else env.verdict,
        stop_reason=StopReason.ERROR if error or env.stop_reason is None else env.stop_reason,
        adapter_version=VERSION,
        error=error,
    )


def _message(texts: Sequence[str], calls: Sequence[tuple[str, str]]) -> Message:
    made = (ToolCall(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls))
    return Message("assistant", "\n".join(texts), tuple(made))


def _arguments(text: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `key=value ...` or the text of the one argument says; None where it is neither."""
    fields = parameters.get("properties", {})
    if not text:
        return {}
    required = parameters.get("required", ())
    pairs = _pairs(text, fields)
    if pairs is not None:
        return {key: _value(value, fields.get(key, {})) for key, value in pairs}
    only = next(iter(fields)) if len(fields) == 1 else None
    only = required[0] if len(required) == 1 else only
    return None if only is None else {only: _value(text, fields[only])}


def _pairs(text: str, fields: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """The pairs, where the text begins with the name of an argument."""
    names = "|".join(map(re.escape, fields))
    quoted = r'"(?:[^"\\]|\\.)*"' + r"|'[^']*'"
    pair = re.compile(rf"({names})=({quoted}|.*?)(?=\s+(?:{names})=|\s*\Z)\s*", re.DOTALL)
    found, place = [], 0
    while place < len(text):
        match = pair.match(text, place) if fields else None
        if match is None:
            return None
        found.append((match.group(1), match.group(2)))
        place = match.end()
    return found


def _value(text: str, field: Mapping[str, Any]) -> Any:
    """A value as JSON or, where it is none or a text is wanted, as it stands."""
    text = text.strip()
    if text.startswith(FENCE) and text.endswith(FENCE) and "\n" in text:
        return text.partition("\n")[2].removesuffix(FENCE).rstrip("\n")
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    wants_text = field.get("type") == "string"
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str) or not wants_text else text
