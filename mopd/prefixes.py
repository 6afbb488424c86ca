"""Token sequences that begin alike as a tree of stretches, so that each prefix is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

# Where fewer tokens are saved, another forward pass may cost as much: on the pocket student 32 to
# 256 took the same time (a larger model gains from shorter ones, but little).
MIN_SAVED = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of one or more sequences, behind the tokens of `parent` and its parents.

    `start` is the position of the first token in every sequence of `members`; `parent` is an
    index into the tree, None at a sequence's beginning.
    """

    start: int
    token_ids: tuple[int, ...]
    parent: int | None
    members: tuple[int, ...]

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.token_ids)


def prefix_tree(sequences: Sequence[tuple[int, ...]]) -> tuple[Stretch, ...]:
    """Stretches that hold every token of every sequence, parents before their children.

    A common beginning is one stretch where that saves at least `MIN_SAVED` tokens; shorter ones
    are repeated. Equal sequences are always one, empty ones are in none.
    """
    tree: list[Stretch] = []

    def grow(members: Sequence[int], start: int, parent: int | None) -> None:
        alike = _common_length([sequences[i] for i in members])
        longest = max(len(sequences[i]) for i in members)
        ended = [i for i in members if len(sequences[i]) == alike]
        if alike == longest or (alike - start) * (len(members) - 1) >= MIN_SAVED:
            tree.append(Stretch(start, sequences[members[0]][start:alike], parent, tuple(members)))
            start, parent = alike, len(tree) - 1
        elif ended and alike > start:
            tree.append(Stretch(start, sequences[ended[0]][start:alike], parent, tuple(ended)))
        branches: dict[int, list[int]] = {}
        for i in members:
            if len(sequences[i]) > alike:
                branches.setdefault(sequences[i][alike], []).append(i)
        for branch in branches.values():
            grow(branch, start, parent)

    members = [i for i, sequence in enumerate(sequences) if sequence]
    if members:
        grow(members, 0, None)
    return tuple(tree)


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all have in common: as many as the smallest and the largest."""
    low, high = min(sequences), max(sequences)
    pairs = enumerate(zip(low, high, strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(low))
