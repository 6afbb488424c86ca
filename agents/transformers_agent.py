"""`TransformersAgent`: continuous batching over a KV cache whose rows come and go."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedConfig

from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.slot_cache import SlotCache
from agents.slot_masks import attention_of, masks, windows_of
from agents.types import Turn, TurnEnd

PAUSE_STEPS = 8  # long enough to hide a tool of some 50 ms, short enough to waste few slots
PARK_FROM = 0.25  # share of silent rows in the batch from which they are moved out of it
PREFILL_TOKENS = 4096  # of one forward pass, so that its activations stay bounded


@dataclass(slots=True)
class _Row:
    """One episode, and its slot in the cache."""

    episode: int
    rng: np.random.Generator
    slot: int
    prompt: tuple[int, ...]
    tokens: list[int]
    cached: int = 0  # tokens whose keys and values are in the cache
    speaking: bool = False
    said: int = 0  # where in `tokens` this turn begins
    budget: int = 0
    logprobs: list[float] = field(default_factory=list)

    @property
    def behind(self) -> int:
        """Tokens to read before the one whose logits are sampled from."""
        return len(self.tokens) - 1 - self.cached


class TransformersAgent:
    """Samples from a causal language model of transformers (or PEFT around one).

    A step takes one token of each speaking row, sampled or read; what is read comes in chunks
    instead where that is cheaper. A prompt that begins like that of another row copies its keys
    and values. Slots 0 to `_active` - 1 are the batch: silent rows are swapped out of it.

    Equal seeds give equal tokens: every episode draws from its own generator, and with
    `reproducible` what is in the batch at a step depends on tokens only, not on how long tools
    took; without it, tokens may differ where a rounding decides. The model is left in eval mode
    (a Trainer switches back by itself).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        chat: Chat,
        *,
        temperature: float = 1.0,
        max_context: int = 2048,
        max_episodes: int = 64,
        reproducible: bool = True,
        version: str = "base",
    ) -> None:
        """
        Raises:
            ValueError: the model's layers need more than keys and values by position.
        """
        self.model, self.chat, self.version = model, chat, version
        self.temperature, self.max_context = temperature, max_context
        self.max_episodes = max_episodes
        self.pause_steps = PAUSE_STEPS if reproducible else 0
        self.clock = 0
        config = cast(PreTrainedConfig, model.config)
        self._windows = windows_of(config)
        weight = next(model.parameters())
        self._device = weight.device
        self._additive = weight.dtype if attention_of(config) == "eager" else None
        self._known: dict[int, _Row] = {}
        self._rows: list[_Row] = []  # by slot
        self._active = 0
        self._cache = SlotCache()

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Start episodes, or go on with known ones."""
        new = [r for r in requests if r.episode not in self._known]
        if len(self._known) + len(new) > self.max_episodes:
            raise ValueError(
                f"{len(self._known)} episodes are in the batch and {len(new)} more came; expected "
                f"at most {self.max_episodes} together: release some first"
            )
        for request in new:
            rng, prompt = np.random.default_rng(request.seed), tuple(request.token_ids)
            row = _Row(request.episode, rng, len(self._rows), prompt, list(prompt))
            self._rows.append(row)
            self._known[row.episode] = row
        for request in requests:
            row = self._known[request.episode]
            row.tokens.extend(request.token_ids[len(row.tokens) :])
            row.budget, row.speaking = request.max_new_tokens, True
            row.said, row.logprobs = len(row.tokens), []
            if row.slot >= self._active:
                self._swap(row.slot, self._active)
                self._active += 1
        if new:
            self.model.eval()  # gradient checkpointing would switch the cache off
            with _inference(len(self._rows)):
                self._start([self._known[r.episode] for r in new])

    def advance(self, until: int | None = None) -> list[Turn]:
        """Decode until a turn ends or the clock says `until`."""
        with _inference(len(self._rows)):
            while any(row.speaking for row in self._rows[: self._active]):
                if until is not None and self.clock >= until:
                    return []
                self._park()
                self._catch_up()
                if ended := self._step():
                    return ended
            if until is not None:
                # Nobody speaks: the pause costs nothing.
                self.clock = max(self.clock, until)
            return []

    def release(self, episode: int) -> None:
        """Free the episode's slot, and the cache with the last one."""
        row = self._known.pop(episode, None)
        if row is None:
            return
        if not self._known:
            self._rows, self._active, self._cache = [], 0, SlotCache()
            return
        row.cached = 0
        if row.slot < self._active:
            self._active -= 1
            self._swap(row.slot, self._active)
        self._swap(row.slot, len(self._rows) - 1)
        self._rows.pop()

    def _start(self, rows: Sequence[_Row]) -> None:
        """Read the prompts of new rows, what they have in common once."""
        room = len(self._rows)
        if room > self._cache.slots:
            room = max(room, min(self.max_episodes, self._cache.slots * 3 // 2))
        self._cache.grow(room, max(len(row.tokens) for row in rows))
        first_of = {row.prompt: row for row in reversed(rows)}
        firsts = [row for row in rows if first_of[row.prompt] is row]
        others = [row for row in rows if first_of[row.prompt] is not row]
        # The very first, so that the others may copy what all prompts begin with.
        for some in (firsts[:1], firsts[1:], others):
            self._copy_beginnings(some)
            if len(rows) > 1:
                self._prefill(some)

    def _copy_beginnings(self, rows: Sequence[_Row]) -> None:
        """Copy what the cache holds of the rows' prompts."""
        sources: dict[tuple[int, ...], _Row] = {}
        for row in self._rows:
            best = sources.get(row.prompt)
            if row.cached and (best is None or best.cached < row.cached):
                sources[row.prompt] = row
        copies: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            if row.prompt in sources:
                source = sources[row.prompt]
                length = min(source.cached, len(row.prompt) - 1)
            else:
                shared = [
                    (_shared(row.prompt, s.prompt, s.cached), s.slot) for s in sources.values()
                ]
                length, slot = max(shared, default=(0, 0))
                source = self._rows[slot]
            if length > 0:
                row.cached = length
                copies.setdefault((source.slot, length), []).append(row.slot)
        for (slot, length), targets in copies.items():
            self._cache.copy(slot, self._tensor(targets), length)

    def _catch_up(self) -> None:
        """Read in chunks where rows are behind by more tokens than the batch has rows.

        A token read alone costs a row's share of a step, one read in a chunk a share of the
        chunk's: of the two fixed costs, the one that more tokens share is the cheaper.
        """
        while True:
            behind = [r for r in self._rows[: self._active] if r.speaking and r.behind > 0]
            longest = max((row.behind for row in behind), default=0)
            alike = [row for row in behind if 2 * row.behind >= longest]  # little padding
            if sum(row.behind for row in alike) < max(self._active, 2):
                return
            self._prefill(alike)

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Read all tokens of some rows but the last, which the next step takes."""
        while rows := [row for row in rows if row.behind > 0]:
            part = rows[: max(PREFILL_TOKENS // max(row.behind for row in rows), 1)]
            width = min(max(row.behind for row in part), PREFILL_TOKENS)
            read = [min(row.behind, width) for row in part]
            # What pads a shorter row lies behind its end, where its next tokens will be written.
            ids_NT = [
                row.tokens[row.cached : row.cached + n] + [0] * (width - n)
                for row, n in zip(part, read, strict=True)
            ]
            starts_N1 = self._tensor([row.cached for row in part])[:, None]
            positions_NT = starts_N1 + torch.arange(width, device=self._device)
            ends_N1 = starts_N1 + self._tensor(read)[:, None] - 1
            self._forward(
                ids_NT,
                torch.minimum(positions_NT, ends_N1),  # a model may have no more positions
                self._cache.aim(
                    self._tensor([row.slot for row in part]),
                    positions_NT,
                    max(row.cached for row in part) + width,
                ),
            )
            for row, n in zip(part, read, strict=True):
                row.cached += n

    def _step(self) -> list[Turn]:
        """Feed one token to every row of the batch, and sample where a row has no more."""
        rows = self._rows[: self._active]
        # A silent row's dummy token lies behind its end, where its next token will be written.
        fed = [row.cached < len(row.tokens) for row in rows]
        ids_B1 = [
            [row.tokens[row.cached] if real else 0] for row, real in zip(rows, fed, strict=True)
        ]
        positions_B1 = self._tensor([[row.cached] for row in rows])
        reach = max(row.cached for row in rows) + 1
        logits_BV = self._forward(ids_B1, positions_B1, self._cache.aim(None, positions_B1, reach))
        for row, real in zip(rows, fed, strict=True):
            row.cached += real
        self.clock += 1
        return self._sample([r for r in rows if r.speaking and r.behind < 0], logits_BV)

    def _forward(
        self, ids_NT: Sequence[Sequence[int]], positions_NT: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Logits behind the last token of each row, [N, V]; the cache takes keys and values."""
        logits_NV: torch.Tensor = self.model(
            input_ids=self._tensor(ids_NT),
            attention_mask=masks(self._windows, positions_NT, length, self._additive),
            position_ids=positions_NT,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits_NV

    def _sample(self, due: Sequence[_Row], logits_BV: torch.Tensor) -> list[Turn]:
        """Draw a token for each row; the turns that it ends."""
        if not due:
            return []
        if len(due) < len(logits_BV):
            logits_BV = logits_BV[self._tensor([row.slot for row in due])]
        logprobs_NV = torch.log_softmax(logits_BV.float() / self.temperature, -1)
        # Inverse transform: one uniform number a token and row, whatever else is in the batch.
        uniform_N1 = torch.tensor(
            [[row.rng.random()] for row in due], dtype=torch.float64, device=self._device
        )
        cumulative_NV = logprobs_NV.exp().cumsum(-1, dtype=torch.float64)
        tokens_N1 = torch.searchsorted(cumulative_NV, uniform_N1 * cumulative_NV[:, -1:])
        tokens_N1.clamp_(max=logprobs_NV.size(-1) - 1)
        chosen_N = logprobs_NV.gather(-1, tokens_N1)[:, 0].tolist()
        ended = []
        for row, token, logprob in zip(due, tokens_N1[:, 0].tolist(), chosen_N, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            end = self._end(row, token)
            if end is not None:
                row.speaking = False
                ids, logprobs = tuple(row.tokens[row.said :]), tuple(row.logprobs)
                ended.append(Turn(row.episode, self.chat.parse(ids), ids, logprobs, end))
        return ended

    def _end(self, row: _Row, token: int) -> TurnEnd | None:
        if token == self.chat.eos_id:
            return TurnEnd.END_OF_TURN
        if len(row.tokens) >= self.max_context:
            return TurnEnd.CONTEXT_OVERFLOW
        return TurnEnd.MAX_TOKENS if len(row.logprobs) >= row.budget else None

    def _park(self) -> None:
        """Move silent rows out of the batch once they are many."""
        silent = sum(not row.speaking for row in self._rows[: self._active])
        if silent < PARK_FROM * self._active:
            return
        slot = 0
        while slot < self._active:
            if self._rows[slot].speaking:
                slot += 1
            else:
                self._active -= 1
                self._swap(slot, self._active)

    def _swap(self, one: int, other: int) -> None:
        """Let the rows of two slots change places."""
        if one == other:
            return
        rows = self._rows
        rows[one], rows[other] = rows[other], rows[one]
        rows[one].slot, rows[other].slot = one, other
        length = max(rows[one].cached, rows[other].cached)
        if length:
            self._cache.swap(one, other, length)

    def _tensor(self, values: Iterable[object]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


def _shared(one: Sequence[int], other: Sequence[int], cached: int) -> int:
    """How many of its tokens `one` can take from `other`: all but the last may be read already."""
    room = min(len(one) - 1, len(other), cached)
    return next((i for i in range(room) if one[i] != other[i]), max(room, 0))


@contextmanager
def _inference(episodes: int) -> Iterator[None]:
    """No gradients; a GPU that is full is the engine's failure."""
    try:
        with torch.no_grad():
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise EngineError(
            f"out of GPU memory with {episodes} episodes in the batch; lower rollout.max_concurrent"
        ) from error
