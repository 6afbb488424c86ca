"""From token sequences to the hidden states and log-probabilities of their sampled tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedConfig

MAX_LOGITS = 2**26  # elements of one chunk of logits: 256 MiB in float32


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

    One right-padded forward through `model` itself, so that the hooks of DDP see it; gradients
    flow. A sampled token at position p is predicted by the state at p - 1.
    """
    device = next(model.parameters()).device
    lengths = [len(row.context_ids) + len(row.response_ids) for row in rows]
    ids_BT = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    attend_BT, predict_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT, dtype=torch.bool)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids_BT[i, :length] = torch.tensor([*row.context_ids, *row.response_ids])
        attend_BT[i, :length] = 1
        start = len(row.context_ids) - 1
        predict_BT[i, start : start + len(row.mask)] = torch.tensor(row.mask)
    output = model(
        input_ids=ids_BT.to(device),
        attention_mask=attend_BT.to(device),
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    hidden: torch.Tensor = output.hidden_states[-1][predict_BT.to(device)]
    return hidden


@torch.no_grad()
def shared_context_hidden(
    backbone: torch.nn.Module, config: PreTrainedConfig, rows: Sequence[Scored]
) -> torch.Tensor:
    """hidden_NH as `sampled_hidden`, without gradients and with each distinct context run once.

    Contexts are prefilled left-padded; their KV cache is copied to the rows that share one;
    the responses follow right-padded. The context's last state predicts the first response
    token. `backbone` is the model without its head.
    """
    device = next(backbone.parameters()).device
    contexts = list(dict.fromkeys(tuple(row.context_ids) for row in rows))
    longest, width = max(map(len, contexts)), max(len(row.response_ids) for row in rows)
    ids_CT = torch.zeros(len(contexts), longest, dtype=torch.long)
    attend_CT = torch.zeros_like(ids_CT)
    for i, context in enumerate(contexts):
        ids_CT[i, longest - len(context) :] = torch.tensor(context)
        attend_CT[i, longest - len(context) :] = 1
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    attend_BT, sampled_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.response_ids)] = torch.tensor(row.response_ids)
        attend_BT[i, : len(row.response_ids)] = 1
        sampled_BT[i, : len(row.mask)] = torch.tensor(row.mask)
    place = {context: i for i, context in enumerate(contexts)}
    of_row = torch.tensor([place[tuple(row.context_ids)] for row in rows])

    was_training = backbone.training
    backbone.eval()  # gradient checkpointing would switch the cache off
    try:
        cache = DynamicCache(config=config)
        positions_CT = (attend_CT.cumsum(1) - 1).clamp(min=0)
        prefix = backbone(
            input_ids=ids_CT.to(device),
            attention_mask=attend_CT.to(device),
            position_ids=positions_CT.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1:]
        cache.batch_select_indices(of_row.to(device))
        attend = torch.cat([attend_CT[of_row], attend_BT], 1)
        positions_BT = positions_CT[of_row, -1:] + 1 + torch.arange(width)
        states = backbone(
            input_ids=ids_BT.to(device),
            attention_mask=attend.to(device),
            position_ids=positions_BT.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    finally:
        backbone.train(was_training)
    predicting = torch.cat([prefix[of_row.to(device)], states[:, :-1]], 1)
    return predicting[sampled_BT.to(device)]


def scaled_logits(
    head: torch.nn.Linear, hidden_NH: torch.Tensor, temperature: float
) -> torch.Tensor:
    """logits_NV at the temperature of sampling, in float32."""
    logits_NV: torch.Tensor = head(hidden_NH)
    return logits_NV.float() / temperature


def in_chunks(
    function: Callable[..., torch.Tensor], vocabulary: int, *tensors: torch.Tensor
) -> torch.Tensor:
    """`function` over slices of the token axis, so that few logits exist at a time.

    Inside a gradient, chunks are recomputed in the backward pass instead of being kept.
    """
    size = max(1, MAX_LOGITS // vocabulary)
    if len(tensors[0]) <= size:
        return function(*tensors)
    pieces = zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])
