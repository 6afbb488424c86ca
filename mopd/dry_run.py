"""What a run would use, without running it."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from mopd.config import Config
from mopd.engines import engine_line
from mopd.settings import dump_toml
from mopd.student import device_of, dtype_of, model_path
from mopd.worlds import sandbox_of


def plan(config: Config) -> Iterator[str]:
    """The resolved configuration with, as comments, what each part uses and how much memory."""
    device = device_of(config.model)
    dtype = dtype_of(config.model, device)
    yield dump_toml(config)
    for part, used in {
        "environment": ("gymnasium", "langchain-core"),
        "model": ("transformers", "torch"),
        "adapter": ("peft",),
        "trainer": ("transformers", "accelerate"),
    }.items():
        yield f"# {part + ':':13}{', '.join(f'{name} {version(name)}' for name in used)}"
    yield f"# {'device:':13}{device}, {str(dtype).removeprefix('torch.')}"
    yield f"# {'engine:':13}{engine_line(config)}"
    with closing(sandbox_of(config)) as sandbox:
        yield f"# {'sandbox:':13}{sandbox.name}, for environments that run code"
    yield f"# {'memory:':13}{memory(config, model_path(config.model.name), dtype.itemsize)}"


def memory(config: Config, model: str, itemsize: int) -> str:
    """Weights, adapter and KV cache of a dense model whose config.json is on this machine."""
    local = Path(model) / "config.json"
    found = str(local) if local.is_file() else None
    if found is None and not Path(model).exists():
        with contextlib.suppress(ValueError):  # a path is no name of a repository
            cached = try_to_load_from_cache(model, "config.json")
            found = cached if isinstance(cached, str) else None
    if found is None:
        return f"unknown, since there is no config.json of {model} on this machine"
    shape = json.loads(Path(found).read_text(encoding="utf-8"))
    try:
        hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
        layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
        head_size = shape.get("head_dim") or hidden // heads
        queries, keys = heads * head_size, shape.get("num_key_value_heads", heads) * head_size
        embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
    except KeyError as error:
        return f"unknown, since {found} says nothing of {error}"
    linear = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    linear += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]
    weights = (layers * sum(a * b for a, b in linear) + embeddings) * itemsize
    # In float32: the weights, their gradient, two moments of Adam, and the EMA teacher's copy.
    copies = 5 if config.algo == "mopd" and config.teacher.kind == "ema" else 4
    adapter = layers * config.lora.r * sum(a + b for a, b in linear) * 4 * copies
    rollout = config.rollout
    episodes = min(rollout.max_concurrent, rollout.tasks_per_step * rollout.group_size)
    cache = 2 * layers * keys * itemsize * episodes * rollout.max_context
    sizes = {"weights": weights, "adapter": adapter, "KV cache at full length": cache}
    text = " + ".join(f"{name} {size / 2**30:.2f}" for name, size in sizes.items())
    return f"{text} = {sum(sizes.values()) / 2**30:.2f} GiB; activations and the program on top"
