"""`SlotCache`: a KV cache whose rows have lengths of their own, without padding or holes."""

from typing import Any

import torch
from transformers import Cache

LENGTH_BLOCK = 128  # positions; growing copies the cache, so that it grows seldom
READ_BLOCK = 16  # what attention reads is cut to a multiple: fewer shapes, aligned masks


class SlotCache(Cache):
    """Keys and values by (slot, position): a token's place is its position in the transcript.

    Before a forward pass `aim` says where its tokens belong. What stands behind a row's own length
    is left over and never attended to, so that a row joins, leaves or is overwritten at no cost.
    Sliding layers keep every position, too: their window is a matter of the mask.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])  # the states are here: transformers' layers share one length
        self.slots = self.length = 0  # what is allocated
        # Of each layer, [slots, heads, positions, size of a head].
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def aim(self, slots_N: torch.Tensor | None, positions_NT: torch.Tensor, reach: int) -> int:
        """Say where the next forward pass writes and how far it reads.

        Args:
            slots_N: slots of the rows; None: the first N.
            positions_NT: of the tokens.
            reach: one more than the last position.

        Returns:
            How many positions attention will see: `reach` and some that must be masked.
        """
        self.grow(0 if slots_N is not None else len(positions_NT), reach)
        self._positions_NT = positions_NT
        count = len(positions_NT)
        slots = slots_N if slots_N is not None else torch.arange(count, device=positions_NT.device)
        self._slots_N1 = slots[:, None]
        self._read = slice(count) if slots_N is None else slots_N  # a slice is read uncopied
        self._reach = min(-(-reach // READ_BLOCK) * READ_BLOCK, self.length)
        return self._reach

    def grow(self, slots: int, length: int) -> None:
        """Make room for so many slots and positions."""
        if slots <= self.slots and length <= self.length:
            return
        self.slots = max(slots, self.slots)
        self.length = max(-(-length // LENGTH_BLOCK) * LENGTH_BLOCK, self.length)
        for layer in range(len(self._keys)):  # one at a time: the old states go as the new come
            self._keys[layer] = _resized(self._keys[layer], self.slots, self.length)
            self._values[layer] = _resized(self._values[layer], self.slots, self.length)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's keys and values; return what its attention may read."""
        if layer_idx == len(self._keys):
            self._keys.append(_empty(key_states, self.slots, self.length))
            self._values.append(_empty(value_states, self.slots, self.length))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._slots_N1, :, self._positions_NT] = key_states.transpose(1, 2)
        values[self._slots_N1, :, self._positions_NT] = value_states.transpose(1, 2)
        return keys[self._read, :, : self._reach], values[self._read, :, : self._reach]

    def copy(self, source: int, target_N: torch.Tensor, length: int) -> None:
        """Copy a row's first positions to other slots."""
        for states in (*self._keys, *self._values):
            states[target_N, :, :length] = states[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Let two rows of at most `length` positions change places."""
        for states in (*self._keys, *self._values):
            kept = states[one, :, :length].clone()
            states[one, :, :length] = states[other, :, :length]
            states[other, :, :length] = kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Allocated positions, as rows have no length in common."""
        return self.length


def _empty(like: torch.Tensor, slots: int, length: int) -> torch.Tensor:
    # Zeros: what is masked is multiplied by 0, and a NaN would survive that.
    return like.new_zeros(slots, like.size(1), length, like.size(3))


def _resized(states: torch.Tensor, slots: int, length: int) -> torch.Tensor:
    old_slots, heads, old_length, size = states.shape
    grown = states.new_empty(slots, heads, length, size)
    grown[:old_slots, :, :old_length] = states
    grown[:old_slots, :, old_length:] = 0
    grown[old_slots:] = 0
    return grown
