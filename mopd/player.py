"""A model that is only played: its weights, with an adapter inside them, as an agent."""

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from agents.chat import Chat
from agents.transformers_agent import TransformersAgent
from envs.base import ToolEnv
from mopd.config import Config
from mopd.experiment import TINY
from mopd.student import device_of, load_student

WEIGHTS = "adapter_model.safetensors"


def adapter_digest(adapter: Path) -> str:
    """SHA-256 of an adapter's weights.

    Raises:
        ValueError: the folder holds no adapter of PEFT.
    """
    for name in ("adapter_config.json", WEIGHTS):
        if not (adapter / name).is_file():
            raise ValueError(
                f"--adapter got {adapter}, which holds no {name}; expected the folder of an "
                "adapter, such as runs/NAME/adapter"
            )
    return hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()


def load_agent(
    config: Config, adapter: Path | None, env: ToolEnv, tokenizer: PreTrainedTokenizerBase
) -> TransformersAgent:
    """The agent of the configured model in one environment.

    Raises:
        ValueError: the model or the adapter cannot be used.
    """
    student = load_student(config.model, config.lora, seed=config.seed)
    if adapter is None:
        model = student.unload()
    else:
        try:
            student.load_adapter(str(adapter), adapter_name="played")
        except (RuntimeError, ValueError, OSError) as error:  # shapes or names that do not fit
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"--adapter {adapter} does not fit {config.model.name}: {reason}"
            ) from error
        student.set_adapter("played")
        model = student.merge_and_unload()
    if device_of(config.model).type == "cpu" and model.num_parameters() < TINY:
        torch.set_num_threads(1)
    return TransformersAgent(
        model,
        Chat(tokenizer, env.schemas()),
        temperature=config.rollout.temperature,
        max_context=config.rollout.max_context,
        max_episodes=config.rollout.max_concurrent,
        version=str(adapter) if adapter else config.model.name,
    )
