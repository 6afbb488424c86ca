import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]  # ships no types
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]  # ships no types

from mopd.statistics import (
    Estimate,
    auc,
    clustered_auc,
    clustered_mean,
    paired_gain,
    pass_at_k,
    task_aucs,
)


def test_the_import_needs_neither_torch_nor_scipy_nor_sklearn() -> None:
    code = "import sys, mopd.statistics; print({'torch', 'scipy', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# pass@k


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(8, 3, 1) == 3 / 8
    assert pass_at_k(4, 2, 2) == 5 / 6  # of the 6 pairs one is all wrong
    assert pass_at_k(8, 0, 4) == 0.0
    assert pass_at_k(8, 5, 4) == 1.0  # 3 failures cannot fill 4 draws
    assert pass_at_k(10_000, 1, 100) == 0.01


@pytest.mark.parametrize("n", [1, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be_drawn(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got n={n}, c={c}, k={k}; expected 0 <= c <= n"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(("n", "c", "k"), [(100, 7, 10), (200, 60, 100), (8, 8, 8)])
def test_pass_at_k_equals_the_hypergeometric_tail(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(stats.hypergeom(n, c, k).sf(0), rel=1e-9)


# means


def test_clustered_mean_by_hand() -> None:
    # task means 1, 1/2, 0: mean 1/2, standard deviation 1/2, t of 2 degrees of freedom 4.30265
    estimate = clustered_mean([[1, 1, 1, 1], [1, 0], [0]])
    half_width = 4.302652729749464 * 0.5 / math.sqrt(3)
    assert estimate.mean == 0.5
    assert estimate.ci_high == pytest.approx(0.5 + half_width, rel=1e-12)
    assert estimate.ci_low == pytest.approx(0.5 - half_width, rel=1e-12)  # below 0, not clipped


@pytest.mark.parametrize("tasks", [2, 3, 4, 5, 10, 31, 64, 501, 5000])
def test_the_interval_equals_scipys_t_interval_of_the_task_means(tasks: int) -> None:
    scores = np.random.default_rng(tasks).normal(size=(tasks, 3))
    means = scores.mean(axis=1)
    low, high = stats.t.interval(0.95, tasks - 1, loc=means.mean(), scale=stats.sem(means))
    estimate = clustered_mean(scores.tolist())
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high), rel=1e-9)


def test_tasks_that_agree_give_an_interval_of_width_zero() -> None:
    assert clustered_mean([[1.0, 1.0], [1.0]]) == Estimate(1.0, 1.0, 1.0)


def success_rates(rng: np.random.Generator, tasks: int, samples: int) -> list[list[float]]:
    """Graded successes on tasks whose difficulties differ widely: Beta(0.5, 1), mean 1/3."""
    rates = rng.beta(0.5, 1.0, size=(tasks, 1))
    return [row.tolist() for row in (rng.random((tasks, samples)) < rates).astype(float)]


@pytest.mark.parametrize(("tasks", "samples"), [(16, 8), (64, 4)])
def test_the_95_percent_interval_covers_the_truth_as_often(tasks: int, samples: int) -> None:
    rng = np.random.default_rng(0)
    covered, naively_covered = 0, 0
    for _ in range(500):
        scores = success_rates(rng, tasks, samples)
        estimate = clustered_mean(scores)
        covered += estimate.ci_low <= 1 / 3 <= estimate.ci_high
        pooled = clustered_mean([[score] for task in scores for score in task])
        naively_covered += pooled.ci_low <= 1 / 3 <= pooled.ci_high
    assert 0.90 <= covered / 500 <= 0.98
    assert naively_covered / 500 < 0.90  # samples taken for independent: why to cluster


def test_the_gain_interval_covers_the_truth_as_often() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        rates = rng.beta(0.5, 1.0, size=(40, 1))
        before = rng.random((40, 4)) < rates
        after = rng.random((40, 4)) < rates + 0.3 * (1 - rates)  # mean gain 0.3 * 2/3
        gain = paired_gain(before.astype(float).tolist(), after.astype(float).tolist())
        covered += gain.ci_low <= 0.2 <= gain.ci_high
    assert 0.90 <= covered / 500 <= 0.98


def test_pairing_takes_the_tasks_own_spread_out() -> None:
    before, after = [[0.0], [0.5], [0.9]], [[0.1, 0.1], [0.6], [0.9, 1.1]]
    gain = paired_gain(before, after)
    assert (gain.mean, gain.ci_low, gain.ci_high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_gain_equals_scipys_paired_t_interval() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.random((30, 4)), rng.random((30, 6))
    test = stats.ttest_rel(after.mean(axis=1), before.mean(axis=1))
    gain = paired_gain(before.tolist(), after.tolist())
    assert (gain.ci_low, gain.ci_high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_means_refuse_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="got 1 tasks; an interval needs at least 2"):
        clustered_mean([[1.0, 0.0]])
    with pytest.raises(ValueError, match="task 1 has no scores"):
        clustered_mean([[1.0], []])
    with pytest.raises(ValueError, match="task 0 has mean score nan"):
        clustered_mean([[math.nan], [1.0]])
    with pytest.raises(ValueError, match="got 2 tasks before and 3 after"):
        paired_gain([[1.0]] * 2, [[1.0]] * 3)


# AUC


def test_auc_by_hand() -> None:
    assert auc([0.1, 0.2, 0.3, 0.4], [False, False, True, True]) == 1.0
    assert auc([0.1, 0.2, 0.3, 0.4], [True, True, False, False]) == 0.0
    assert auc([1.0, 1.0, 1.0], [True, False, False]) == 0.5
    # pairs (2 > 1), (2 = 2), (0 < 1), (0 < 2): 1.5 of 4
    assert auc([2.0, 0.0, 1.0, 2.0], [True, True, False, False]) == 0.375
    assert auc([-math.inf, 0.0], [False, True]) == 1.0


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_equals_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, labels = [float(score) for score, _ in rows], [label for _, label in rows]
    if any(labels) and not all(labels):
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    else:
        with pytest.raises(ValueError, match="expected some of each"):
            auc(scores, labels)


def test_only_tasks_with_both_outcomes_have_an_auc() -> None:
    scores = [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [1.0, 1.0], []]
    labels = [[False, True], [True, True], [True, False], [True, False], []]
    assert task_aucs(scores, labels) == [1.0, 0.0, 0.5]
    estimate, tasks = clustered_auc(scores, labels)
    assert tasks == 3
    assert estimate == clustered_mean([[1.0], [0.0], [0.5]])


def test_below_two_mixed_tasks_there_is_no_auc_estimate() -> None:
    assert clustered_auc([[1.0, 2.0], [3.0]], [[False, True], [True]]) == (None, 1)
    assert clustered_auc([], []) == (None, 0)


def test_auc_refuses_what_cannot_be_ranked_or_paired() -> None:
    with pytest.raises(ValueError, match="got 2 scores and 1 labels"):
        auc([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="a score is NaN"):
        auc([1.0, math.nan], [True, False])
    with pytest.raises(ValueError, match="got scores of 1 tasks and labels of 2"):
        task_aucs([[1.0]], [[True], [False]])
    with pytest.raises(ValueError, match="task 0 has 2 scores and 1 labels"):
        task_aucs([[1.0, 2.0]], [[True]])
