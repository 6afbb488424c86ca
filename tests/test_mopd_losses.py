import math
import warnings
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd.losses import (
    DivergenceKind,
    divergence,
    group_advantages,
    importance_weight,
    on_support,
    policy_gradient,
    renormalised,
    support,
    support_logprobs,
    with_tail,
)

KINDS: tuple[DivergenceKind, ...] = ("jsd", "forward_kl", "reverse_kl")
# TRL writes the two KLs as the ends of alpha, at which the Jensen-Shannon formula itself is zero:
# 0 is KL(teacher || student), 1 is KL(student || teacher), and in between alpha is as ours.
TRL_ALPHA = [
    pytest.param(0.0, "forward_kl", id="alpha=0"),
    pytest.param(0.5, "jsd", id="alpha=0.5"),
    pytest.param(0.2, "jsd", id="alpha=0.2"),
    pytest.param(1.0, "reverse_kl", id="alpha=1"),
]


def log(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def close(got: Tensor, expected: object, atol: float = 1e-12) -> None:
    wanted = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


# by hand


def test_the_support_is_the_students_top_k() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [9.0, 0.0, 8.0, 7.0]])
    assert support(logits, 2).tolist() == [[1, 3], [0, 2]]
    assert support(logits, 2).dtype == torch.int64


@pytest.mark.parametrize("top_k", [None, 4, 100])
def test_a_top_k_of_the_vocabulary_or_more_is_the_whole_vocabulary(top_k: int | None) -> None:
    assert support(torch.zeros(2, 4), top_k).tolist() == [[0, 1, 2, 3]] * 2


def test_the_tail_bucket_holds_the_mass_outside_the_support() -> None:
    logits, ids = log([0.5, 0.1, 0.25, 0.15]), torch.tensor([[0, 2]])
    close(support_logprobs(logits, ids, tail=True).exp(), [[0.5, 0.25, 0.25]])
    close(support_logprobs(logits + 7, ids, tail=False).exp(), [[2 / 3, 1 / 3]])
    close(with_tail(log([0.5, 0.25])).exp(), [[0.5, 0.25, 0.25]])
    close(renormalised(log([0.5, 0.25])).exp(), [[2 / 3, 1 / 3]])


def test_a_support_that_holds_everything_keeps_a_finite_tail() -> None:
    logprobs = log([1.0, 0.0]).requires_grad_()
    out = with_tail(logprobs)
    close(out[0, 2], math.log(1e-7), atol=1e-6)
    close(torch.autograd.grad(out[0, 2], logprobs)[0], [[0.0, 0.0]])


def test_a_teacher_without_mass_on_the_support_has_it_all_in_the_tail() -> None:
    close(with_tail(log([0.0, 0.0])).exp(), [[0.0, 0.0, 1.0]])


@pytest.mark.parametrize("tail", [True, False])
def test_the_whole_vocabulary_has_no_tail(tail: bool) -> None:
    logits = log([0.5, 0.1, 0.4])
    close(support_logprobs(logits, support(logits, None), tail).exp(), [[0.5, 0.1, 0.4]])
    assert on_support(logits, vocabulary=3, tail=tail) is logits


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = support(logits, 5)
    got = support_logprobs(logits, ids, tail=True)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, support_logprobs(logits.float(), ids, tail=True))


def test_divergences_of_two_coins() -> None:
    student, teacher = log([0.5, 0.5]), log([0.25, 0.75])
    forward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    # alpha 0.2: M = 0.8 (1/2, 1/2) + 0.2 (1/4, 3/4) = (0.45, 0.55)
    jsd = 0.8 * (0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)) + 0.2 * (
        0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55)
    )
    close(divergence(student, teacher, "forward_kl"), [forward])
    close(divergence(student, teacher, "reverse_kl"), [reverse])
    close(divergence(student, teacher, "jsd", alpha=0.2), [jsd])


def test_disjoint_distributions_are_log_two_apart_and_their_kl_is_large_but_finite() -> None:
    student, teacher = log([1.0, 0.0]), log([0.0, 1.0])
    close(divergence(student, teacher, "jsd", alpha=0.5), [math.log(2)])
    close(divergence(student, teacher, "forward_kl"), [1e4])
    close(divergence(student, teacher, "reverse_kl"), [1e4])


def test_the_importance_weight_is_clipped_bounded_and_detached() -> None:
    now = torch.tensor([-1.0, -2.0, -1.0, 0.0, -99.0]).requires_grad_()
    sampled = torch.tensor([-1.0, -1.0, -3.0, -99.0, 0.0])
    weight = importance_weight(now, sampled, clip=2.0)
    close(weight, [1.0, math.exp(-1), 2.0, 2.0, math.exp(-20)], atol=1e-6)
    assert not weight.requires_grad
    close(importance_weight(now, sampled, clip=1e12)[3].log(), 20.0, atol=1e-5)


def test_the_policy_gradient_stops_where_ppo_clips() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantage = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0, -2.0], dtype=torch.float64)
    now = ratio.log().requires_grad_()
    loss = policy_gradient(now, torch.zeros_like(ratio), advantage, clip=0.2)
    close(loss, [-2.0, -1.2, 1.5, -0.5, 0.8, 2.2])
    close(torch.autograd.grad(loss.sum(), now)[0], [-2.0, 0.0, 1.5, -0.5, 0.0, 2.2])


def test_advantages_of_one_success_in_four() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    close(group_advantages(rewards, scale_by_std=False), [0.75, -0.25, -0.25, -0.25])
    # unbiased variance: (0.75^2 + 3 * 0.25^2) / 3 = 0.25
    expected = [0.75 / 0.5001] + [-0.25 / 0.5001] * 3
    close(group_advantages(rewards, scale_by_std=True), expected)


@pytest.mark.parametrize("rewards", [[0.1] * 3, [1.0] * 8, [0.7]])
@pytest.mark.parametrize("scale_by_std", [True, False])
def test_a_constant_group_has_no_advantage(rewards: list[float], scale_by_std: bool) -> None:
    assert group_advantages(torch.tensor(rewards), scale_by_std).tolist() == [0.0] * len(rewards)


# errors


def test_errors_say_what_came_and_what_was_expected() -> None:
    two, three = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"student_NS of shape \(2, 4\), teacher_NS of shape \(3"):
        divergence(two, three, "jsd")
    with pytest.raises(ValueError, match="expected 1 axes, alike"):
        policy_gradient(two[0], two[0], torch.zeros(3), clip=0.2)
    with pytest.raises(ValueError, match="expected 2 axes"):
        support(torch.zeros(4), 2)
    with pytest.raises(ValueError, match="got 3 rows of ids, expected 2"):
        support_logprobs(two, three.long(), tail=True)
    with pytest.raises(ValueError, match="got a support of 4 ids, expected at most 3"):
        on_support(two, vocabulary=3, tail=True)
    with pytest.raises(ValueError, match="top_k is 0"):
        support(two, 0)
    with pytest.raises(ValueError, match=r"alpha is 1\.0; jsd expects 0 < alpha < 1"):
        divergence(two, two, "jsd", alpha=1.0)
    with pytest.raises(ValueError, match="kind is 'tv'"):
        divergence(two, two, "tv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip is 0"):
        importance_weight(two[0], two[0], clip=0)
    with pytest.raises(ValueError, match="clip is -1"):
        policy_gradient(two[0], two[0], two[0], clip=-1)
    with pytest.raises(ValueError, match="rewards_G is empty"):
        group_advantages(torch.zeros(0), scale_by_std=True)


# TRL as oracle


@pytest.fixture(scope="module")
def sdpo() -> ModuleType:
    from trl.import_utils import TRLExperimentalWarning

    with warnings.catch_warnings():
        # `trl.experimental` warns once that its interface may change; the dev extra pins TRL, and
        # the helpers are an oracle here and nothing else.
        warnings.simplefilter("ignore", category=TRLExperimentalWarning)
        from trl.experimental.sdpo import loss_utils
    return loss_utils


def random_logits(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Student and teacher, 64 positions of 50 ids, from flat to peaked (standard deviation 0.1 up).

    In float64 so peaked that no tail is left. Both sides cancel 1 - sum p there, which amplifies
    the rounding of float32 beyond 1e-5 (TRL's more than ours), so float32 stops at 3.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1.5 if dtype == torch.float64 else 0.5, 64, dtype=dtype)[:, None]
    student = scale * torch.randn(64, 50, generator=generator, dtype=dtype)
    teacher = student + scale / 2 * torch.randn(64, 50, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


def assert_same_loss_and_gradient(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    (our_grad,) = torch.autograd.grad(ours.sum(), logits)
    (their_grad,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("alpha", "kind"), TRL_ALPHA)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_top_k_loss_and_gradient_equal_trl(
    sdpo: ModuleType,
    seed: int,
    dtype: torch.dtype,
    tail: bool,
    alpha: float,
    kind: DivergenceKind,
) -> None:
    student, teacher = random_logits(seed, dtype)
    ids = support(student, 10)
    ours = divergence(
        support_logprobs(student, ids, tail), support_logprobs(teacher, ids, tail), kind, alpha
    )
    theirs = sdpo.compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=10,
        distillation_alpha=alpha,
        distillation_add_tail=tail,
    )
    assert_same_loss_and_gradient(ours, theirs, student)


@pytest.mark.parametrize(("alpha", "kind"), TRL_ALPHA)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_vocabulary_loss_and_gradient_equal_trl(
    sdpo: ModuleType, dtype: torch.dtype, tail: bool, alpha: float, kind: DivergenceKind
) -> None:
    student, teacher = random_logits(3, dtype)
    ids = support(student, None)
    ours = divergence(
        support_logprobs(student, ids, tail), support_logprobs(teacher, ids, tail), kind, alpha
    )
    theirs = sdpo.compute_full_logit_self_distillation_loss(
        student, teacher, distillation_alpha=alpha
    )
    assert_same_loss_and_gradient(ours, theirs, student)


def test_the_importance_weight_equals_trl(sdpo: ModuleType) -> None:
    now, sampled = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)) * 15
    theirs = sdpo.apply_importance_sampling_clipping(torch.ones(200), now, sampled, 2.0)
    torch.testing.assert_close(importance_weight(now, sampled, 2.0), theirs)


def test_group_advantages_equal_trl() -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    for group in rewards:
        # GRPOTrainer, scale_rewards="group": the group's mean and unbiased std, 1e-4 on the std
        theirs = (group - torch.nanmean(group)) / (nanstd(group) + 1e-4)
        torch.testing.assert_close(group_advantages(group, scale_by_std=True), theirs)


# properties

finite = st.floats(-30, 30, width=32)
alphas = st.floats(0.01, 0.99)
properties = settings(derandomize=True, deadline=None, database=None, max_examples=150)


@st.composite
def distributions(draw: st.DrawFn, other: st.SearchStrategy[float]) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher over one support; the first is finite, so neither is empty."""
    size = draw(st.integers(0, 6))
    rows = [[draw(finite), *draw(st.lists(other, min_size=size, max_size=size))] for _ in "st"]
    student, teacher = torch.tensor(rows, dtype=torch.float64)[:, None]
    return student, teacher


with_zeros = distributions(finite | st.just(-math.inf))


@properties
@given(with_zeros, st.sampled_from(KINDS), alphas)
def test_a_divergence_is_not_negative_and_zero_for_equals(
    logits: tuple[Tensor, Tensor], kind: DivergenceKind, alpha: float
) -> None:
    student, teacher = (row.log_softmax(-1) for row in logits)
    assert divergence(student, teacher, kind, alpha).item() >= -1e-12
    assert abs(divergence(student, student, kind, alpha).item()) < 1e-12


@properties
@given(distributions(finite), st.sampled_from(KINDS), st.floats(0.1, 0.9))
def test_a_divergence_of_zero_means_equal(
    logits: tuple[Tensor, Tensor], kind: DivergenceKind, alpha: float
) -> None:
    student, teacher = (row.log_softmax(-1) for row in logits)
    distance = (student.exp() - teacher.exp()).abs().sum().item()
    # Pinsker: KL >= d^2 / 2; for jsd each distribution is alpha d or (1 - alpha) d from M
    share = alpha * (1 - alpha) if kind == "jsd" else 1.0
    assert divergence(student, teacher, kind, alpha).item() >= share * distance**2 / 2 - 1e-12


@properties
@given(with_zeros, alphas)
def test_jsd_is_bounded_by_log_two(logits: tuple[Tensor, Tensor], alpha: float) -> None:
    student, teacher = (row.log_softmax(-1) for row in logits)
    assert divergence(student, teacher, "jsd", alpha).item() <= math.log(2) + 1e-12


@properties
@given(with_zeros, st.sampled_from(KINDS), alphas, st.sampled_from([None, 1, 2]), st.booleans())
def test_gradients_are_finite_and_the_teacher_has_none(
    logits: tuple[Tensor, Tensor],
    kind: DivergenceKind,
    alpha: float,
    top_k: int | None,
    tail: bool,
) -> None:
    student, teacher = (row.clone().requires_grad_() for row in logits)
    ids = support(student, top_k)
    theirs = support_logprobs(teacher, ids, tail)
    if not tail and theirs.isnan().any():
        return  # the teacher has no mass on the support: nothing to renormalise
    loss = divergence(support_logprobs(student, ids, tail), theirs, kind, alpha)
    of_student, of_teacher = torch.autograd.grad(loss.sum(), [student, teacher], allow_unused=True)
    assert loss.isfinite().all()
    assert of_student.isfinite().all()
    assert of_teacher is None


@properties
@given(with_zeros, st.integers(1, 6))
def test_both_closures_of_a_support_sum_to_one(logits: tuple[Tensor, Tensor], top_k: int) -> None:
    student, _ = logits
    ids = support(student, top_k)
    for tail in (True, False):
        total = support_logprobs(student, ids, tail).exp().sum().item()
        assert total == pytest.approx(1.0, abs=2e-7)
