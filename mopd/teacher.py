"""The teacher: the student's own model, conditioned on evidence that the student did not have."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from mopd.config import TeacherSection
from mopd.head import logprobs_at
from mopd.scoring import Scored, sampled_hidden, shared_hidden
from mopd.student import STUDENT, TEACHER, acting
from mopd.tree_forward import can_share


class Teacher(Protocol):
    """Whoever can say how likely given tokens are at each sampled position."""

    def expect(self, groups: Sequence[Sequence[Scored]]) -> None:
        """The rows that a step will score, in whatever parts; those of a group begin alike."""
        ...

    def score(self, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
        """logprobs_NK of `ids_NK` at the sampled positions of the rows, in row order.

        Normalised over the whole vocabulary, at the sampling temperature, without a gradient.

        Raises:
            ValueError: `ids_NK` has another number of positions than the rows.
        """
        ...


class LocalTeacher:
    """The published teachers that live in the student's model: EMA adapter, base, live student.

    Where a micro-batch holds a part of a group, the rest of the group is run with it: a prefix
    that they share is computed once, and what waits are the hidden states of sampled tokens.
    """

    def __init__(self, student: PeftModel, config: TeacherSection, temperature: float) -> None:
        self._student = student
        self._base = cast(PreTrainedModel, student.get_base_model())
        self._adapter = {"ema": TEACHER, "base": None, "live": STUDENT}[config.kind]
        self._temperature = temperature
        self._groups: dict[Scored, Sequence[Scored]] = {}
        self._aside: dict[Scored, torch.Tensor] = {}

    def expect(self, groups: Sequence[Sequence[Scored]]) -> None:
        """See `Teacher.expect`. Until the next call the weights must stay as they are."""
        self._groups = {row: group for group in groups for row in group}
        self._aside = {}

    @torch.no_grad()
    def score(self, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
        """See `Teacher.score`."""
        positions = sum(sum(row.mask) for row in rows)
        if positions != len(ids_NK):
            raise ValueError(
                f"asked for log-probabilities at {len(ids_NK)} positions, but the "
                f"{len(rows)} rows have {positions} sampled tokens"
            )
        # The library's getter has no annotations.
        head: torch.nn.Linear = self._base.get_output_embeddings()  # type: ignore[no-untyped-call]
        with acting(self._student, self._adapter):  # the head may have an adapter, too
            if can_share(self._base.config) and not _sharded(self._base):
                hidden_NH = self._shared_hidden(rows)
            else:
                hidden_NH = sampled_hidden(self._student, rows)
            return logprobs_at(head, hidden_NH, ids_NK, self._temperature)

    def _shared_hidden(self, rows: Sequence[Scored]) -> torch.Tensor:
        """hidden_NH of the rows; that of the others of their groups is put aside."""
        known = {row: self._aside[row] for row in rows if row in self._aside}
        missing = [row for row in rows if row not in known]
        # Twins are one: equal tokens behind equal tokens have equal states.
        run = list(dict.fromkeys(mate for row in missing for mate in self._groups.get(row, (row,))))
        if run:
            hidden_NH = shared_hidden(self._base.base_model, self._base.config, run)
            pieces = torch.split(hidden_NH, [sum(row.mask) for row in run])
            known |= zip(run, pieces, strict=True)
            self._aside = {row: piece for row, piece in known.items() if row in self._groups}
        return torch.cat([known[row] for row in rows])


def _sharded(model: torch.nn.Module) -> bool:
    """Whether the weights lie on several ranks (FSDP, or ZeRO's third stage).

    Ranks that differ in their number of forward passes would then wait for each other for ever.
    """
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
