"""From token sequences to the hidden states that predict their sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mopd.tree_forward import right_padded, tree_hidden


@dataclass(frozen=True, slots=True)
class Scored:
    """A response behind a context; `mask` says which response tokens were sampled."""

    context_ids: Sequence[int]
    response_ids: Sequence[int]
    mask: Sequence[bool]

    def __post_init__(self) -> None:
        if len(self.response_ids) != len(self.mask):
            raise ValueError(
                f"{len(self.response_ids)} response tokens but {len(self.mask)} mask entries"
            )


def sampled_ids(rows: Sequence[Scored], device: torch.device) -> torch.Tensor:
    """The sampled tokens of all rows, row by row: ids_N."""
    ids = [t for row in rows for t, m in zip(row.response_ids, row.mask, strict=True) if m]
    return torch.tensor(ids, device=device)


def sampled_hidden(model: torch.nn.Module, rows: Sequence[Scored]) -> torch.Tensor:
    """hidden_NH, the last hidden states that predict the sampled tokens, row by row.

    One right-padded forward through `model` itself, so that the hooks of DDP and FSDP see it;
    gradients flow. A sampled token at position p is predicted by the state at p - 1.
    """
    device = next(model.parameters()).device
    ids_BT, _ = right_padded([torch.tensor([*r.context_ids, *r.response_ids]) for r in rows])
    predict_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = len(row.context_ids) - 1
        predict_BT[i, start : start + len(row.mask)] = torch.tensor(row.mask)
    states_BTH: list[torch.Tensor] = []
    # Asked for its hidden states, the model would hold those of every layer.
    handle = backbone_of(model).register_forward_hook(
        lambda _module, _inputs, output: states_BTH.append(output.last_hidden_state)
    )
    try:
        # No mask: the padding stands behind, where causality hides it.
        model(input_ids=ids_BT.to(device), use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return states_BTH[0][predict_BT.to(device)]


def backbone_of(model: torch.nn.Module) -> torch.nn.Module:
    """A causal language model without its head, whatever wraps it: PEFT, DDP."""
    causal = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    return causal.base_model


def shared_hidden(
    backbone: torch.nn.Module, config: PreTrainedConfig, rows: Sequence[Scored]
) -> torch.Tensor:
    """hidden_NH as `sampled_hidden`, without gradients and with each shared prefix run once.

    `backbone` is the model without its head; see `tree_hidden`.
    """
    sequences, wanted = [], []
    for row in rows:
        start = len(row.context_ids) - 1
        positions = [start + j for j, sampled in enumerate(row.mask) if sampled]
        behind = positions[-1] + 1 if positions else 0  # nothing asks for what follows
        sequences.append((*row.context_ids, *row.response_ids)[:behind])
        wanted.append(positions)
    return tree_hidden(backbone, config, sequences, wanted)
