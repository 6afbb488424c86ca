"""Log-probabilities from hidden states, with the logits of a few tokens at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils.checkpoint import checkpoint

from mopd import losses

MAX_LOGITS = 2**26  # elements of one chunk of logits: 256 MiB in float32


@dataclass(frozen=True, slots=True)
class SupportLogprobs:
    """A student's most probable tokens: ids_NK, their logprobs_NK, and the sampled tokens'.

    Normalised over the whole vocabulary; gradients flow through `logprobs_NK` alone.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    sampled_N: Tensor


def logprobs_at(
    head: torch.nn.Module, hidden_NH: Tensor, ids_NK: Tensor, temperature: float
) -> Tensor:
    """logprobs_NK of given tokens at the temperature of sampling, without gradients."""

    def chunk(hidden: Tensor, ids: Tensor) -> Tensor:
        return _normalised(scaled_logits(head, hidden, temperature), ids)[0]

    with torch.no_grad():
        return _in_chunks(chunk, _vocabulary(head), hidden_NH, ids_NK)


def token_logprobs(
    head: torch.nn.Module, hidden_NH: Tensor, tokens_N: Tensor, temperature: float
) -> Tensor:
    """logprobs_N of one token at each position; gradients flow."""
    ids_N1 = tokens_N[:, None]
    if _frozen(head):
        return _frozen_logprobs(head, hidden_NH, ids_N1, None, temperature)[0][:, 0]
    return _recomputed(head, hidden_NH, ids_N1, temperature)[:, 0]


def student_support(
    head: torch.nn.Module,
    hidden_NH: Tensor,
    tokens_N: Tensor,
    top_k: int | None,
    temperature: float,
) -> SupportLogprobs:
    """The `top_k` most probable tokens of each position (None: all) and the sampled one."""
    vocabulary = _vocabulary(head)
    ids_N1 = tokens_N[:, None]
    if _frozen(head) and top_k is not None and top_k < vocabulary:
        logprobs_NK, ids_NK, sampled_N1 = _frozen_logprobs(
            head, hidden_NH, ids_N1, top_k, temperature
        )
        return SupportLogprobs(ids_NK, logprobs_NK, sampled_N1[:, 0])

    def largest(hidden: Tensor) -> Tensor:
        return losses.support(scaled_logits(head, hidden, temperature), top_k)

    with torch.no_grad():
        ids_NK = _in_chunks(largest, vocabulary, hidden_NH)
    both_NK1 = _recomputed(head, hidden_NH, torch.cat([ids_NK, ids_N1], 1), temperature)
    return SupportLogprobs(ids_NK, both_NK1[:, :-1], both_NK1[:, -1].detach())


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under an output layer that does not learn, each logit computed once.

    The gradient of log p_k is (W_k - sum_v p_v W_v) / temperature. All of it that needs the whole
    vocabulary is gathered in the forward pass: the sum over the tokens outside the support. (Not
    the whole sum: where p_k is near 1 the difference would be lost in bfloat16.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head: torch.nn.Linear,
        given_N1: Tensor,
        top_k: int | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def chunk(hidden: Tensor, given: Tensor) -> tuple[Tensor, ...]:
            logits_NV = scaled_logits(head, hidden, temperature)
            ids = given if top_k is None else losses.support(logits_NV, top_k)
            both, probs_NV = _normalised(logits_NV, torch.cat([ids, given], 1))
            outside_NV = probs_NV.scatter_(-1, ids, 0.0).to(head.weight.dtype)
            return both[:, :-1], ids, both[:, -1:], outside_NV @ head.weight

        chunks = zip(*_split(_vocabulary(head), hidden_NH, given_N1), strict=True)
        results = [chunk(*pieces) for pieces in chunks]
        logprobs_NK, ids_NK, given_logprobs_N1, outside_NH = map(
            torch.cat, zip(*results, strict=True)
        )
        ctx.save_for_backward(head.weight, logprobs_NK, ids_NK, outside_NH)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(ids_NK, given_logprobs_N1)
        return logprobs_NK, ids_NK, given_logprobs_N1

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        weight_VH, logprobs_NK, ids_NK, outside_NH = ctx.saved_tensors
        gradient_NK: Tensor = gradients[0]
        total_N1 = gradient_NK.sum(-1, keepdim=True)
        inside_NK = gradient_NK - logprobs_NK.exp() * total_N1
        inside_NH = embedding_bag(
            ids_NK, weight_VH, per_sample_weights=inside_NK.to(weight_VH.dtype), mode="sum"
        )
        gradient_NH = (inside_NH - total_N1 * outside_NH) / ctx.temperature
        return gradient_NH.to(outside_NH.dtype), None, None, None, None


def _frozen_logprobs(
    head: torch.nn.Module, hidden_NH: Tensor, ids_N1: Tensor, top_k: int | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logprobs_NK, ids_NK, and the given tokens' logprobs_N1; `top_k` None: of the given only."""
    results: tuple[Tensor, Tensor, Tensor] = _FrozenHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head, ids_N1, top_k, temperature
    )  # torch has no annotations here
    return results


def _frozen(head: torch.nn.Module) -> bool:
    """Whether it is a plain matrix without a gradient (an adapter on it is another module)."""
    return type(head) is torch.nn.Linear and not head.weight.requires_grad


def _recomputed(
    head: torch.nn.Module, hidden_NH: Tensor, ids_NK: Tensor, temperature: float
) -> Tensor:
    """logprobs_NK for any output layer: in the backward pass each chunk is computed again."""

    def chunk(hidden: Tensor, ids: Tensor) -> Tensor:
        return scaled_logits(head, hidden, temperature).log_softmax(-1).gather(-1, ids)

    return _in_chunks(chunk, _vocabulary(head), hidden_NH, ids_NK)


def scaled_logits(head: torch.nn.Module, hidden_NH: Tensor, temperature: float) -> Tensor:
    """logits_NV at the temperature of sampling, in float32."""
    logits_NV: Tensor = head(hidden_NH).float()
    # In place where nobody needs the old values: a chunk of logits is the largest tensor there is.
    return logits_NV / temperature if logits_NV.requires_grad else logits_NV.div_(temperature)


def _normalised(logits_NV: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """logprobs_NK of `ids_NK`, and probs_NV in the memory of the logits."""
    # Not logits - logsumexp: float32 holds a log-sum of 60 to 4e-6 only.
    largest_N1 = logits_NV.amax(-1, keepdim=True)
    chosen_NK = logits_NV.gather(-1, ids_NK) - largest_N1
    weights_NV = logits_NV.sub_(largest_N1).exp_()
    total_N1 = weights_NV.sum(-1, keepdim=True)
    return chosen_NK - total_N1.log(), weights_NV.div_(total_N1)


def _in_chunks(function: Callable[..., Tensor], vocabulary: int, *tensors: Tensor) -> Tensor:
    """`function` over slices of the token axis, so that few logits exist at a time.

    Inside a gradient, chunks are recomputed in the backward pass instead of being kept.
    """
    pieces = list(zip(*_split(vocabulary, *tensors), strict=True))
    if len(pieces) == 1:
        return function(*tensors)
    if not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def _split(vocabulary: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    size = max(1, MAX_LOGITS // vocabulary)
    return [torch.split(tensor, size) for tensor in tensors]


def _vocabulary(head: torch.nn.Module) -> int:
    """Every output layer has it, those with an adapter too."""
    size: int = head.out_features  # type: ignore[assignment]  # of Module's untyped attributes
    return size
