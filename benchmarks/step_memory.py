"""Memory of a training step over the model, for growing groups and one size of micro-batch.

`python benchmarks/step_memory.py [--groups 4 16 64] [--micro-batch N] [--json FILE]`: a random
model of Gemma 3 270M's shape (262,144 tokens of vocabulary), loss and gradient of each
micro-batch. Beside it the size of one tensor of logits for the group, which is never made.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peak import peak_gib
from peft import LoraConfig, PeftModel, get_peft_model
from teacher_scoring import GEMMA
from transformers import AutoModelForCausalLM

from agents.types import Trajectory
from envs.types import StopReason, Task, Verdict
from mopd.config import Config
from mopd.objectives import Mopd, Row
from mopd.scoring import sampled_hidden
from mopd.student import STUDENT, add_teacher_adapter
from mopd.teacher import LocalTeacher


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/step_memory.py")
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--context", type=int, default=256, help="tokens of a teacher's prompt")
    parser.add_argument("--response", type=int, default=32, help="tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    student = random_student()
    print(f"micro-batches of {args.micro_batch}; GiB over the model with its adapters")
    print(f"{'group size':>11}{'CPU s':>8}{'peak GiB':>10}{'logits of the group GiB':>25}")
    results = []
    for size in args.groups:
        rows = group(size, args.prompt, args.context, args.response)
        with peak_gib() as peak:
            started = time.process_time()
            step(student, rows, args.micro_batch)
            seconds, used = time.process_time() - started, peak()
        logits = size * args.response * GEMMA.vocab_size * 4 / 2**30
        print(f"{size:>11}{seconds:>8.1f}{used:>10.2f}{logits:>25.2f}", flush=True)
        results.append(
            {"group_size": size, "cpu_s": seconds, "peak_gib": used, "logits_gib": logits}
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def random_student() -> PeftModel:
    """As `load_student` makes one, without a file to load."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(GEMMA)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    student = get_peft_model(base, lora, adapter_name=STUDENT)
    add_teacher_adapter(student)
    return student


def group(size: int, prompt: int, context: int, response: int) -> list[Row]:
    """Rollouts of random tokens that share the teacher's prompt."""
    rng = random.Random(0)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, GEMMA.vocab_size) for _ in range(length))

    question, taught = draw(prompt), draw(context)
    mask = (False,) * prompt + (True,) * response
    return [
        Row(
            Trajectory(
                task=Task("random", "", ""),
                index=i,
                token_ids=(*question, *draw(response)),
                sampled_mask=mask,
                logprobs=(0.0,) * len(mask),
                messages=(),
                verdict=Verdict(1.0, True),
                stop_reason=StopReason.ANSWERED,
                adapter_version="",
            ),
            group=0,
            teacher_ids=taught,
        )
        for i in range(size)
    ]


def step(student: PeftModel, rows: list[Row], micro_batch: int) -> None:
    """What the trainer does between the rollouts and the optimizer."""
    config = Config()
    teacher = LocalTeacher(student, config.teacher, config.rollout.temperature)
    objective = Mopd(config, None, teacher)  # type: ignore[arg-type]  # no prompt is rendered
    teacher.expect([[row.taught for row in rows]])
    head = student.get_output_embeddings()
    for start in range(0, len(rows), micro_batch):
        batch = rows[start : start + micro_batch]
        hidden_NH = sampled_hidden(student, [row.scored for row in batch])
        objective.loss(batch, hidden_NH, head).loss_N.sum().backward()
    student.zero_grad()


if __name__ == "__main__":
    main()
