"""The teacher: the student's own model, conditioned on evidence that the student did not have."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mopd.config import TeacherSection
from mopd.scoring import (
    Scored,
    in_chunks,
    sampled_hidden,
    scaled_logits,
    shared_context_hidden,
)
from mopd.student import STUDENT, TEACHER, acting


class Teacher(Protocol):
    """Whoever can say how likely given tokens are at each sampled position."""

    def score(self, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
        """logprobs_NK of `ids_NK` at the sampled positions of the rows, in row order.

        Normalised over the whole vocabulary, at the sampling temperature, without a gradient.

        Raises:
            ValueError: `ids_NK` has another number of positions than the rows.
        """
        ...


class LocalTeacher:
    """The published teachers that live in the student's model: EMA adapter, base, live student."""

    def __init__(self, student: PeftModel, config: TeacherSection, temperature: float) -> None:
        self._student = student
        self._adapter = {"ema": TEACHER, "base": None, "live": STUDENT}[config.kind]
        self._temperature = temperature

    @torch.no_grad()
    def score(self, rows: Sequence[Scored], ids_NK: torch.Tensor) -> torch.Tensor:
        """See `Teacher.score`."""
        base = cast(PreTrainedModel, self._student.get_base_model())
        positions = sum(sum(row.mask) for row in rows)
        if positions != len(ids_NK):
            raise ValueError(
                f"asked for log-probabilities at {len(ids_NK)} positions, but the "
                f"{len(rows)} rows have {positions} sampled tokens"
            )
        # The library's getter has no annotations.
        head: torch.nn.Linear = base.get_output_embeddings()  # type: ignore[no-untyped-call]

        def gathered(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            logits = scaled_logits(head, hidden, self._temperature)
            return logits.log_softmax(-1).gather(-1, ids)

        with acting(self._student, self._adapter):  # the head may have an adapter, too
            if _worth_sharing(rows):
                hidden_NH = shared_context_hidden(base.base_model, base.config, rows)
            else:
                hidden_NH = sampled_hidden(self._student, rows)
            return in_chunks(gathered, head.out_features, hidden_NH, ids_NK)


def _worth_sharing(rows: Sequence[Scored]) -> bool:
    """Whether running each distinct context once saves more than the second forward costs.

    Measured with `benchmarks/teacher_scoring.py`: 1.3 times as fast where half of the contexts
    are distinct, 0.7 times where all are.
    """
    distinct = {tuple(row.context_ids) for row in rows}
    return 2 * len(distinct) <= len(rows)
