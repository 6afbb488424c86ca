"""`MOPDTrainer`: roll out, score and update once a step, inside transformers' Trainer."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agents.types import TrajectoryGroup
from envs.types import StopReason
from mopd.config import Config
from mopd.objectives import Objective, Row
from mopd.scoring import Scored, sampled_hidden
from mopd.statistics import task_aucs
from mopd.student import blend_teacher


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The groups of one step and what they cost."""

    groups: tuple[TrajectoryGroup, ...]
    seconds: float
    tool_wait_s: float


@dataclass(slots=True)
class StepRecord:
    """What one step saw and did; filled while it runs, handed to `on_step` at its end."""

    step: int
    rollouts: Rollouts
    rows: tuple[Row, ...]
    started: float
    loss: float = 0.0
    # The teacher's log-probability of each sampled token of a rollout, by (group, index).
    teacher_logprobs: dict[tuple[int, int], list[float]] = field(default_factory=dict)


class MOPDTrainer(Trainer):
    """Strictly on-policy: every optimizer step rolls out, scores and updates once.

    `roll_out(step)` gives the groups of a step; `objective` says which rows take part and what
    their tokens cost; `on_step(record)` is called after each optimizer step.
    """

    # compute_loss divides by the tokens of the whole step itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        student: PeftModel,
        config: Config,
        objective: Objective,
        *,
        roll_out: Callable[[int], Rollouts],
        on_step: Callable[[StepRecord], None],
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.config = config
        self.objective: Objective = objective
        self.roll_out, self.on_step = roll_out, on_step
        self.record: StepRecord | None = None
        steps = _Steps(config.steps * arguments.gradient_accumulation_steps)
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=steps,
            callbacks=[_EndOfStep(self), *callbacks],
        )

    def get_train_dataloader(self) -> DataLoader[int]:
        """A clock: tasks depend on the step's number alone, so that a resumed run equals."""
        # Typed by the Trainer as anything that it takes; ours is `_Steps`.
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=list)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Once an optimizer step: roll out, choose rows, slice into micro-batches.

        Returns exactly `num_batches` micro-batches (some may be empty) and the number of
        participating tokens over all ranks.
        """
        super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step + 1
        started = time.monotonic()
        rollouts = self.roll_out(step)
        rows = self.objective.rows(rollouts.groups, step)
        self.record = StepRecord(step, rollouts, rows, started)
        tokens = torch.tensor(float(sum(r.trajectory.sampled_tokens for r in rows)), device=device)
        tokens = self.accelerator.gather(tokens).sum().clamp(min=1.0)
        live = [row for row in rows if not row.inert]
        size = -(-len(live) // num_batches) if live else 1
        batches = [{"rows": tuple(live[i * size : (i + 1) * size])} for i in range(num_batches)]
        return batches, tokens

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the token losses of a micro-batch over the tokens of the whole step."""
        rows: tuple[Row, ...] = inputs["rows"]
        record = self.record
        if record is None or num_items_in_batch is None:
            raise RuntimeError("compute_loss() outside a training step")
        if not rows:
            # DDP reduces what went through its forward: a rank that skips it leaves others waiting.
            return sampled_hidden(model, [Scored((0,), (0,), (True,))]).sum() * 0.0
        head: torch.nn.Linear = self.accelerator.unwrap_model(model).get_output_embeddings()
        hidden_NH = sampled_hidden(model, [row.scored for row in rows])
        token_loss = self.objective.loss(rows, hidden_NH, head)
        loss = token_loss.loss_N.sum() / num_items_in_batch
        record.loss += float(loss.detach())
        if token_loss.teacher_logprobs_N is not None:
            sizes = [row.trajectory.sampled_tokens for row in rows]
            scores = torch.split(token_loss.teacher_logprobs_N, sizes)
            for row, logprobs in zip(rows, scores, strict=True):
                record.teacher_logprobs[row.group, row.trajectory.index] = logprobs.tolist()
        ranks: int = self.accelerator.num_processes
        return loss * ranks  # DDP averages over them

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the inputs are rollouts, not tensors."""
        return 0


class _EndOfStep(TrainerCallback):
    """Moves the EMA teacher, then hands the step's record on."""

    def __init__(self, trainer: MOPDTrainer) -> None:
        self._trainer = trainer

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        trainer = self._trainer
        config = trainer.config
        if config.algo == "mopd" and config.teacher.kind == "ema":
            blend_teacher(trainer.accelerator.unwrap_model(trainer.model), config.teacher.ema_rate)
        if trainer.record is not None:
            trainer.on_step(trainer.record)


class _Steps(Dataset[int]):
    """Numbers of micro-batches; the Trainer wants a dataset with a length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def step_metrics(record: StepRecord) -> dict[str, Any]:
    """One line of `metrics.jsonl`. Everything but `timing` is equal in a resumed run."""
    groups = record.rollouts.groups
    played = [t for group in groups for t in group.trajectories]
    valid = [t for t in played if t.verdict is not None]
    shares = [
        [t.verdict.success for t in group.trajectories if t.verdict is not None] for group in groups
    ]
    shares = [s for s in shares if s]
    scores: list[list[float]] = [[] for _ in groups]
    labels: list[list[bool]] = [[] for _ in groups]
    for row in record.rows:
        logprobs = record.teacher_logprobs.get((row.group, row.trajectory.index))
        if logprobs and row.trajectory.verdict is not None:
            scores[row.group].append(_mean(logprobs))
            labels[row.group].append(row.trajectory.verdict.success)
    aucs = task_aucs(scores, labels)
    tokens = sum(t.sampled_tokens for t in played)
    seconds = time.monotonic() - record.started
    return {
        "step": record.step,
        "loss": record.loss,
        "success_rate": _mean([float(t.verdict.success) for t in valid if t.verdict]),
        "reward": _mean([t.reward for t in valid]),
        "mixed": _mean([float(any(s) and not all(s)) for s in shares]),
        "all_success": _mean([float(all(s)) for s in shares]),
        "all_failure": _mean([float(not any(s)) for s in shares]),
        "teacher_auc": _mean(aucs) if aucs else None,
        "evidence": _mean([float(row.evidence > 0) for row in record.rows]),
        "participating": len(record.rows) / max(len(played), 1),
        "truncated_prompts": _mean([float(row.truncated) for row in record.rows]),
        "errors": _mean([float(t.errored) for t in played]),
        "rollouts": len(played),
        "sampled_tokens": tokens,
        "stop_reasons": {
            reason.value: _mean([float(t.stop_reason is reason) for t in played])
            for reason in StopReason
        },
        "timing": {
            "seconds": seconds,
            "rollout_s": record.rollouts.seconds,
            "tool_wait_s": record.rollouts.tool_wait_s,
            "tokens_per_s": tokens / max(record.rollouts.seconds, 1e-9),
        },
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
