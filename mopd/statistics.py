"""Estimates from samples clustered by task: pass@k, means with intervals, AUC."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the bounds of its 95 % interval, in the unit of the scores."""

    mean: float
    ci_low: float
    ci_high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold one of the c correct ones.

    1 - C(n-c, k) / C(n, k), unbiased for the pass rate of k fresh samples; exact up to the last
    rounding. Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"got n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def clustered_mean(scores_by_task: Sequence[Sequence[float]]) -> Estimate:
    """Mean over tasks of the mean over a task's samples, with a 95 % interval clustered by task.

    The samples of a task share its difficulty, so the independent observations are the task means
    m_1..m_n, and the standard error is s / sqrt(n) with s their standard deviation: the clustered
    standard error (Miller 2024, arXiv 2411.00640) with n - 1 for n. It needs tasks drawn
    independently and nothing else, and holds the noise inside tasks as well as that between them.
    The interval is mean +- t s / sqrt(n), Student's t with n - 1 degrees of freedom. A percentile
    bootstrap over tasks estimates the same error, but without the factor n / (n - 1) and with
    about normal quantiles, so it is too narrow for few tasks, and it needs a seed.

    Nothing is clipped: bounds of a success rate may pass 0 or 1. Tasks that all have one mean give
    an interval of width zero: these tasks say nothing on the spread of others.
    Raises ValueError for fewer than two tasks, a task without samples, or a non-finite score.
    """
    if len(scores_by_task) < 2:
        raise ValueError(f"got {len(scores_by_task)} tasks; an interval needs at least 2")
    means = np.array([_task_mean(task, scores) for task, scores in enumerate(scores_by_task)])
    mean = float(means.mean())
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    half_width = _t_quantile(len(means) - 1) * error
    return Estimate(mean, mean - half_width, mean + half_width)


def paired_gain(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Estimate:
    """`clustered_mean` of after - before, task by task: the tasks' own spread cancels.

    Both list the same tasks in the same order; the numbers of samples may differ. Raises
    ValueError for different numbers of tasks, and where `clustered_mean` does.
    """
    if len(before) != len(after):
        raise ValueError(
            f"got {len(before)} tasks before and {len(after)} after; expected the same"
        )
    return clustered_mean(
        [
            [_task_mean(task, new) - _task_mean(task, old)]
            for task, (old, new) in enumerate(zip(before, after, strict=True))
        ]
    )


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Share of (success, failure) pairs in which the success scores higher; ties count half.

    The Mann-Whitney statistic U / (n_1 n_0), which is the area under the ROC curve (Hanley and
    McNeil 1982). Raises ValueError for different lengths, NaN, or labels of one kind only.
    """
    if len(scores) != len(labels):
        raise ValueError(f"got {len(scores)} scores and {len(labels)} labels; expected as many")
    values, is_success = np.asarray(scores, float), np.asarray(labels, bool)
    if np.isnan(values).any():
        raise ValueError("a score is NaN; expected numbers that can be ranked")
    successes, failures = values[is_success], np.sort(values[~is_success])
    if not (len(successes) and len(failures)):
        raise ValueError(
            f"got {len(successes)} successes and {len(failures)} failures; expected some of each"
        )
    below = np.searchsorted(failures, successes, side="left")
    not_above = np.searchsorted(failures, successes, side="right")
    return float((below + not_above).mean()) / (2 * len(failures))


def task_aucs(
    scores_by_task: Sequence[Sequence[float]], labels_by_task: Sequence[Sequence[bool]]
) -> list[float]:
    """The `auc` inside each task that has at least one success and one failure, in task order.

    Raises ValueError where the numbers of tasks, or of scores and labels of a task, differ.
    """
    if len(scores_by_task) != len(labels_by_task):
        raise ValueError(
            f"got scores of {len(scores_by_task)} tasks and labels of {len(labels_by_task)}; "
            "expected the same tasks"
        )
    pairs = list(zip(scores_by_task, labels_by_task, strict=True))
    for task, (scores, labels) in enumerate(pairs):
        if len(scores) != len(labels):
            raise ValueError(
                f"task {task} has {len(scores)} scores and {len(labels)} labels; expected as many"
            )
    return [auc(scores, labels) for scores, labels in pairs if any(labels) and not all(labels)]


def clustered_auc(
    scores_by_task: Sequence[Sequence[float]], labels_by_task: Sequence[Sequence[bool]]
) -> tuple[Estimate | None, int]:
    """`clustered_mean` of `task_aucs`, and the number of tasks that have one.

    The estimate is None below two such tasks: no interval can be given. Comparing inside tasks
    only keeps an easy task's higher scores from passing for agreement. Raises as `task_aucs`.
    """
    aucs = task_aucs(scores_by_task, labels_by_task)
    return (clustered_mean([[value] for value in aucs]) if len(aucs) > 1 else None), len(aucs)


def _task_mean(task: int, scores: Sequence[float]) -> float:
    if not len(scores):
        raise ValueError(f"task {task} has no scores; expected at least one")
    mean = float(np.mean(scores))
    if not math.isfinite(mean):
        raise ValueError(f"task {task} has mean score {mean}; expected finite scores")
    return mean


@lru_cache
def _t_quantile(df: int) -> float:
    """The t with P(|T| <= t) = 0.95 for Student's T of integer `df`, by bisection on the angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, df) < _CONFIDENCE else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _t_mass(theta: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan theta): Abramowitz and Stegun, eq. 26.7.3 (odd) and 26.7.4 (even)."""
    odd = df % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for j in range(df // 2):
        total += term
        term *= math.cos(theta) ** 2 * (2 * j + 1 + odd) / (2 * j + 2 + odd)
    total *= math.sin(theta)
    return (theta + total) * 2 / math.pi if odd else total
