"""AUROC: the probability that a session of the class is ranked above one of another class, ties counting half.

Several classes: one-vs-rest, macro-averaged (the paper's figure). Where a class or its rest is missing the AUROC is
undefined: None, never 0.5.

Letters: n sessions, K classes, R sets of weights (`bfp.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bfp.metrics.bootstrap import Interval, subject_bootstrap_of_curve


class RocPoints(NamedTuple):
    """A ROC curve from (0, 0) to (1, 1)."""

    false_positive: np.ndarray
    true_positive: np.ndarray


def auroc(classes: np.ndarray, probabilities: np.ndarray) -> float | None:
    """classes: int (n,), probabilities: (n, K), one column a class. Two classes: of the second one's probability."""
    value = float(weighted_auroc(classes, probabilities, np.ones((1, len(classes))))[0])
    return value if np.isfinite(value) else None


def weighted_auroc(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUROC for each of R sets of weights (R, n): float64 (R,), NaN where it is undefined."""
    if probabilities.shape[1] == 2:
        return _binary(classes == 1, probabilities[:, 1], weights)
    one_vs_rest = [_binary(classes == k, probabilities[:, k], weights) for k in range(probabilities.shape[1])]
    return np.mean(one_vs_rest, axis=0)


def roc_curve(positive: np.ndarray, scores: np.ndarray) -> RocPoints:
    """positive: bool (n,), scores: (n,); the corners of the curve, one for each distinct score."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.cumsum(positive[order])[last_of_tie]
    false = np.cumsum(~positive[order])[last_of_tie]
    return RocPoints(np.r_[0, false] / max(false[-1], 1), np.r_[0, true] / max(true[-1], 1))


def mean_roc_curve(positive: np.ndarray, scores: np.ndarray, *, folds: np.ndarray) -> RocPoints:
    """The mean of the folds' curves at each false positive rate; its area is the mean of their AUROCs.

    Scores of different folds are never compared: their heads differ (vertical averaging, Fawcett 2006,
    doi 10.1016/j.patrec.2005.10.010). Folds without both kinds of sessions are left out.
    """
    defined = [fold for fold in np.unique(folds) if len(np.unique(positive[folds == fold])) == 2]
    curves = [roc_curve(positive[folds == fold], scores[folds == fold]) for fold in defined]
    if not curves:
        return RocPoints(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    rates = np.unique(np.concatenate([curve.false_positive for curve in curves]))
    ends = np.mean([_at(curve, rates) for curve in curves], axis=0)  # (2, rates)
    return RocPoints(np.repeat(rates, 2), ends.T.ravel())


def mean_roc_intervals(
    positive: np.ndarray,
    scores: np.ndarray,
    *,
    folds: np.ndarray,
    subjects: Sequence[str],
    rates: np.ndarray,
    seed: int,
) -> list[Interval]:
    """The mean curve's true positive rate at each of these false positive rates, the higher end where it rises there,
    with its 95 % interval over subjects (`bfp.metrics.bootstrap`); each rate by itself."""
    tested = [folds == fold for fold in np.unique(folds)]

    def mean(weights: np.ndarray) -> np.ndarray:
        values = np.stack([_true_positive(positive[own], scores[own], weights[:, own], rates) for own in tested])
        defined = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)

    return subject_bootstrap_of_curve(mean, subjects=subjects, seed=seed)


def _true_positive(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The highest true positive rate at these false positive rates for each set of weights (R, rates); NaN where
    undefined."""
    order = np.argsort(-scores, kind="stable")
    first_of_tie = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    ordered, is_positive = weights[:, order], positive[order]
    with np.errstate(invalid="ignore"):
        true, false = (
            np.pad(own.cumsum(axis=1) / own.sum(axis=1, keepdims=True), [(0, 0), (1, 0)])
            for own in (np.add.reduceat(ordered * which, first_of_tie, axis=1) for which in (is_positive, ~is_positive))
        )
    found = np.empty((len(weights), len(rates)))
    last, rows = false.shape[1] - 1, np.arange(len(weights))
    for column, rate in enumerate(rates):
        at = (false <= rate + 1e-12).sum(axis=1) - 1  # the last corner that is not beyond
        after = np.minimum(at + 1, last)
        width = false[rows, after] - false[rows, at]
        share = np.where(width > 0, (rate - false[rows, at]) / np.where(width > 0, width, 1), 0)
        found[:, column] = true[rows, at] + share * (true[rows, after] - true[rows, at])
    undefined = ~(np.isfinite(true[:, -1]) & np.isfinite(false[:, -1]))
    found[undefined] = np.nan
    return found


def _at(curve: RocPoints, rates: np.ndarray) -> np.ndarray:
    """The lowest and the highest true positive rate of a curve at these false positive rates, (2, rates)."""
    corners = np.unique(curve.false_positive)
    lowest = np.array([curve.true_positive[curve.false_positive == rate].min() for rate in corners])
    highest = np.array([curve.true_positive[curve.false_positive == rate].max() for rate in corners])
    left = np.searchsorted(corners, rates, side="right") - 1
    right = np.minimum(left + 1, len(corners) - 1)
    width = np.where(right > left, corners[right] - corners[left], 1.0)
    between = highest[left] + (lowest[right] - highest[left]) * (rates - corners[left]) / width
    on_corner = corners[left] == rates
    return np.stack([np.where(on_corner, lowest[left], between), np.where(on_corner, highest[left], between)])


def _binary(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of all pairs of a positive and another session, the weighted share that is ranked rightly (R,)."""
    order = np.argsort(scores, kind="stable")
    first_of_tie = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    ordered, is_positive = weights[:, order], positive[order]
    positives = np.add.reduceat(ordered * is_positive, first_of_tie, axis=1)  # (R, distinct scores)
    others = np.add.reduceat(ordered * ~is_positive, first_of_tie, axis=1)
    below = others.cumsum(axis=1) - others / 2
    with np.errstate(invalid="ignore"):
        return (positives * below).sum(axis=1) / (positives.sum(axis=1) * others.sum(axis=1))
