"""One pass of a model over many sequences, in which a prefix that they share is computed once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mopd.prefixes import Stretch, prefix_tree

MAX_TOKENS = 2**14  # of one forward, prefixes and padding included
MIN_FILL = 0.75  # of the longest stretch: padding is computed like tokens


def can_share(config: PreTrainedConfig) -> bool:
    """Whether all that a model keeps of a prefix is keys and values, whole or in a window.

    A recurrent state would take in the padding behind a stretch, a chunk's borders lie at fixed
    places of the cache, and a layer that borrows another's keys asks the library's cache for them.
    """
    text = config.get_text_config(decoder=True)
    if getattr(text, "num_kv_shared_layers", 0) or getattr(text, "attention_chunk_size", None):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


@torch.no_grad()
def tree_hidden(
    backbone: torch.nn.Module,
    config: PreTrainedConfig,
    sequences: Sequence[tuple[int, ...]],
    wanted: Sequence[Sequence[int]],
) -> torch.Tensor:
    """hidden_NH: last hidden states at the `wanted` positions, sequence by sequence.

    `backbone` is the model without its head; its `config` must pass `can_share`. Stretches that
    others continue are run first, level by level, and their keys and values are kept, once;
    then all the others, sorted by length.
    """
    tree = prefix_tree(sequences)
    slots = _slots(tree, wanted)
    device = next(backbone.parameters()).device
    if not tree:
        return torch.zeros(0, config.get_text_config(decoder=True).hidden_size, device=device)
    # The library's own cache knows which layers have a window.
    layers = [
        _Layer(getattr(x, "sliding_window", None)) for x in DynamicCache(config=config).layers
    ]
    paths: dict[int | None, torch.Tensor] = {None: torch.zeros(0, dtype=torch.long)}
    states: list[torch.Tensor] = []
    order: list[int] = []
    kept = 0
    was_training = backbone.training
    backbone.eval()  # gradient checkpointing would switch the cache off
    try:
        for batch, continued in _batches(tree):
            stretches = [tree[i] for i in batch]
            ids_BT, real_BT = right_padded([torch.tensor(s.token_ids) for s in stretches])
            past_BP, seen_BP = _left_padded([paths[s.parent] for s in stretches])
            starts_B1 = torch.tensor([[s.start] for s in stretches])
            for layer in layers:
                layer.read(past_BP.to(device), real_BT.to(device) if continued else None)
            states_BTH = backbone(
                input_ids=ids_BT.to(device),
                attention_mask=_mask(seen_BP, real_BT, device),
                position_ids=(starts_B1 + torch.arange(ids_BT.shape[1])).to(device),
                past_key_values=Cache(layers=list(layers)),
                use_cache=True,
            ).last_hidden_state
            for row_TH, i in zip(states_BTH, batch, strict=True):
                states.append(row_TH[[offset for offset, _ in slots[i]]])
                order += [slot for _, slot in slots[i]]
                if continued:
                    own = torch.arange(kept, kept + len(tree[i].token_ids))
                    paths[i] = torch.cat([paths[tree[i].parent], own])
                    kept += len(own)
    finally:
        backbone.train(was_training)
    return torch.cat(states)[torch.tensor(order).argsort().to(device)]


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # the library's hook for subclasses
    """Keys and values of one layer for every kept token, each once; a batch reads its prefixes.

    What a batch adds is handed to attention and forgotten, unless others continue it: so the
    copies of a prefix live for the time of one layer.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding, self._window = window is not None, window
        self._keys_NHD: torch.Tensor | None = None
        self._values_NHD: torch.Tensor | None = None
        self._width = 0

    def read(self, past_BP: torch.Tensor, kept_BT: torch.Tensor | None) -> None:
        """What the next batch continues, as places among the kept tokens; what is kept of it."""
        self._width = past_BP.shape[1]
        seen = self._width if self._window is None else min(self._width, self._window - 1)
        self._past_BP = past_BP[:, self._width - seen :]
        self._kept_BT = kept_BT

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prefixes and of the batch, BHSD."""
        past = self._keys_NHD, self._values_NHD
        new = key_states, value_states
        if self._kept_BT is not None:
            self._keys_NHD, self._values_NHD = (
                _grown(p, n.transpose(1, 2)[self._kept_BT]) for p, n in zip(past, new, strict=True)
            )
        keys, values = (self._behind(p, n) for p, n in zip(past, new, strict=True))
        return keys, values

    def _behind(self, past_NHD: torch.Tensor | None, new_BHTD: torch.Tensor) -> torch.Tensor:
        if past_NHD is None or not self._past_BP.numel():
            return new_BHTD
        batch, width = self._past_BP.shape
        rows_BPHD = past_NHD.index_select(0, self._past_BP.flatten()).view(
            batch, width, *past_NHD.shape[1:]
        )
        return torch.cat([rows_BPHD.transpose(1, 2), new_BHTD], 2)

    def get_seq_length(self) -> int:
        """Tokens before the batch, padding included."""
        return self._width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys attention gets, and the place of the first of them."""
        width = self._past_BP.shape[1]
        return width + query_length, self._width - width


def _grown(past_NHD: torch.Tensor | None, new_NHD: torch.Tensor) -> torch.Tensor:
    return new_NHD if past_NHD is None else torch.cat([past_NHD, new_NHD])


def _slots(tree: Sequence[Stretch], wanted: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """For each stretch the offsets of wanted states in it, each with its place in the result."""
    ends = [0]
    for positions in wanted:
        ends.append(ends[-1] + len(positions))
    return [
        [
            (position - stretch.start, ends[member] + k)
            for member in stretch.members
            for k, position in enumerate(wanted[member])
            if stretch.start <= position < stretch.end
        ]
        for stretch in tree
    ]


def _batches(tree: Sequence[Stretch]) -> Iterator[tuple[list[int], bool]]:
    """Indices of stretches to run together, parents first, and whether others continue them."""
    continued = {stretch.parent for stretch in tree}
    levels: dict[int, list[int]] = {}
    depths: list[int] = []
    for i, stretch in enumerate(tree):
        depths.append(0 if stretch.parent is None else depths[stretch.parent] + 1)
        if i in continued:
            levels.setdefault(depths[i], []).append(i)
    for depth in sorted(levels):
        for batch in _budgeted(tree, levels[depth]):
            yield batch, True
    leaves = [i for i in range(len(tree)) if i not in continued]
    for batch in _budgeted(tree, leaves):
        yield batch, False


def _budgeted(tree: Sequence[Stretch], indices: Sequence[int]) -> Iterator[list[int]]:
    """The stretches sorted by length, longest first, in batches of at most `MAX_TOKENS`.

    Prefixes and stretches are padded apart. A batch holds stretches of much alike length.
    """
    batch: list[int] = []
    longest = widest = 0
    for i in sorted(indices, key=lambda i: (-len(tree[i].token_ids), -tree[i].start)):
        length, start = len(tree[i].token_ids), tree[i].start
        full = (len(batch) + 1) * (longest + max(widest, start)) > MAX_TOKENS
        if batch and (full or length < MIN_FILL * longest):
            yield batch
            batch = []
        if not batch:
            longest, widest = length, start
        batch.append(i)
        widest = max(widest, start)
    if batch:
        yield batch


def _mask(
    seen_BP: torch.Tensor, real_BT: torch.Tensor, device: torch.device
) -> torch.Tensor | None:
    """What attention may see; None where causality alone hides the padding: it stands behind."""
    if not seen_BP.numel():
        return None
    return torch.cat([seen_BP, real_BT], 1).long().to(device)


def right_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor, zeros behind them, and which of its entries are theirs."""
    real = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    padded = torch.zeros(real.shape, dtype=torch.long)
    padded[real] = torch.cat(list(rows))
    return padded, real


def _left_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with the zeros before them: the last of each row stands beside what follows."""
    padded, real = right_padded([row.flip(0) for row in rows])
    return padded.flip(1), real.flip(1)
