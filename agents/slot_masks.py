"""Attention masks by position, for rows of a `SlotCache`."""

import torch
from transformers import PreTrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
ATTENTIONS = (None, "sdpa", "eager")  # None: a model that does not say

Masks = torch.Tensor | dict[str, torch.Tensor]


def windows_of(config: PreTrainedConfig) -> dict[str, int | None]:
    """Which kinds of attention layers a model has, each with its window; None: unlimited.

    Raises:
        ValueError: layers that a cache by positions cannot serve, or an attention that takes no
            masks of our own.
    """
    attention = attention_of(config)
    if attention not in ATTENTIONS:
        raise ValueError(
            f"attention {attention!r} takes no masks by position, which rollouts with transformers "
            "need; load the model with attn_implementation sdpa or eager, or use vLLM"
        )
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    chunked = getattr(text, "attention_chunk_size", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = [SLIDING if window else "chunked_attention" if chunked else FULL]
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise ValueError(
            f"{text.model_type} has layers of type {', '.join(unknown)}; rollouts with "
            f"transformers serve {FULL} and {SLIDING} only: use vLLM for this model"
        )
    return {kind: window if kind == SLIDING else None for kind in sorted(set(kinds))}


def attention_of(config: PreTrainedConfig) -> str | None:
    """The implementation of attention, as transformers names it."""
    attention: str | None = getattr(config, "_attn_implementation", None)
    return attention


def masks(
    windows: dict[str, int | None],
    positions_NT: torch.Tensor,
    length: int,
    additive: torch.dtype | None,
) -> Masks:
    """What each token sees of the first `length` positions, [N, 1, T, length] for each kind.

    A token at position p sees positions up to p, in a layer with window w the last w of them.
    `additive`: as numbers to add to the scores, which eager attention wants, instead of booleans.
    One tensor where all layers are of one kind, as models without kinds of layers expect it.
    """
    seen_L = torch.arange(length, device=positions_NT.device)
    causal = seen_L <= positions_NT[:, None, :, None]
    made: dict[str, torch.Tensor] = {}
    for kind, window in windows.items():
        mask = causal
        if window is not None:
            mask = causal & (seen_L > positions_NT[:, None, :, None] - window)
        if additive is not None:
            lowest = torch.finfo(additive).min
            mask = torch.zeros(mask.shape, dtype=additive, device=mask.device).masked_fill(
                ~mask, lowest
            )
        made[kind] = mask
    return made if len(made) > 1 else next(iter(made.values()))
