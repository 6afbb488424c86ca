"""The chat format of a model, token by token: what is rendered once is never rendered again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from agents.parsing import parse_message
from envs.types import Message, ToolCall

_SENTINEL = "SENTINELTURN"
_VERBATIM = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


class ChatFormatError(ValueError):
    """A model's chat template cannot be used for multi-turn training; the text says why."""


class Chat:
    """A tokenizer with its chat template and the tools of one environment, or of its first message.

    A transcript grows as `prompt_ids(messages)`, the ids that the model sampled (its end-of-turn
    token included), `continuation_ids(tool_messages)`, sampled ids, and so on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.tools: list[Any] = [dict(tool) for tool in tools]
        eos = tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise ChatFormatError("the tokenizer has no end-of-turn (eos) token")
        self.eos_id = eos
        self.eos = str(tokenizer.eos_token)
        self._shells: dict[tuple[str | None, ...], list[list[int]]] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """Text of a conversation up to where the assistant starts to speak."""
        return self._apply(messages, generation=True)

    def encode(self, text: str) -> list[int]:
        """Ids of template text: control tokens are control tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text that nobody trusts: control tokens come out as ordinary characters."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the first prompt, ready for the assistant's first turn."""
        return self.encode(self.render(messages))

    def continuation_ids(self, observation: Sequence[Message]) -> list[int]:
        """Ids between the end-of-turn token that was sampled and the next assistant turn.

        Observations are data from outside: their control tokens come out as plain text.
        """
        key = tuple(m.tool_call_id for m in observation)
        if key not in self._shells:
            self._shells[key] = self._encoded_shell(observation)
        first, *others = self._shells[key]
        ids = list(first)
        for message, after in zip(observation, others, strict=True):
            ids += self.encode_plain(message.content) + after
        return ids

    def parse(self, token_ids: Sequence[int]) -> Message:
        """The message that sampled ids say; a trailing end-of-turn token is not part of it."""
        ids = list(token_ids)
        if ids and ids[-1] == self.eos_id:
            ids.pop()
        return parse_message(str(self.tokenizer.decode(ids, **_VERBATIM)))

    def check(self) -> None:
        """Refuse a template that is not prefix-preserving, or whose calls we cannot read.

        Templates of reasoning models may take for granted that every turn begins with a thought,
        so it is enough that conversations with thoughts, or those without, come out right.

        Raises:
            ChatFormatError: with the first place at which turn-by-turn and whole part.
        """
        reasons = [self._unfit(thought) for thought in ("", "<think>\nplan\n</think>\n\n")]
        if all(reasons):
            raise ChatFormatError(
                f"this chat template cannot be used for several turns: {reasons[0]}. Give a "
                "training template with --set model.chat_template=FILE"
            )
        added = self.tokenizer.get_added_vocab()
        forged = set(added.values()).intersection(self.encode_plain(" ".join(added)))
        if forged:
            raise ChatFormatError(
                f"control tokens {sorted(forged)} cannot be written as plain text"
            )

    @cached_property
    def _plain(self) -> Tokenizer:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ChatFormatError("a fast tokenizer is needed; this one has no tokenizer.json")
        state = json.loads(backend.to_str())
        state["added_tokens"] = []
        state["post_processor"] = None
        return Tokenizer.from_str(json.dumps(state))

    def _unfit(self, thought: str) -> str:
        """Why a conversation grown turn by turn is not the whole; empty where it is."""
        transcript = [Message("system", "Be brief."), Message("user", "Question?")]
        grown = self.render(transcript)
        for turn in _probe(thought):
            transcript.append(turn)
            if turn.role == "tool":
                before, after = self._shell((turn,))
                grown += before + turn.content + after
                continue
            whole = self._apply(transcript, generation=False)
            if not whole.startswith(grown):
                at = next(
                    (i for i, (a, b) in enumerate(zip(whole, grown, strict=False)) if a != b),
                    min(len(whole), len(grown)),
                )
                return (
                    "a conversation rendered turn by turn differs from the whole (the whole has "
                    f"{whole[max(at - 20, 0) : at + 40]!r} where turn by turn gives "
                    f"{grown[max(at - 20, 0) : at + 40]!r})"
                )
            text, end, rest = whole[len(grown) :].rpartition(self.eos)
            if not end or rest.strip():
                return f"an assistant's turn does not end with {self.eos!r} but with {rest[-60:]!r}"
            if _readable(parse_message(text)) != _readable(turn):
                return f"its tool calls cannot be read back from {text!r}"
            grown += text + end
        return ""

    def _encoded_shell(self, observation: Sequence[Message]) -> list[list[int]]:
        return [self.encode(text) for text in self._shell(observation)]

    def _shell(self, observation: Sequence[Message]) -> list[str]:
        """Template text from an assistant's end of turn to its next one, around each content."""
        calls = tuple(
            ToolCall(m.tool_call_id or f"call_{i}", "probe", "{}")
            for i, m in enumerate(observation)
        )
        marks = [f"OBSERVATION{i}MARK" for i in range(len(observation))]
        marked = [replace(m, content=mark) for m, mark in zip(observation, marks, strict=True)]
        text = self.render([Message("user", "?"), Message("assistant", _SENTINEL, calls), *marked])
        turn, found, rest = text.partition(_SENTINEL)[2].partition(self.eos)
        if not found:
            raise ChatFormatError(f"assistant turns do not end with {self.eos!r}: {turn[-60:]!r}")
        pieces = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise ChatFormatError(f"the chat template leaves out a tool's result: {before!r}")
            pieces.append(before)
        return [*pieces, rest]

    def _apply(self, messages: Sequence[Message], *, generation: bool) -> str:
        brought = [json.loads(tool) for message in messages[:1] for tool in message.tools]
        try:
            text = self.tokenizer.apply_chat_template(
                [_as_dict(m) for m in messages],
                tools=brought or self.tools or None,
                add_generation_prompt=generation,
                tokenize=False,
            )
        except TemplateError as error:  # some templates refuse a system message, or tools
            raise ChatFormatError(f"the chat template refuses the conversation: {error}") from error
        return str(text)


def _probe(thought: str) -> tuple[Message, ...]:
    """Two calls and an answer to a question, with characters that JSON escapes."""
    calls = [ToolCall(f"call_{i}", "probe", json.dumps({"x": f'"{i}"\n'})) for i in range(2)]
    return (
        Message("assistant", f"{thought}Trying.", (calls[0],)),
        Message("tool", 'a "first"\nresult', tool_call_id="call_0"),
        Message("assistant", f"{thought}Again.", (calls[1],)),
        Message("tool", "the last result", tool_call_id="call_1"),
        Message("assistant", f"{thought}The answer is 7."),
    )


def _readable(message: Message) -> list[tuple[str, Any]]:
    return [(call.name, _object(call.arguments)) for call in message.tool_calls]


def _as_dict(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _object(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
