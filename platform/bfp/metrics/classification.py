"""Figures of a classifier beside the AUROC, each for R sets of weights at once (`bfp.metrics.over_folds.Figure`).

classes: int (n,); probabilities: float (n, K), rows adding up to 1; weights: float64 (R, n); values float64 (R,). With
two classes a figure is that of the second one, with more the mean of each class against the rest (macro). Where a class
or, for what needs it, its rest has no weight a figure is undefined: NaN. The decision is the likeliest class.

    average_precision     area under the precision-recall curve, by steps: what precision costs each gain of recall
    balanced_accuracy     the mean of the classes' recalls
    f1                    harmonic mean of precision and recall
    sensitivity_at        the highest sensitivity at which at least so much specificity is left
    brier                 mean squared error of the probabilities; two classes: of the second one's, more: summed over
                          them (Brier 1950, doi 10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPECIFICITY = 0.9
_ROUNDING = 1e-9  # of sums of weights, relative


def average_precision(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def of_class(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
        hits, others = above(positive, scores, weights)
        gained = np.diff(hits, axis=1, prepend=0)
        with np.errstate(invalid="ignore"):
            precision = np.where(gained > 0, hits / (hits + others), 0)
        return (gained * precision).sum(axis=1) / hits[:, -1]

    return _macro(of_class, classes, probabilities, weights)


def balanced_accuracy(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    confusion = confusion_of(classes, probabilities, weights)
    with np.errstate(invalid="ignore"):
        return (np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(axis=2)).mean(axis=1)


def f1(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    confusion = confusion_of(classes, probabilities, weights)
    there, said = confusion.sum(axis=2), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        each = np.where(there > 0, 2 * np.diagonal(confusion, axis1=1, axis2=2) / (there + said), np.nan)
    return each[:, 1] if each.shape[1] == 2 else each.mean(axis=1)


def sensitivity_at(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """At a specificity of SPECIFICITY or more."""

    def of_class(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
        hits, others = above(positive, scores, weights)
        allowed = others <= (1 - SPECIFICITY + _ROUNDING) * others[:, -1:]
        return np.where(allowed, hits, 0).max(axis=1) / hits[:, -1]

    return _macro(of_class, classes, probabilities, weights)


def brier(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Defined whatever classes are there; lower is better."""
    errors = (probabilities - np.eye(probabilities.shape[1])[classes]) ** 2
    each = errors[:, 1] if probabilities.shape[1] == 2 else errors.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (weights @ each) / weights.sum(axis=1)


def confusion_of(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much of each class (rows) was taken for each class (columns): float64 (R, K, K)."""
    count = probabilities.shape[1]
    cell = classes * count + probabilities.argmax(axis=1)
    return (weights @ np.eye(count**2)[cell]).reshape(len(weights), count, count)


def _macro(
    of_class: Callable[[np.ndarray, np.ndarray], np.ndarray],
    classes: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    found = []
    for k in (1,) if probabilities.shape[1] == 2 else range(probabilities.shape[1]):
        positive = classes == k
        both = ((weights @ positive) > 0) & ((weights @ ~positive) > 0)
        with np.errstate(invalid="ignore"):
            found.append(np.where(both, of_class(positive, probabilities[:, k]), np.nan))
    return np.mean(found, axis=0)


def above(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives and of others at or above each distinct score, from the highest: (R, distinct) each."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    ordered = weights[:, order]
    hits, others = (np.cumsum(ordered * own, axis=1)[:, last_of_tie] for own in (positive[order], ~positive[order]))
    return hits, others
