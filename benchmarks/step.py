"""A whole training step on a single-turn task, beside TRL's SDPOTrainer doing the same work.

`python benchmarks/step.py [--steps N] [--vocabulary N] [--response N] [--json FILE]` (needs trl).
Both sample 4 groups of 8, show each rollout one successful peer, score under an EMA adapter, and
take one step of Adam on a LoRA adapter: JSD on the student's top 100 and a tail. The model is
random, with the pocket student's tokenizer, so that every response runs to its limit; half of the
responses count as successes. CPU seconds a step, without the first; each in a process of its own.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peak import peak_gib
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3Config,
    TrainerCallback,
    TrainingArguments,
)

from agents import pocket
from agents.base import TurnRequest
from agents.chat import Chat
from agents.transformers_agent import TransformersAgent
from agents.types import Trajectory, TrajectoryGroup
from envs.types import Message, StopReason, Task, Verdict
from mopd.config import Config, LoraSection, ModelSection, PeersSection
from mopd.objectives import Mopd
from mopd.student import add_teacher_adapter, load_student, merged
from mopd.teacher import LocalTeacher
from mopd.trainer import MOPDTrainer, Rollouts, StepRecord

GROUPS, GROUP_SIZE, TOP_K = 4, 8, 100
SYSTEM = "Answer the question in full sentences and say how you know. " * 4
QUESTIONS = [f"What is {n} times {n + 3}, and which of the two is larger?" for n in range(64)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/step.py")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--response", type=int, default=64, help="tokens")
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured: dict[str, dict[str, float]] = {}
    print(f"{GROUPS} groups of {GROUP_SIZE}, up to {args.response} tokens each")
    print(f"{'':<18}{'CPU s a step':>14}{'peak GiB':>10}{'sampled tokens':>16}{'with a peer':>13}")
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), args.vocabulary)
        for name, way in {"ours": ours, "TRL SDPOTrainer": trl}.items():
            # In a process of its own, so that neither finds the other's memory or patches.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                m = pool.submit(way, folder, args.steps, args.response).result()
            measured[name] = m
            print(
                f"{name:<18}{m['cpu_s']:>14.2f}{m['peak_gib']:>10.2f}{m['tokens']:>16.0f}"
                f"{m['with_peer']:>13.2f}",
                flush=True,
            )
    ratio = measured["TRL SDPOTrainer"]["cpu_s"] / measured["ours"]["cpu_s"]
    print(f"ours is {ratio:.2f} times as fast")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def save_model(folder: Path, vocabulary: int) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pocket.PATH).save_pretrained(folder)


def succeeded(text: str) -> bool:
    """As good as a coin, and the same for both."""
    return len(text) % 2 == 0


class Clock(TrainerCallback):
    """CPU seconds of each step, from the end of the one before: rollouts included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step starts."""
        self.ends.append(time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ends, and the next one starts."""
        self.ends.append(time.process_time())

    @property
    def median(self) -> float:
        """Of the steps but the first, which warms up."""
        steps = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(steps[1:])


def arguments(steps: int, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "bf16": False,
    }


def ours(folder: str, steps: int, response: int) -> dict[str, float]:
    torch.set_num_threads(1)
    config = Config(
        steps=steps,
        peers=PeersSection(successes=1, failures=0, feedback_shown="never"),
        model=ModelSection(name=folder, device="cpu"),
    )
    student = load_student(config.model, LoraSection(), seed=0)
    add_teacher_adapter(student)
    chat = Chat(AutoTokenizer.from_pretrained(folder), [])
    agent = TransformersAgent(student, chat, max_context=1024, max_episodes=64)
    tokens: list[float] = []
    shown: list[float] = []

    def roll_out(step: int) -> Rollouts:
        started = time.monotonic()
        with merged(student):
            groups = tuple(sampled(agent, step, response))
        return Rollouts(groups, time.monotonic() - started, 0.0)

    def on_step(record: StepRecord) -> None:
        played = [t for group in record.rollouts.groups for t in group.trajectories]
        tokens.append(sum(t.sampled_tokens for t in played))
        shown.append(len(record.rows) / len(played))

    clock = Clock()
    with peak_gib() as peak:
        MOPDTrainer(
            student,
            config,
            Mopd(config, chat, LocalTeacher(student, config.teacher, 1.0)),
            roll_out=roll_out,
            on_step=on_step,
            arguments=TrainingArguments(
                **arguments(steps, folder), per_device_train_batch_size=1, ignore_data_skip=True
            ),
            callbacks=[clock],
        ).train()
        return result(clock, peak(), tokens, shown)


def sampled(agent: TransformersAgent, step: int, response: int) -> Iterator[TrajectoryGroup]:
    """One turn an episode; groups as `rollout_groups` makes them, without an environment."""
    prompts = [QUESTIONS[(step * GROUPS + g) % len(QUESTIONS)] for g in range(GROUPS)]
    begun = [(Message("system", SYSTEM), Message("user", prompt)) for prompt in prompts]
    ids = [tuple(agent.chat.prompt_ids(messages)) for messages in begun]
    count = GROUPS * GROUP_SIZE
    agent.submit([
        TurnRequest(i, ids[i // GROUP_SIZE], response, 1000 * step + i) for i in range(count)
    ])  # fmt: skip
    turns = {}
    while len(turns) < count:
        turns |= {turn.episode: turn for turn in agent.advance()}
    for i in range(count):
        agent.release(i)
    for g in range(GROUPS):
        task = Task(prompts[g], prompts[g], "")
        trajectories = []
        for i in range(GROUP_SIZE):
            turn = turns[g * GROUP_SIZE + i]
            won = succeeded(turn.message.content)
            silent = len(ids[g])
            trajectories.append(
                Trajectory(
                    task=task,
                    index=i,
                    token_ids=(*ids[g], *turn.token_ids),
                    sampled_mask=(False,) * silent + (True,) * len(turn.token_ids),
                    logprobs=(0.0,) * silent + turn.logprobs,
                    messages=(*begun[g], turn.message),
                    verdict=Verdict(float(won), won),
                    stop_reason=StopReason.ANSWERED,
                    adapter_version="",
                )
            )
        yield TrajectoryGroup(task, tuple(trajectories))


def trl(folder: str, steps: int, response: int) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    torch.set_num_threads(1)
    tokens: list[float] = []
    shown: list[float] = []

    def reward(completions: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        won = [succeeded(text) for text in texts]
        for start in range(0, len(won), GROUP_SIZE):
            group = won[start : start + GROUP_SIZE]
            shown.append(sum(sum(group) - w > 0 for w in group) / GROUP_SIZE)
        return [float(w) for w in won]

    rows = [
        {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]}
        for question in QUESTIONS
    ]
    clock = Clock()
    with peak_gib() as peak:
        SDPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=reward,
            args=SDPOConfig(
                **arguments(steps, folder),
                per_device_train_batch_size=GROUPS * GROUP_SIZE,
                num_generations=GROUP_SIZE,
                max_completion_length=response,
                distillation_mode="topk_logits",
                distillation_topk=TOP_K,
                distillation_alpha=0.5,
                distillation_add_tail=True,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        ).train()
        return result(clock, peak(), tokens, shown)


def result(
    clock: Clock, peak: float, tokens: Sequence[float], shown: Sequence[float]
) -> dict[str, float]:
    return {
        "cpu_s": clock.median,
        "peak_gib": peak,
        "tokens": statistics.mean(tokens),
        "with_peer": statistics.mean(shown),
    }


if __name__ == "__main__":
    main()
