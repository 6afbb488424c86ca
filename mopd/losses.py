"""Per-token losses as pure functions of log-probabilities.

Axes: N student tokens, V vocabulary, K support, S = K, or K + 1 with the tail bucket, G rollouts of
a task. Log-probabilities are natural, losses in nats. Which tokens take part, their mean, and the
temperature of the logits are the caller's business. A wrong shape raises ValueError.
"""

import math
from typing import Literal

import torch
from torch import Tensor

DivergenceKind = Literal["jsd", "forward_kl", "reverse_kl"]

# exp(-1e4) is 0 in every floating type, so flooring here changes no probability; it keeps
# 0 * (-inf) and (-inf) - (-inf) out of values and gradients.
_ZERO_LOGPROB = -1e4
_MAX_LOG_RATIO = 20.0


def support(student_logits_NV: Tensor, top_k: int | None) -> Tensor:
    """The `top_k` most probable token ids of each position, int64, shape NK, most probable first.

    None or a `top_k` of V and more: the whole vocabulary in id order (a view, nothing allocated).
    Raises ValueError where `top_k` is below 1.
    """
    _check_shapes(2, student_logits_NV=student_logits_NV)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None for the whole vocabulary")
    positions, vocabulary = student_logits_NV.shape
    if top_k is None or top_k >= vocabulary:
        ids_V = torch.arange(vocabulary, device=student_logits_NV.device)
        return ids_V.expand(positions, vocabulary)
    return student_logits_NV.detach().topk(top_k, dim=-1).indices


def support_logprobs(logits_NV: Tensor, ids_NK: Tensor, tail: bool) -> Tensor:
    """The distribution `on_support` that logits over the whole vocabulary give to `ids_NK`.

    The ids of a position are distinct. Half-precision logits are computed in float32: the tail's
    1e-7 is below their resolution. Raises ValueError for another N or for K > V.
    """
    _check_shapes(2, logits_NV=logits_NV)
    _check_shapes(2, ids_NK=ids_NK)
    if len(logits_NV) != len(ids_NK):
        raise ValueError(f"got {len(ids_NK)} rows of ids, expected {len(logits_NV)} as in logits")
    # not logits - logsumexp: float32 holds a log-sum of 60 to 4e-6 only, and with the tail bucket
    # that gave up to 17 times the error (measured)
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    logprobs_NK = logits_NV.log_softmax(-1, dtype=dtype).gather(-1, ids_NK)
    return on_support(logprobs_NK, logits_NV.shape[-1], tail)


def on_support(logprobs_NK: Tensor, vocabulary: int, tail: bool) -> Tensor:
    """A distribution over the support, NS, from whole-vocabulary log-probabilities at its K ids.

    With `tail` the mass outside becomes one more bucket, without it the K are renormalised. Where
    the support is the whole vocabulary (K = V) nothing is outside: a bucket would be made of
    rounding error only (1e-7), so the log-probabilities return as they are, S = V.
    """
    _check_shapes(2, logprobs_NK=logprobs_NK)
    size = logprobs_NK.shape[-1]
    if size > vocabulary:
        raise ValueError(
            f"got a support of {size} ids, expected at most {vocabulary}, all there is"
        )
    if size == vocabulary:
        return logprobs_NK
    return with_tail(logprobs_NK) if tail else renormalised(logprobs_NK)


def with_tail(logprobs_NK: Tensor) -> Tensor:
    """The K log-probabilities and, behind them, log(1 - sum p): shape N(K+1).

    Source: arXiv 2605.12652 (mopd.md, "Divergence"). The bound -1e-7 keeps the bucket
    finite where the K hold everything; its gradient is zero there.
    """
    _check_shapes(2, logprobs_NK=logprobs_NK)
    inside_N1 = logprobs_NK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logprobs_NK, torch.log(-torch.expm1(inside_N1))], dim=-1)


def renormalised(logprobs_NK: Tensor) -> Tensor:
    """Log-probabilities given that the token is one of the K; NaN where these hold no mass."""
    _check_shapes(2, logprobs_NK=logprobs_NK)
    return logprobs_NK - logprobs_NK.logsumexp(-1, keepdim=True)


def divergence(
    student_NS: Tensor, teacher_NS: Tensor, kind: DivergenceKind, alpha: float = 0.5
) -> Tensor:
    """Divergence of student and teacher at each position, in nats, shape N.

    With log-probabilities over one aligned support, M = (1 - alpha) p_S + alpha p_T:

        forward_kl   KL(p_T || p_S)
        reverse_kl   KL(p_S || p_T)
        jsd          (1 - alpha) KL(p_S || M) + alpha KL(p_T || M),   0 < alpha < 1

    Source: arXiv 2605.12652 (mopd.md, "Divergence"). `alpha` belongs to jsd alone: its limits 0
    and 1 are zero, not the KLs that TRL and the paper call alpha = 0 and alpha = 1. The teacher
    gets no gradient. A log-probability below -1e4, -inf included, counts as -1e4 (probability 0):
    a KL that would be infinite becomes large and finite, and no gradient passes a floored student.
    Raises ValueError for different shapes, an unknown kind, or jsd with alpha outside (0, 1).
    """
    _check_shapes(2, student_NS=student_NS, teacher_NS=teacher_NS)
    student_NS = student_NS.clamp(min=_ZERO_LOGPROB)
    teacher_NS = teacher_NS.detach().clamp(min=_ZERO_LOGPROB)
    match kind:
        case "forward_kl":
            return _kl(teacher_NS, student_NS)
        case "reverse_kl":
            return _kl(student_NS, teacher_NS)
        case "jsd":
            if not 0 < alpha < 1:
                raise ValueError(
                    f"alpha is {alpha}; jsd expects 0 < alpha < 1, "
                    "use forward_kl or reverse_kl for the ends"
                )
            mixture_NS = torch.logaddexp(
                student_NS + math.log1p(-alpha), teacher_NS + math.log(alpha)
            )
            return (1 - alpha) * _kl(student_NS, mixture_NS) + alpha * _kl(teacher_NS, mixture_NS)
        case _:
            raise ValueError(f"kind is {kind!r}; expected jsd, forward_kl or reverse_kl")


def importance_weight(now_N: Tensor, sampled_N: Tensor, clip: float) -> Tensor:
    """Detached weight min(exp(clamp(now - sampled, -20, 20)), clip) of each token, shape N.

    `now_N` and `sampled_N` are the sampled token's log-probabilities under the student that is
    trained and when it was sampled. Source: arXiv 2605.12652 (mopd.md, "Importance weight").
    Raises ValueError for different shapes or a `clip` that is not positive.
    """
    if clip <= 0:
        raise ValueError(f"clip is {clip}; expected a positive bound on the weight")
    return _ratio(now_N, sampled_N).detach().clamp(max=clip)


def policy_gradient(now_N: Tensor, sampled_N: Tensor, advantage_N: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate as a loss: -min(r A, clamp(r, 1 - clip, 1 + clip) A), shape N.

    r = exp(now - sampled), the log-ratio held to +-20 against overflow. Source: Schulman et al.
    2017 (arXiv 1707.06347), eq. 7. Raises ValueError for different shapes or `clip` <= 0.
    """
    _check_shapes(1, now_N=now_N, sampled_N=sampled_N, advantage_N=advantage_N)
    if clip <= 0:
        raise ValueError(f"clip is {clip}; expected a positive half-width of the ratio's range")
    ratio_N = _ratio(now_N, sampled_N)
    clipped_N = ratio_N.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)


def group_advantages(rewards_G: Tensor, scale_by_std: bool) -> Tensor:
    """Rewards less their group's mean, over (unbiased std + 1e-4) if asked, shape G.

    Exactly zero where all rewards are equal, one rollout included. Source: Shao et al. 2024
    (arXiv 2402.03300), section 4.1.2; without the std: Liu et al. 2025 (arXiv 2503.20783).
    Raises ValueError for an empty group.
    """
    _check_shapes(1, rewards_G=rewards_G)
    if not len(rewards_G):
        raise ValueError("rewards_G is empty; expected at least one rollout")
    if (rewards_G == rewards_G[0]).all():  # the mean of equal floats can differ from them
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std() + 1e-4) if scale_by_std else centred_G


def _kl(p_NS: Tensor, q_NS: Tensor) -> Tensor:
    return (p_NS.exp() * (p_NS - q_NS)).sum(-1)


def _ratio(now_N: Tensor, sampled_N: Tensor) -> Tensor:
    _check_shapes(1, now_N=now_N, sampled_N=sampled_N)
    return (now_N - sampled_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def _check_shapes(axes: int, **tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != axes for shape in shapes.values()):
        got = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"got {got}; expected {axes} axes{', alike' if len(shapes) > 1 else ''}")
