"""A figure of a cross-validation: its value in each fold, their mean, and the interval of that mean.

Scores of different folds come from different heads and are not compared with one another, so a figure is computed in
each fold and averaged; its interval is of that same mean, by bootstrap over subjects. A fold in which the figure is
undefined (a class is missing) is left out, and where it is undefined in all the figure is None, never a guess.

What each session has a value of by itself (Dice) is comparable over all folds: such a figure (`MeanOverSessions`) is
the mean over all sessions in which it is defined, with the interval that holds for means
(`bfp.metrics.bootstrap.subject_bootstrap_of_mean`); a difference is the mean of the sessions' differences.

Letters: n sessions, R sets of weights (`bfp.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bfp.metrics.bootstrap import REPLICATES, Interval, subject_bootstrap, subject_bootstrap_of_mean

Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth (n,), predicted (n,) or (n, K), weights float64 (R, n)) -> values float64 (R,), NaN where undefined."""


@dataclass(frozen=True, slots=True)
class MeanOverSessions:
    """A `Figure`. of: (truth, predicted) -> the values of sessions, (n,), NaN where undefined; within: their range."""

    of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    within: tuple[float, float]

    def __call__(self, truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
        values = self.of(truth, predicted)
        there = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return (weights[:, there] @ values[there]) / weights[:, there].sum(axis=1)


@dataclass(frozen=True, slots=True)
class OverFolds:
    """mean: of the folds where the figure is defined, or of sessions, with its interval; folds: each one's value, None:
    undefined; defined: how many of the sessions have a say in it, those of the other folds, or without a value, not."""

    mean: Interval
    folds: list[float | None]
    defined: int


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
    if isinstance(figure, MeanOverSessions):
        values = figure.of(truth, predicted)
        return _of_sessions(values, folds, subjects=subjects, seed=seed, replicates=replicates, within=figure.within)

    def by_fold(weights: np.ndarray) -> np.ndarray:
        return _by_fold(figure, truth, predicted, folds, weights)

    return _summed_up(by_fold, folds, subjects=subjects, seed=seed, replicates=replicates)


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
    if isinstance(figure, MeanOverSessions):
        ours, theirs = (figure.of(truth, said) for said in (predicted, other))
        low, high = figure.within
        within = (low - high, high - low)
        return _of_sessions(ours - theirs, folds, subjects=subjects, seed=seed, replicates=REPLICATES, within=within)

    def by_fold(weights: np.ndarray) -> np.ndarray:
        ours, theirs = (_by_fold(figure, truth, said, folds, weights) for said in (predicted, other))
        return ours - theirs

    return _summed_up(by_fold, folds, subjects=subjects, seed=seed, replicates=REPLICATES)


def _by_fold(
    figure: Figure, truth: np.ndarray, predicted: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(folds, R), NaN where undefined."""
    tested = [folds == fold for fold in np.unique(folds)]
    return np.stack([figure(truth[own], predicted[own], weights[:, own]) for own in tested])


def _summed_up(
    by_fold: Callable[[np.ndarray], np.ndarray],
    folds: np.ndarray,
    *,
    subjects: Sequence[str],
    seed: int,
    replicates: int,
) -> OverFolds:
    def mean(weights: np.ndarray) -> np.ndarray:
        values = by_fold(weights)
        defined = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)

    once = by_fold(np.ones((1, len(subjects))))[:, 0]
    return OverFolds(
        subject_bootstrap(mean, subjects=subjects, seed=seed, replicates=replicates),
        _or_none(once),
        defined=int(np.isin(folds, np.unique(folds)[np.isfinite(once)]).sum()),
    )


def _of_sessions(
    values: np.ndarray,
    folds: np.ndarray,
    *,
    subjects: Sequence[str],
    seed: int,
    replicates: int,
    within: tuple[float, float],
) -> OverFolds:
    """values: of each session, (n,), NaN where undefined."""
    own = [values[(folds == fold) & np.isfinite(values)] for fold in np.unique(folds)]
    return OverFolds(
        subject_bootstrap_of_mean(values, subjects=subjects, seed=seed, replicates=replicates, within=within),
        _or_none([np.mean(each) if len(each) else np.nan for each in own]),
        defined=int(np.isfinite(values).sum()),
    )


def _or_none(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
