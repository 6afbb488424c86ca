"""The chat format of a model, token by token: what is rendered once is never rendered again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from agents.parsing import parse_message
from envs.types import Message, ToolCall

_SENTINEL = "SENTINELTURN"


class ChatFormatError(ValueError):
    """A model's chat template cannot be used for multi-turn training; the text says why."""


class Chat:
    """A tokenizer with its chat template and the tools of one environment.

    A transcript grows as `prompt_ids(messages)`, the ids that the model sampled (its end-of-turn
    token included), `continuation_ids(tool_messages)`, sampled ids, and so on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.tools = [dict(tool) for tool in tools]
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
        ids = list(self._shells[key][0])
        for message, after in zip(observation, self._shells[key][1:], strict=True):
            ids += self.encode_plain(message.content) + after
        return ids

    def parse(self, token_ids: Sequence[int]) -> Message:
        """The message that sampled ids say; a trailing end-of-turn token is not part of it."""
        ids = list(token_ids)
        if ids and ids[-1] == self.eos_id:
            ids.pop()
        return parse_message(str(self.tokenizer.decode(ids, skip_special_tokens=False)))

    def check(self) -> None:
        """Refuse a template that is not prefix-preserving, or whose calls we cannot read.

        Raises:
            ChatFormatError: with the first place at which turn-by-turn and whole part.
        """
        call = ToolCall("call_0", "probe", json.dumps({"x": 1}))
        head = [Message("system", "Be brief."), Message("user", "Question?")]
        reasons = []
        for thought in ("", "<think>\nplan\n</think>\n\n"):
            turns = [
                Message("assistant", f"{thought}Trying.", (call,)),
                Message("tool", "first result", tool_call_id="call_0"),
                Message("assistant", f"{thought}The answer is 7."),
            ]
            whole = self._apply([*head, *turns], generation=False)
            grown = self.render(head)
            for i, turn in enumerate(turns):
                if turn.role == "tool":
                    grown += self._shell((turn,))
                    continue
                text = self._turn_text([*head, *turns[: i + 1]], grown)
                grown += text
                said = parse_message(text.removesuffix(self.eos))
                if [(c.name, json.loads(c.arguments or "null")) for c in said.tool_calls] != [
                    (c.name, json.loads(c.arguments)) for c in turn.tool_calls
                ]:
                    reasons.append(f"its tool calls cannot be read back from {text!r}")
            if not reasons and whole.startswith(grown) and not whole[len(grown) :].strip():
                break
            at = next((i for i, (a, b) in enumerate(zip(whole, grown, strict=False)) if a != b), -1)
            reasons.append(
                f"the whole has {whole[max(at - 20, 0) : at + 40]!r} where turn by turn "
                f"gives {grown[max(at - 20, 0) : at + 40]!r}"
            )
        else:
            raise ChatFormatError(
                "this chat template is not prefix-preserving: a conversation rendered turn by "
                f"turn differs from the whole ({reasons[-1]}). Give a training template with "
                "--set model.chat_template=FILE"
            )
        added = set(self.tokenizer.get_added_vocab().values())
        forged = added.intersection(self.encode_plain(" ".join(self.tokenizer.get_added_vocab())))
        if forged:
            raise ChatFormatError(f"control tokens {sorted(forged)} cannot be written as plain text")

    @cached_property
    def _plain(self) -> Tokenizer:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ChatFormatError("a fast tokenizer is needed; this one has no tokenizer.json")
        state = json.loads(backend.to_str())
        state["added_tokens"] = []
        state["post_processor"] = None
        return Tokenizer.from_str(json.dumps(state))

    def _encoded_shell(self, observation: Sequence[Message]) -> list[list[int]]:
        marks = [f"OBSERVATION{i}MARK" for i in range(len(observation))]
        pieces, rest = [], self._shell(
            tuple(replace(m, content=mark) for m, mark in zip(observation, marks, strict=True))
        )
        for mark in marks:
            before, _, rest = rest.partition(mark)
            pieces.append(self.encode(before))
        return [*pieces, self.encode(rest)]

    def _shell(self, observation: tuple[Message, ...]) -> str:
        """Template text between an assistant's end of turn and its next one."""
        calls = tuple(
            ToolCall(m.tool_call_id or f"call_{i}", "probe", "{}")
            for i, m in enumerate(observation)
        )
        text = self.render(
            [Message("user", "?"), Message("assistant", _SENTINEL, calls), *observation]
        )
        turn, found, rest = text.partition(_SENTINEL)[2].partition(self.eos)
        if not found:
            raise ChatFormatError(f"assistant turns do not end with {self.eos!r}: {turn[-60:]!r}")
        return rest

    def _turn_text(self, messages: Sequence[Message], before: str) -> str:
        whole = self._apply(messages, generation=False)
        if not whole.startswith(before):
            return ""
        text, found, _ = whole[len(before) :].rpartition(self.eos)
        return text + found

    def _apply(self, messages: Sequence[Message], *, generation: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [_as_dict(m) for m in messages],
                tools=self.tools or None,
                add_generation_prompt=generation,
                tokenize=False,
            )
        )


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
    except ValueError:
        return arguments
