"""Faster kernels for a GPU, one switch each: which can run here, and switching them on."""

from typing import Any

import torch
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.import_utils import is_flash_attn_2_available, is_liger_kernel_available

from mopd.config import ModelSection


def refuse_kernels(section: ModelSection, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse switches that this machine cannot follow.

    Raises:
        ValueError: with one line that says what, got, expected and cure.
    """
    asked = {
        "attention=flash_attention_2": section.attention == "flash_attention_2",
        "compile=true": section.compile,
        "liger=true": section.liger,
    }
    for switch, on in asked.items():
        if on and device.type != "cuda":
            raise ValueError(f"model.{switch} needs a CUDA device, got {device}; leave it out")
    if section.attention == "flash_attention_2":
        if dtype is not torch.bfloat16:
            raise ValueError(
                f"model.attention=flash_attention_2 needs model.dtype=bfloat16, got {dtype}"
            )
        if not is_flash_attn_2_available():
            raise ValueError(
                "model.attention=flash_attention_2 needs flash-attn, which is not installed: "
                "pip install flash-attn --no-build-isolation, or use model.attention=sdpa"
            )
    if section.liger and not is_liger_kernel_available():
        raise ValueError(
            "model.liger=true needs liger-kernel, which is not installed: pip install liger-kernel"
        )


def attention_of(section: ModelSection) -> str | None:
    """The library's name of the attention; None: its own choice for the model."""
    return None if section.attention == "auto" else section.attention


def speed_up(base: Any, section: ModelSection) -> None:
    """Switch on what `refuse_kernels` let pass, in a base model that has no adapters yet."""
    if section.liger:
        # Norms, rotary embeddings and MLPs. Its losses would ask for labels; ours are in `head`.
        ours = {"fused_linear_cross_entropy": False, "cross_entropy": False}
        apply_liger_kernel(base, ours)  # type: ignore[no-untyped-call]  # of the library
    if section.compile:
        # Layer by layer: they are alike, and what is around them changes with each batch.
        for module in base.modules():
            if isinstance(module, GradientCheckpointingLayer):  # what the library calls its layers
                module.compile(dynamic=True)
