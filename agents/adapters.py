"""Adapters that an engine loads from a folder while it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agents.base import Agent


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights that an engine knows; a name and a number stand for the same weights for ever.

    (vLLM keeps what it has under a name or a number that it knows, whatever the folder holds now.)
    """

    name: str
    number: int
    folder: str


class AdapterAgent(Agent, Protocol):
    """An agent whose engine holds weights of its own."""

    def add_adapter(self, folder: Path) -> Adapter:
        """Make the adapter of PEFT in `folder` known, under a new name and a new number.

        Raises:
            EngineError: the engine failed, or cannot read it.
        """
        ...

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Turns that are submitted from now on are the adapter's; None: the bare base model's."""
        ...

    def remove_adapter(self, adapter: Adapter) -> None:
        """Free an adapter that will not be used again, and every prompt that is cached."""
        ...
