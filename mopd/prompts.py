"""The teacher's prompt: its wording, its budget, and evidence that cannot forge control tokens.

A peer's text is written by a model and may contain the chat template's control tokens. So the
template is rendered with a placeholder for each piece of evidence; the template's text between
the placeholders is encoded with its control tokens, the evidence as plain text.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from agents.types import Trajectory
from envs.types import Message
from mopd.config import PromptSection
from mopd.peers import PeerContext

CUT_MARK = " ... "
MIN_PART_CHARS = 40  # observations and feedback are never cut below this; a peer goes instead

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class Chat(Protocol):
    """A chat template with its tools, and its tokenizer; nothing is ever added to a text's ids."""

    def render(self, messages: Sequence[Message]) -> str:
        """The template's text for the messages and the tools, up to the assistant's turn."""

    def encode(self, text: str) -> list[int]:
        """Token ids; the text's control tokens become control tokens."""

    def encode_plain(self, text: str) -> list[int]:
        """Token ids; whatever looks like a control token comes out as plain text."""


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """The ids in front of a response, and what the budget cost.

    `evidence_spans` are the [start, end) positions of each untrusted text; none of them means
    that the prompt is the student's own. `truncated`: some evidence was cut or dropped.
    """

    token_ids: tuple[int, ...]
    evidence_spans: tuple[tuple[int, int], ...]
    truncated: bool
    dropped_peers: int


def teacher_prompts(
    prompt_messages: Sequence[Message],
    contexts: Sequence[PeerContext | None],
    config: PromptSection,
    chat: Chat,
) -> tuple[TeacherPrompt | None, ...]:
    """`teacher_prompt_ids` for the contexts of one group; each peer is encoded only once."""
    memo = _Memo(chat)
    return tuple(
        None if context is None else _teacher_prompt(tuple(prompt_messages), context, config, memo)
        for context in contexts
    )


def teacher_prompt_ids(
    prompt_messages: Sequence[Message], context: PeerContext, config: PromptSection, chat: Chat
) -> TeacherPrompt:
    """The teacher's prompt for one rollout: its own prompt messages with the evidence.

    An over-long prompt loses the middle of its longest observations first, then whole peers
    from the last; it raises ValueError where it does not even fit without evidence.
    """
    return _teacher_prompt(tuple(prompt_messages), context, config, _Memo(chat))


def teacher_messages(
    prompt_messages: Sequence[Message],
    successes: Sequence[str],
    failures: Sequence[str],
    feedback: str,
    config: PromptSection,
) -> tuple[Message, ...]:
    """The prompt messages, with the evidence and the closing behind the last user message's text.

    Without evidence they are returned as they are: the context-free teacher is an anchor only
    where its prompt is exactly the student's.
    """
    blocks = [config.first_success.replace("{peer}", text) for text in successes[:1]]
    blocks += [config.other_success.replace("{peer}", text) for text in successes[1:]]
    blocks += [config.failure.replace("{peer}", text) for text in failures]
    if feedback:
        blocks.append(config.feedback.replace("{feedback}", feedback))
    if not blocks:
        return tuple(prompt_messages)
    last = max((i for i, m in enumerate(prompt_messages) if m.role == "user"), default=None)
    if last is None:
        roles = [message.role for message in prompt_messages]
        raise ValueError(f"no user message to hold the evidence: the prompt's roles are {roles}")
    user = prompt_messages[last]
    user = replace(user, content="\n\n".join([user.content, *blocks, config.closing]))
    return (*prompt_messages[:last], user, *prompt_messages[last + 1 :])


def render_transcript(messages: Sequence[Message], *, keep_thinking: bool) -> str:
    """A transcript as plain text: what the assistant said, `call name arguments`, `result: text`.

    System and user messages are left out: the teacher has them in its own prompt.
    """
    return "\n".join(part.text for part in _transcript_parts(messages, keep_thinking=keep_thinking))


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of evidence; the environment's words may be shortened, the student's may not."""

    text: str
    shrinks: bool

    def cut(self, max_chars: int) -> "_Part":
        """Without its middle; cutting twice equals cutting once to the smaller length."""
        if not self.shrinks or len(self.text) <= max_chars:
            return self
        kept = (max_chars - len(CUT_MARK)) // 2
        return _Part(self.text[:kept] + CUT_MARK + self.text[-kept:], shrinks=True)


@dataclass(frozen=True, slots=True)
class _Evidence:
    kind: Literal["success", "failure", "feedback"]
    parts: tuple[_Part, ...]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts)

    def cut(self, max_chars: int) -> "_Evidence":
        return _Evidence(self.kind, tuple(part.cut(max_chars) for part in self.parts))


class _Memo:
    """A `Chat` that remembers what it rendered and encoded; it lives for one group."""

    def __init__(self, chat: Chat) -> None:
        self.render = functools.cache(chat.render)
        self.encode = functools.cache(chat.encode)
        self.encode_plain = functools.cache(chat.encode_plain)


def _teacher_prompt(
    prompt_messages: tuple[Message, ...], context: PeerContext, config: PromptSection, chat: _Memo
) -> TeacherPrompt:
    given = _evidence(context, keep_thinking=config.keep_thinking)
    fitted = [_fitted([evidence], config.max_peer_tokens, chat) for evidence in given]
    shown = [evidence for fit in fitted if fit is not None for evidence in fit]
    while True:
        frame = _frame(prompt_messages, shown, config, chat)
        room = config.max_tokens - sum(map(len, frame))
        cut = _fitted(shown, room, chat)
        if cut is not None:
            break
        if not shown:
            raise ValueError(
                f"the teacher's prompt has {config.max_tokens - room} tokens without any evidence, "
                f"expected at most prompt.max_tokens={config.max_tokens}: raise it, or shorten "
                "the task, the system prompt or the tools' descriptions"
            )
        peers = [i for i, evidence in enumerate(shown) if evidence.kind != "feedback"]
        del shown[peers[-1] if peers else -1]
    token_ids, spans = _joined(frame, [chat.encode_plain(evidence.text) for evidence in cut])
    return TeacherPrompt(
        token_ids, spans, truncated=cut != given, dropped_peers=_peers(given) - _peers(cut)
    )


def _joined(
    frame: Sequence[Sequence[int]], evidence: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Frame and evidence in turn, and where each piece of evidence lies."""
    ids, spans = list(frame[0]), []
    for piece, after in zip(evidence, frame[1:], strict=True):
        spans.append((len(ids), len(ids) + len(piece)))
        ids += [*piece, *after]
    return tuple(ids), tuple(spans)


def _frame(
    prompt_messages: tuple[Message, ...],
    evidence: Sequence[_Evidence],
    config: PromptSection,
    chat: _Memo,
) -> list[list[int]]:
    """The ids of the rendered template before, between and behind the pieces of evidence."""
    wording = (config.first_success, config.other_success, config.failure, config.feedback)
    trusted = "\n".join((chat.render(prompt_messages), *wording, config.closing))
    opening = next(
        text for text in (f"[[evidence:{n}:" for n in itertools.count()) if text not in trusted
    )
    marks = [f"{opening}{i}]]" for i in range(len(evidence))]

    def marks_of(kind: str) -> list[str]:
        return [mark for mark, e in zip(marks, evidence, strict=True) if e.kind == kind]

    feedback = "".join(marks_of("feedback"))
    messages = teacher_messages(
        prompt_messages, marks_of("success"), marks_of("failure"), feedback, config
    )
    pieces = re.split(rf"({re.escape(opening)}\d+\]\])", chat.render(messages))
    if pieces[1::2] != marks:
        raise ValueError(
            f"the rendered prompt shows the evidence slots {pieces[1::2]}, expected {marks}: each "
            "wording in [prompt] needs its {peer} or {feedback} exactly once, and the chat "
            "template must render the last user message once and unchanged"
        )
    return [chat.encode(piece) for piece in pieces[::2]]


def _fitted(evidence: list[_Evidence], max_tokens: int, chat: _Memo) -> list[_Evidence] | None:
    """The evidence with its longest observations cut as little as needed; None: it never fits."""

    def fits(max_chars: int) -> bool:
        texts = (piece.cut(max_chars).text for piece in evidence)
        return sum(len(chat.encode_plain(text)) for text in texts) <= max_tokens

    longest = max((len(p.text) for e in evidence for p in e.parts if p.shrinks), default=0)
    max_chars = _largest(fits, MIN_PART_CHARS, max(longest, MIN_PART_CHARS))
    return None if max_chars is None else [piece.cut(max_chars) for piece in evidence]


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number of low..high that fits, by bisection; None: not even low."""
    if fits(high):
        return high
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _evidence(context: PeerContext, *, keep_thinking: bool) -> list[_Evidence]:
    """The pieces in the prompt's order, without those that have nothing to show."""

    def shown(kind: Literal["success", "failure"], peers: Sequence[Trajectory]) -> list[_Evidence]:
        return [
            _Evidence(kind, _transcript_parts(peer.response_messages, keep_thinking=keep_thinking))
            for peer in peers
        ]

    feedback = _Evidence("feedback", (_Part(context.feedback, shrinks=True),))
    pieces = [*shown("success", context.successes), *shown("failure", context.failures), feedback]
    return [piece for piece in pieces if piece.text.strip()]


def _transcript_parts(messages: Sequence[Message], *, keep_thinking: bool) -> tuple[_Part, ...]:
    parts = []
    for message in messages:
        if message.role == "assistant":
            said = message.content if keep_thinking else _without_thinking(message.content)
            calls = [f"call {call.name} {call.arguments}" for call in message.tool_calls]
            parts += [_Part(text, shrinks=False) for text in (said.strip(), *calls) if text]
        elif message.role == "tool":
            parts.append(_Part(f"result: {message.content}", shrinks=True))
    return tuple(parts)


def _without_thinking(text: str) -> str:
    # Some templates open the thinking in the generation prompt: the reply has only its end.
    return _THINKING.sub("", text).rpartition("</think>")[2]


def _peers(evidence: Sequence[_Evidence]) -> int:
    return sum(piece.kind != "feedback" for piece in evidence)
