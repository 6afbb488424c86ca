"""`TransformersAgent`: many episodes in one decoding batch whose KV cache is kept over turns.

Each live row takes exactly one token a step, sampled or forced (the tokens of an observation),
so no row waits for another and nothing is prefilled twice. A row whose tools still run leaves
masked holes in the cache.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedConfig

from agents.base import EngineError, TurnRequest
from agents.chat import Chat
from agents.types import Turn, TurnEnd

PAUSE_STEPS = 8  # long enough to hide a tool of some 50 ms, short enough to waste few slots
COMPACT_BELOW = 0.8  # share of live rows under which finished ones are dropped from the batch


@dataclass(slots=True)
class _Row:
    """One episode in the batch."""

    episode: int
    rng: np.random.Generator
    length: int  # tokens of the transcript, those in `feed` included
    feed: deque[int] = field(default_factory=deque)
    generating: bool = True
    budget: int = 0
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersAgent:
    """Samples from a causal language model of transformers (or PEFT around one).

    Equal seeds give equal tokens: every episode draws from its own generator, and what is in
    the batch at a step depends on tokens only, not on how long tools took. The model is left in
    eval mode (a Trainer switches back by itself).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        chat: Chat,
        *,
        temperature: float = 1.0,
        max_context: int = 2048,
        max_episodes: int = 64,
        version: str = "base",
    ) -> None:
        self.model, self.chat, self.version = model, chat, version
        self.temperature, self.max_context = temperature, max_context
        self.max_episodes = max_episodes
        self.clock = 0
        self._config = cast(PreTrainedConfig, model.config)
        # Full attention passes over a masked hole; it would shorten a sliding window, and a
        # recurrent layer would read it.
        layers = getattr(self._config.get_text_config(), "layer_types", None) or ()
        self.pause_steps = PAUSE_STEPS if set(layers) <= {"full_attention"} else 0
        self._device = next(model.parameters()).device
        self._rows: list[_Row] = []
        self._known: dict[int, _Row] = {}
        self._cache = DynamicCache()
        self._logits_BV: torch.Tensor | None = None

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Start episodes in an empty batch, or go on with known ones."""
        new = [r for r in requests if r.episode not in self._known]
        if new:
            self._start(new)
        fresh = {r.episode for r in new}
        for request in requests:
            row = self._known[request.episode]
            row.budget, row.generating = request.max_new_tokens, True
            row.sampled, row.logprobs = [], []
            if request.episode not in fresh:
                row.feed.extend(request.token_ids[row.length :])
                row.length = len(request.token_ids)

    def advance(self, until: int | None = None) -> list[Turn]:
        """Decode until a turn ends or the clock says `until`."""
        with _inference(len(self._rows)):
            while any(row.generating for row in self._rows):
                ended = self._sample()
                if ended or (until is not None and self.clock >= until):
                    return ended
                self._step()
            if until is not None:
                # Nobody speaks: the pause costs nothing.
                self.clock = max(self.clock, until)
            return []

    def release(self, episode: int) -> None:
        """Drop the episode's row at the next compaction, and the cache with the last one."""
        self._known.pop(episode, None)
        if not self._known:
            self._rows, self._logits_BV, self._cache = [], None, DynamicCache()

    def _start(self, requests: Sequence[TurnRequest]) -> None:
        """Prefill each distinct prompt once and copy its cache to the rows that share it."""
        if self._known:
            raise RuntimeError("new episodes enter an empty batch only: release the others first")
        prompts = list(dict.fromkeys(tuple(r.token_ids) for r in requests))
        longest = max(map(len, prompts))
        ids_PT = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_PT = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids_PT[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask_PT[i, longest - len(prompt) :] = 1
        mask_PT = mask_PT.to(self._device)
        self._cache = DynamicCache(config=self._config)
        positions_PT = (mask_PT.cumsum(1) - 1).clamp(min=0)
        self.model.eval()  # gradient checkpointing would switch the cache off
        with _inference(len(requests)):
            logits_PV = self.model(
                input_ids=ids_PT.to(self._device),
                attention_mask=mask_PT,
                position_ids=positions_PT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        place = {prompt: i for i, prompt in enumerate(prompts)}
        of_row = torch.tensor([place[tuple(r.token_ids)] for r in requests], device=self._device)
        self._cache.batch_select_indices(of_row)
        self._logits_BV = logits_PV[of_row]
        self._mask_BT = mask_PT[of_row]
        self._position_B = positions_PT[of_row, -1]
        self._rows = [
            _Row(r.episode, np.random.default_rng(r.seed), len(r.token_ids)) for r in requests
        ]
        self._known = {row.episode: row for row in self._rows}

    def _sample(self) -> list[Turn]:
        """Sample a token for each row whose last fed token has its logits."""
        due = [
            i
            for i, row in enumerate(self._rows)
            if row.generating and not row.feed and row.episode in self._known
        ]
        if not due or self._logits_BV is None:
            return []
        logprobs_NV = torch.log_softmax(self._logits_BV[due].float() / self.temperature, -1)
        # Inverse transform: one uniform number a token and row, whatever else is in the batch.
        uniform_N1 = torch.tensor(
            [[self._rows[i].rng.random()] for i in due], dtype=torch.float64, device=self._device
        )
        cumulative_NV = logprobs_NV.double().exp().cumsum(-1)
        tokens_N1 = torch.searchsorted(cumulative_NV, uniform_N1 * cumulative_NV[:, -1:])
        tokens_N1.clamp_(max=logprobs_NV.size(-1) - 1)
        chosen_N = logprobs_NV.gather(-1, tokens_N1)[:, 0].tolist()
        ended = []
        for i, token, logprob in zip(due, tokens_N1[:, 0].tolist(), chosen_N, strict=True):
            row = self._rows[i]
            row.sampled.append(token)
            row.logprobs.append(logprob)
            row.feed.append(token)
            row.length += 1
            end = self._end(row, token)
            if end is not None:
                row.generating = False
                message = self.chat.parse(row.sampled)
                ended.append(
                    Turn(row.episode, message, tuple(row.sampled), tuple(row.logprobs), end)
                )
        return ended

    def _end(self, row: _Row, token: int) -> TurnEnd | None:
        if token == self.chat.eos_id:
            return TurnEnd.END_OF_TURN
        if row.length >= self.max_context:
            return TurnEnd.CONTEXT_OVERFLOW
        return TurnEnd.MAX_TOKENS if len(row.sampled) >= row.budget else None

    def _step(self) -> None:
        """Feed one token, or a hole, to every row."""
        self._compact()
        fed_B = [row.feed.popleft() if row.feed else None for row in self._rows]
        real_B = torch.tensor([token is not None for token in fed_B], device=self._device).long()
        ids_B1 = torch.tensor([[token or 0] for token in fed_B], device=self._device)
        self._position_B = self._position_B + real_B
        self._mask_BT = torch.cat([self._mask_BT, real_B[:, None]], 1)
        logits_BV = self.model(
            input_ids=ids_B1,
            attention_mask=self._mask_BT,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._logits_BV = logits_BV
        self.clock += 1

    def _compact(self) -> None:
        """Drop rows of released episodes once they are many."""
        live = [i for i, row in enumerate(self._rows) if row.episode in self._known]
        if len(live) > COMPACT_BELOW * len(self._rows) and len(live) >= min(8, len(self._rows)):
            return
        keep_L = torch.tensor(live, device=self._device)
        self._cache.batch_select_indices(keep_L)
        self._mask_BT, self._position_B = self._mask_BT[keep_L], self._position_B[keep_L]
        self._rows = [self._rows[i] for i in live]


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
