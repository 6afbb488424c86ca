"""What a process and the vLLM engine beside it say to each other."""

from dataclasses import dataclass

from agents.adapters import Adapter


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is started with; `adapter_rank` None means that it loads no adapters."""

    model: str
    dtype: str
    eos_id: int
    max_context: int
    max_episodes: int
    kv_cache_bytes: int
    adapter_rank: int | None


@dataclass(frozen=True, slots=True)
class Say:
    """Generate a turn; `key` comes back with it."""

    key: str
    token_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    seed: int
    adapter: Adapter | None


@dataclass(frozen=True, slots=True)
class Drop:
    """Generate these no longer."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Free an adapter, and all that is cached of prompts."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Advance:
    """Step until a turn ends or `steps` are done; answered with `Progress`."""

    steps: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """A finished turn; `cut` where it did not end with the end-of-turn token."""

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cut: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The steps that were taken and the turns that ended."""

    steps: int
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine has started."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine failed; its process ends."""

    reason: str


Order = Say | Drop | Forget | Advance
