"""One optimizer step: its loss, its gradient, its metrics, and several processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback

import envs
from agents import pocket
from agents.chat import Chat
from agents.rollout import rollout_groups
from agents.scripted import ScriptedAgent
from agents.types import Trajectory, TrajectoryGroup
from envs.types import StopReason, Task, Verdict
from mopd.config import Config, OptimSection, RolloutSection
from mopd.experiment import objective_of, training_arguments
from mopd.objectives import Row
from mopd.run_folder import RunFolder
from mopd.student import add_teacher_adapter, load_student
from mopd.trainer import MOPDTrainer, Rollouts, StepRecord, step_metrics

ROOT = Path(__file__).parent.parent
TASKS = (Task("sum", "What is 17 + 4?", "21"), Task("product", "What is 3 * 7?", "21"))
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "17 + 4"}}\n</tool_call>'
SCRIPTS = (
    (CALL, CALL, "The answer is \\boxed{21}."),
    (CALL, "So it is \\boxed{21}."),
    (CALL.replace("+", "-"), "The answer is \\boxed{13}."),
    ("It is \\boxed{4}.",),
)


def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(pocket.PATH), envs.make("calculator").schemas())


def scripted_groups(tasks: Sequence[Task] = TASKS) -> tuple[TrajectoryGroup, ...]:
    """Two right and two wrong rollouts of each task, of different lengths."""
    return rollout_groups(
        ScriptedAgent(chat(), lambda episode, turn: SCRIPTS[episode % 4][turn]),
        lambda: envs.make("calculator"),
        tasks,
        len(SCRIPTS),
        seed=0,
        max_new_tokens=200,
        max_context=600,
    )


class _Gradients(TrainerCallback):
    """Keeps the gradient of each step as it reaches the optimizer."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def train(
    folder: Path, config: Config, roll_out: Callable[[int], Rollouts]
) -> tuple[list[StepRecord], list[dict[str, torch.Tensor]], PeftModel]:
    """The records and gradients of a training on given rollouts, and the student it made."""
    student = load_student(config.model, config.lora, seed=0)
    if config.algo == "mopd":
        add_teacher_adapter(student)
    records: list[StepRecord] = []
    gradients = _Gradients()
    trainer = MOPDTrainer(
        student,
        config,
        objective_of(config, chat(), student),
        roll_out=roll_out,
        on_step=records.append,
        arguments=training_arguments(config, RunFolder(folder)),
        callbacks=[gradients],
    )
    trainer.train()
    return records, gradients.steps, student


@pytest.mark.parametrize("algo", ["mopd", "grpo"])
def test_loss_and_gradient_do_not_depend_on_how_rows_are_sliced(tmp_path: Path, algo: str) -> None:
    groups = scripted_groups()

    def trained(micro_batch: int) -> Any:
        config = Config(
            algo=algo,
            steps=2,
            rollout=RolloutSection(tasks_per_step=2, group_size=4),
            # Adam turns noise in tiny gradients into steps of the size of the learning rate.
            optim=OptimSection(micro_batch=micro_batch, lr=1e-5),
        )
        return train(tmp_path / str(micro_batch), config, lambda _: Rollouts(groups, 0.0, 0.0))

    records, gradients, student = trained(16)
    assert [r.step for r in records] == [1, 2]
    assert all(g.abs().max() > 0 for n, g in gradients[0].items() if "lora_B" in n)
    for micro_batch in (1, 3):
        others, other_gradients, other = trained(micro_batch)
        for record, sliced in zip(records, others, strict=True):
            assert sliced.loss == pytest.approx(record.loss, rel=1e-5)
            assert sliced.teacher_logprobs.keys() == record.teacher_logprobs.keys()
            for key, logprobs in record.teacher_logprobs.items():
                assert sliced.teacher_logprobs[key] == pytest.approx(logprobs, abs=1e-4)
        for whole, parts in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
        named = dict(other.named_parameters())
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(named[name], parameter, atol=1e-6, rtol=0)


def test_a_step_without_any_gradient_is_a_step(tmp_path: Path) -> None:
    """All rollouts of GRPO's groups alike: nothing to learn, and nothing moves."""
    alike = tuple(
        TrajectoryGroup(group.task, group.trajectories[:2]) for group in scripted_groups()
    )
    config = Config(algo="grpo", steps=1, rollout=RolloutSection(tasks_per_step=2, group_size=2))
    (record,), _, student = train(tmp_path, config, lambda _: Rollouts(alike, 0.0, 0.0))
    assert record.loss == 0.0
    for name, parameter in student.named_parameters():
        assert "lora_B" not in name or not parameter.any()


def test_step_metrics_by_hand() -> None:
    def trajectory(index: int, reward: float | None) -> Trajectory:
        errored = reward is None
        return Trajectory(
            task=TASKS[0],
            index=index,
            token_ids=(1, 2, 3, 4),
            sampled_mask=(False, True, True, False),
            logprobs=(0.0, -1.0, -1.0, 0.0),
            messages=(),
            verdict=None if reward is None else Verdict(reward, reward == 1.0),
            stop_reason=StopReason.ERROR if errored else StopReason.ANSWERED,
            adapter_version="",
        )

    def group(*rewards: float | None) -> TrajectoryGroup:
        return TrajectoryGroup(TASKS[0], tuple(trajectory(i, r) for i, r in enumerate(rewards)))

    cut_off = replace(trajectory(1, 0.0), stop_reason=StopReason.MAX_TURNS)
    groups = (
        group(1.0, 0.0, 0.5, 1.0),  # mixed
        group(1.0, 1.0, 1.0, None),  # all successes but for a broken sandbox
        TrajectoryGroup(TASKS[0], (trajectory(0, 0.0), cut_off, *group(0, 0).trajectories)),
        group(None, None, None, None),  # says nothing: no share of the groups
    )  # fmt: skip
    rows = tuple(
        Row(
            t,
            number,
            teacher_ids=(1,),
            peers=(0,) if number == 0 else (),
            evidence=int(number == 0),
            truncated=t.index == 2,
        )
        for number, g in enumerate(groups[:2])
        for t in g.trajectories
        if not t.errored
    )
    # Of the 4 pairs in the mixed group, 3 are in the right order.
    scores = {(0, 0): -1.0, (0, 1): -2.0, (0, 2): -4.0, (0, 3): -3.0, (1, 0): -9.0}
    record = StepRecord(7, Rollouts(groups, 2.0, 0.5), rows, started=0.0, loss=0.25)
    record.teacher_logprobs.update({place: [score] for place, score in scores.items()})
    got = step_metrics(record)
    assert {key: got[key] for key in got if key not in ("stop_reasons", "timing")} == {
        "step": 7,
        "loss": 0.25,
        "success_rate": pytest.approx(5 / 11),
        "reward": pytest.approx(5.5 / 11),
        "mixed": pytest.approx(1 / 3),
        "all_success": pytest.approx(1 / 3),
        "all_failure": pytest.approx(1 / 3),
        "teacher_auc": pytest.approx(3 / 4),
        "evidence": pytest.approx(4 / 7),
        "participating": pytest.approx(7 / 16),
        "truncated_prompts": pytest.approx(2 / 7),
        "errors": pytest.approx(5 / 16),
        "rollouts": 16,
        "sampled_tokens": 32,
    }
    stops = {reason: share for reason, share in got["stop_reasons"].items() if share}
    assert stops == {"answered": 10 / 16, "max_turns": 1 / 16, "error": 5 / 16}
    assert got["timing"]["tokens_per_s"] == 16.0
    assert got["timing"]["tool_wait_s"] == 0.5


def distributed_config(algo: str) -> Config:
    return Config(
        algo=algo,
        steps=2,
        rollout=RolloutSection(tasks_per_step=2, group_size=4),
        optim=OptimSection(micro_batch=4, lr=1e-5),  # see above
    )


WORKER = """
import sys
from pathlib import Path
import torch.distributed as dist
from safetensors.torch import save_file
from mopd.trainer import Rollouts
from test_mopd_trainer import TASKS, distributed_config, scripted_groups, train

out, algo, shares = Path(sys.argv[1]), sys.argv[2], [int(n) for n in sys.argv[3:]]

def roll_out(step):
    rank = dist.get_rank()
    tasks = TASKS[sum(shares[:rank]) :][: shares[rank]]
    return Rollouts(scripted_groups(tasks) if tasks else (), 0.0, 0.0)

_, _, student = train(out, distributed_config(algo), roll_out)
trained = {n: p.detach() for n, p in student.named_parameters() if p.requires_grad}
save_file(trained, out / f"{dist.get_rank()}.safetensors")
"""


@pytest.mark.parametrize(
    ("algo", "shares"),
    # Which peers a teacher sees depends on a group's place among those of its rank, so that
    # mopd is compared where one rank has them all.
    [("grpo", ("1", "1")), ("mopd", ("2", "0"))],
)
def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, algo: str, shares: tuple[str, str]
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path), algo, *shares],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    groups = scripted_groups()
    _, _, student = train(
        tmp_path / "one", distributed_config(algo), lambda _: Rollouts(groups, 0.0, 0.0)
    )
    one = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert one.keys() == first.keys() == second.keys()
    for name, weights in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weights.detach(), atol=1e-6, rtol=0)
