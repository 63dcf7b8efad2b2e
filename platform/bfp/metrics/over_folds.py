"""A figure of a cross-validation: its value in each fold, their mean, and the interval of that mean.

Scores of different folds come from different heads and are not compared with one another, so a figure is computed in
each fold and averaged; its interval is of that same mean, by bootstrap over subjects. A fold in which the figure is
undefined (a class is missing) is left out, and where it is undefined in all the figure is None, never a guess.

Letters: n sessions, R sets of weights (`bfp.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bfp.metrics.bootstrap import REPLICATES, Interval, subject_bootstrap

Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth (n,), predicted (n,) or (n, K), weights float64 (R, n)) -> values float64 (R,), NaN where undefined."""


@dataclass(frozen=True, slots=True)
class OverFolds:
    """mean: of the folds where the figure is defined, with its interval; folds: each one's value, None: undefined."""

    mean: Interval
    folds: list[float | None]


def over_folds(
    figure: Figure,
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    folds: np.ndarray,
    subjects: Sequence[str],
    seed: int,
    replicates: int = REPLICATES,
) -> OverFolds:
    """predicted: of each session by the model that did not see its subject; folds: int (n,), where it was tested."""

    def by_fold(weights: np.ndarray) -> np.ndarray:
        return _by_fold(figure, truth, predicted, folds, weights)

    return _summed_up(by_fold, subjects=subjects, seed=seed, replicates=replicates)


def difference(
    figure: Figure,
    truth: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    *,
    folds: np.ndarray,
    subjects: Sequence[str],
    seed: int,
) -> OverFolds:
    """How much higher the figure of `predicted` is than that of `other`, on the same sessions, folds and replicates."""

    def by_fold(weights: np.ndarray) -> np.ndarray:
        ours, theirs = (_by_fold(figure, truth, said, folds, weights) for said in (predicted, other))
        return ours - theirs

    return _summed_up(by_fold, subjects=subjects, seed=seed, replicates=REPLICATES)


def _by_fold(
    figure: Figure, truth: np.ndarray, predicted: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(folds, R), NaN where undefined."""
    tested = [folds == fold for fold in np.unique(folds)]
    return np.stack([figure(truth[own], predicted[own], weights[:, own]) for own in tested])


def _summed_up(
    by_fold: Callable[[np.ndarray], np.ndarray], *, subjects: Sequence[str], seed: int, replicates: int
) -> OverFolds:
    def mean(weights: np.ndarray) -> np.ndarray:
        values = by_fold(weights)
        defined = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)

    once = by_fold(np.ones((1, len(subjects))))[:, 0]
    return OverFolds(
        mean=subject_bootstrap(mean, subjects=subjects, seed=seed, replicates=replicates),
        folds=[float(value) if np.isfinite(value) else None for value in once],
    )
