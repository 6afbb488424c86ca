"""A model that is only played: whichever engine it has, as an agent."""

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel

from agents.base import Agent, EngineError
from agents.by_message import Speaker
from agents.chat import Chat
from agents.server_agent import ServerAgent
from agents.transformers_agent import TransformersAgent
from agents.vllm_agent import VllmAgent
from envs.base import ToolEnv
from mopd.config import Config
from mopd.engines import (
    engine_of,
    server_agent,
    speaker,
    speaks_in_messages,
    transformers_agent,
    vllm_agent,
)
from mopd.experiment import TINY
from mopd.student import device_of, load_student, load_tokenizer

WEIGHTS = "adapter_model.safetensors"

Sampler = TransformersAgent | VllmAgent | ServerAgent  # engines with token ids


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


def load_agent(config: Config, adapter: Path | None, env: ToolEnv) -> Sampler | Speaker:
    """The agent of the configured model and engine in one environment.

    Raises:
        ValueError: the model, the adapter or the engine cannot be used.
    """
    try:
        if speaks_in_messages(config):
            if adapter is not None:
                raise ValueError(f"--adapter {adapter}: {config.model.name} takes no adapters here")
            return speaker(config)
        chat = Chat(load_tokenizer(config.model), env.schemas())
        match engine_of(config):
            case "vllm":
                rank = _rank(adapter) if adapter else None
                return _with(vllm_agent(config, chat, adapter_rank=rank), adapter)
            case "server":
                return _with(server_agent(config, chat), adapter)
            case _:
                return _in_process(config, adapter, chat)
    except EngineError as error:
        raise ValueError(str(error)) from error


def adapted_student(config: Config, adapter: Path | None) -> PeftModel:
    """The model in this process, which acts with the adapter on top where there is one.

    Raises:
        ValueError: the model cannot be used, or the adapter does not fit it.
    """
    student = load_student(config.model, config.lora, seed=config.seed)
    if adapter is not None:
        try:
            student.load_adapter(str(adapter), adapter_name="played")
        except (RuntimeError, ValueError, OSError) as error:  # shapes or names that do not fit
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"--adapter {adapter} does not fit {config.model.name}: {reason}"
            ) from error
        student.set_adapter("played")
    if device_of(config.model).type == "cpu" and student.num_parameters() < TINY:
        torch.set_num_threads(1)
    return student


def close_agent(agent: Agent | Speaker) -> None:
    """End the engine of an agent that has one of its own."""
    if isinstance(agent, VllmAgent):
        agent.close()


def _with(agent: VllmAgent | ServerAgent, adapter: Path | None) -> Sampler:
    if adapter is not None:
        agent.use_adapter(agent.add_adapter(adapter))
        agent.version = str(adapter)
    return agent


def _rank(adapter: Path) -> int:
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return int(settings["r"])


def _in_process(config: Config, adapter: Path | None, chat: Chat) -> Sampler:
    """The model in this process, the adapter inside its weights."""
    student = adapted_student(config, adapter)
    model = student.unload() if adapter is None else student.merge_and_unload()
    agent = transformers_agent(config, chat, model)
    agent.version = str(adapter) if adapter else config.model.name
    return agent
