"""One run from its configuration to its summary: evaluate, train, evaluate."""

import os
import resource
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from agents.chat import Chat
from agents.pocket import TAUGHT
from agents.rollout import RolloutStats, rollout_groups
from agents.types import TrajectoryGroup
from envs.base import Split
from envs.tasks import draw_tasks, stable_seed
from mopd.config import Config
from mopd.engines import open_weights, refuse_engine, refuse_training, speaks_in_messages
from mopd.evaluate import Evaluation, UnscoredError, evaluate, gain, held_out_tasks
from mopd.interrupt import Interrupt
from mopd.kernels import refuse_kernels
from mopd.live import View
from mopd.objectives import Grpo, Mopd, Objective
from mopd.run_folder import RunFolder, trajectory_record
from mopd.student import (
    add_teacher_adapter,
    device_of,
    dtype_of,
    load_student,
    load_tokenizer,
    model_path,
    save_adapter,
)
from mopd.sync import Weights, synced
from mopd.teacher import LocalTeacher
from mopd.trainer import MOPDTrainer, Rollouts, StepRecord, step_metrics
from mopd.worlds import env_factory, task_source
from sandboxes.base import SandboxError

TINY = 50_000_000  # parameters under which a second CPU thread only costs


def preflight(config: Config) -> None:
    """Refuse a run that cannot work before anything is written or any weight is loaded.

    Raises:
        ValueError: with one line that says what, got, expected and cure.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this command trains in one process so far; "
            "start it without torchrun"
        )
    refuse_engine(config)
    refuse_training(config)
    preflight_rollouts(config, "train")
    preflight_rollouts(config, "held_out")
    # The teacher reads its prompt and a whole response.
    check_room(config, config.prompt.max_tokens if config.algo == "mopd" else 0)


def preflight_rollouts(config: Config, split: Split) -> None:
    """Refuse what cannot be played, as `preflight` does.

    Raises:
        ValueError: with one line that says what, got, expected and cure.
    """
    device = device_of(config.model)
    refuse_kernels(config.model, device, dtype_of(config.model, device))
    refuse_engine(config)
    env = task_source(config, split)
    messages, _ = env.reset(options={"task": env.task(0)})
    length = 0
    if not speaks_in_messages(config):
        chat = Chat(load_tokenizer(config.model), env.schemas())
        check_room(config, 0)
        chat.check()
        length = len(chat.prompt_ids(messages))
    if env.needs_sandbox:
        try:
            env.sandbox.run("")
        except SandboxError as error:
            raise ValueError(f"sandbox.backend={config.sandbox.backend}: {error}") from error
    env.close()
    if length >= config.rollout.max_context:
        raise ValueError(
            f"the first prompt of env {config.env.name} has {length} tokens, but "
            f"rollout.max_context is {config.rollout.max_context}; raise it"
        )


def check_room(config: Config, teacher_tokens: int) -> None:
    """The model must have positions for a transcript behind the teacher's prompt, if any."""
    model = AutoConfig.from_pretrained(model_path(config.model.name))
    positions = getattr(model, "max_position_embeddings", None)
    needed = config.rollout.max_context + teacher_tokens
    if positions is not None and needed > positions:
        teacher = f" and prompt.max_tokens={teacher_tokens}" if teacher_tokens else ""
        raise ValueError(
            f"{config.model.name} has {positions} positions, but rollout.max_context="
            f"{config.rollout.max_context}{teacher} can take {needed}; lower "
            f"{'one' if teacher else 'it'}"
        )


def run_experiment(
    config: Config, folder: RunFolder, view: View, *, interrupt: Interrupt, resume: bool
) -> None:
    """Train and evaluate; writes everything of the run's folder but its configuration.

    With `resume`, goes on from the last whole checkpoint. Where `interrupt` asks for it, the
    step in progress is finished and saved, and no summary is written.
    """
    started = time.monotonic()
    quiet_libraries()
    if config.model.name == "pocket" and config.env.name not in TAUGHT:
        view.note(
            f"the pocket student was taught {', '.join(TAUGHT)} only: expect no success in "
            f"{config.env.name}, or give --model"
        )
    view.phase(f"loading {config.model.name}")
    tokenizer = load_tokenizer(config.model)
    student = load_student(config.model, config.lora, seed=config.seed)
    if device_of(config.model).type == "cpu" and student.num_parameters() < TINY:
        torch.set_num_threads(1)
    if config.algo == "mopd" and config.teacher.kind == "ema":
        add_teacher_adapter(student)
    chat = Chat(tokenizer, task_source(config, "train").schemas())
    with open_weights(config, chat, student, folder.path / "sync") as weights:
        summary = _train(config, folder, view, chat, student, weights, interrupt, resume)
    if summary is None:
        return
    summary |= _costs(started)
    folder.write_summary(summary)
    view.summary(summary)
    view.note(f"everything is in {folder.path}")


def _train(
    config: Config,
    folder: RunFolder,
    view: View,
    chat: Chat,
    student: PeftModel,
    weights: Weights,
    interrupt: Interrupt,
    resume: bool,
) -> dict[str, Any] | None:
    """Evaluate, train, evaluate; the summary, or None where the run was stopped before its end."""
    make_env = {split: env_factory(config, split) for split in ("train", "held_out")}
    train_env, eval_env = task_source(config, "train"), task_source(config, "held_out")
    agent = weights.agent
    tasks = held_out_tasks(eval_env, config.eval.tasks)

    def sampling(step: int) -> AbstractContextManager[None]:
        return synced(weights, student, f"step-{step}", config.rollout.temperature, view.note)

    def evaluated(name: str, label: str, step: int) -> Evaluation:
        view.phase(f"evaluating {label}: {len(tasks)} held-out tasks x {config.eval.samples}")

        def played() -> tuple[Evaluation, tuple[TrajectoryGroup, ...]]:
            with sampling(step):
                return evaluate(agent, make_env["held_out"], tasks, config)

        try:
            evaluation, groups = played()
        except UnscoredError as error:
            view.note(f"{error}; playing all of them once more")
            evaluation, groups = played()
        folder.write_eval(
            name,
            {
                **evaluation.as_dict(),
                "successes": evaluation.successes,
                "rollouts": [trajectory_record(t) for g in groups for t in g.trajectories],
            },
        )
        view.evaluated(label, evaluation.as_dict())
        return evaluation

    def play(step: int, stats: RolloutStats) -> tuple[TrajectoryGroup, ...]:
        with sampling(step - 1):
            return rollout_groups(
                agent,
                make_env["train"],
                draw_tasks(train_env, config.seed, step, config.rollout.tasks_per_step),
                config.rollout.group_size,
                seed=stable_seed(config.seed, "rollouts", step),
                max_new_tokens=config.rollout.max_new_tokens,
                max_context=config.rollout.max_context,
                tool_workers=config.rollout.tool_workers,
                stats=stats,
            )

    def roll_out(step: int) -> Rollouts:
        stats, begun = RolloutStats(), time.monotonic()
        groups = play(step, stats)
        if errors := _errors(groups):
            lost = f"step {step}: {len(errors)} of {_rollouts_per_step(config)} rollouts errored"
            if len(errors) == _rollouts_per_step(config):
                view.note(f"{lost}, such as: {errors[0]}; playing them once more")
                groups = play(step, stats)
            else:
                view.note(f"{lost} and are left out, such as: {errors[0]}")
        _refuse_broken_world(groups)
        return Rollouts(groups, time.monotonic() - begun, stats.tool_wait_s)

    def on_step(record: StepRecord) -> None:
        metrics = step_metrics(record)
        folder.write_rollouts(record.step, _rollout_records(record))
        folder.append_metrics(metrics)
        view.step({**metrics, **metrics["timing"]}, config.steps)
        if config.eval.every and record.step % config.eval.every == 0 < config.steps - record.step:
            evaluated(f"step-{record.step:06d}", f"after step {record.step}", record.step)

    last = _last_checkpoint(folder) if resume else None
    folder.truncate_after(_step_of(last) if last else 0)
    stored = folder.read_eval("before") if resume else None
    before = _stored(stored) if stored else evaluated("before", "before training", 0)
    trainer = MOPDTrainer(
        student,
        config,
        objective_of(config, chat, student),
        roll_out=roll_out,
        on_step=on_step,
        arguments=training_arguments(config, folder),
        callbacks=[_Checkpoints(folder, config.checkpoint.keep), _Stop(interrupt)],
    )
    trainer.remove_callback(PrinterCallback)
    if not interrupt.requested:
        view.phase(f"training: {config.steps} steps of {_rollouts_per_step(config)} rollouts")
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.state.global_step < config.steps:
        return None
    save_adapter(student, folder.adapter)
    after = evaluated("after", "after training", config.steps)
    return {
        "env": config.env.name,
        "level": train_env.level if train_env.rows is None else None,
        "algo": config.algo,
        "model": config.model.name,
        "seed": config.seed,
        "steps": config.steps,
        "rollouts": config.steps * _rollouts_per_step(config),
        "eval_before": before.as_dict(),
        "eval_after": after.as_dict(),
        "gain": _as_dict(gain(before, after)),
        "resumed_from_step": _step_of(last) if last else None,
    }


def objective_of(config: Config, chat: Chat, student: PeftModel) -> Objective:
    """The object behind `--algo`."""
    if config.algo == "grpo":
        return Grpo(config)
    return Mopd(config, chat, LocalTeacher(student, config.teacher, config.rollout.temperature))


def training_arguments(config: Config, folder: RunFolder) -> TrainingArguments:
    """What the Trainer needs to know; everything else is ours."""
    optim = config.optim
    schedule = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
    return TrainingArguments(
        output_dir=str(folder.checkpoints / "partial"),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=-(-_rollouts_per_step(config) // optim.micro_batch),
        learning_rate=optim.lr,
        lr_scheduler_type=schedule,
        warmup_steps=optim.warmup_steps,
        adam_beta2=0.99,
        max_grad_norm=optim.max_grad_norm,
        save_steps=config.checkpoint.every,
        logging_strategy="no",
        report_to=[],
        use_cpu=device_of(config.model).type == "cpu",
        seed=config.seed,
        ignore_data_skip=True,  # the data is a clock
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


class _Checkpoints(TrainerCallback):
    """A checkpoint gets its name when it is whole; old ones go."""

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:  # what a run left that was killed while it saved
            shutil.rmtree(str(args.output_dir), ignore_errors=True)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        name = f"checkpoint-{state.global_step}"
        target = self._folder.checkpoints / name
        shutil.rmtree(target, ignore_errors=True)
        (Path(str(args.output_dir)) / name).rename(target)
        for old in _whole_checkpoints(self._folder)[: -self._keep]:
            shutil.rmtree(old)


class _Stop(TrainerCallback):
    """Ctrl-C: the step is finished, saved, and the last."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self._interrupt.requested:
            control.should_save = control.should_training_stop = True


def _whole_checkpoints(folder: RunFolder) -> list[Path]:
    return sorted(folder.checkpoints.glob("checkpoint-*"), key=_step_of)


def _last_checkpoint(folder: RunFolder) -> Path | None:
    return next(reversed(_whole_checkpoints(folder)), None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _stored(record: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        successes=tuple(tuple(s) for s in record["successes"]),
        samples=record["samples"],
        stop_reasons=record["stop_reasons"],
        mean_turns=record["mean_turns"],
    )


def _rollout_records(record: StepRecord) -> list[dict[str, Any]]:
    rows = {(row.group, row.trajectory.index): row for row in record.rows}
    records = []
    for number, group in enumerate(record.rollouts.groups):
        for trajectory in group.trajectories:
            row = rows.get((number, trajectory.index))
            extra: dict[str, Any] = {"group": number}
            if row is not None:
                extra |= {"peers": row.peers, "advantage": row.advantage}
                extra["teacher_logprobs"] = record.teacher_logprobs.get((number, trajectory.index))
            records.append(trajectory_record(trajectory, **extra))
    return records


def _errors(groups: Sequence[TrajectoryGroup]) -> list[str]:
    return [t.error for group in groups for t in group.trajectories if t.errored]


def _refuse_broken_world(groups: Sequence[TrajectoryGroup]) -> None:
    errors = _errors(groups)
    if len(errors) == sum(len(group.trajectories) for group in groups):
        raise RuntimeError(f"every rollout of the step errored: {errors[0]}")


def _rollouts_per_step(config: Config) -> int:
    return config.rollout.tasks_per_step * config.rollout.group_size


def _as_dict(estimate: Any) -> dict[str, float]:
    return {"mean": estimate.mean, "ci_low": estimate.ci_low, "ci_high": estimate.ci_high}


def _costs(started: float) -> dict[str, float]:
    """Wall and processor time of this process and its children, and its own largest memory."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_rss_mb": own.ru_maxrss / 1024,
    }


def quiet_libraries() -> None:
    """Their progress bars and warnings would tear the live display."""
    # PEFT 0.21 asks transformers 5.2x for a property that was renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    library: Any = transformers_logging  # its functions have no annotations
    library.set_verbosity_error()
    library.disable_progress_bar()
