"""Figures of a regression, each for R sets of weights at once (`bfp.metrics.over_folds.Figure`).

numbers: float64 (n,); said: float64 (n, 1); weights: float64 (R, n); values float64 (R,), NaN where undefined.

    absolute_error   mean absolute error, in the unit of the numbers
    bias             mean of what is said less what is so, in that unit
    explained        R²: 1 less the squared error over that of the mean of these same sessions; below 0: worse than it
    correlation      Pearson's r
"""

from __future__ import annotations

import numpy as np

_NOTHING = 1e-12  # of a variance, beside that of all sessions


def absolute_error(numbers: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean(np.abs(said[:, 0] - numbers), weights)


def bias(numbers: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean(said[:, 0] - numbers, weights)


def explained(numbers: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    error, spread = _mean((said[:, 0] - numbers) ** 2, weights), _covariance(numbers, numbers, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > _NOTHING * np.var(numbers), 1 - error / spread, np.nan)


def correlation(numbers: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    own, ours = _covariance(numbers, numbers, weights), _covariance(said[:, 0], said[:, 0], weights)
    varies = (own > _NOTHING * np.var(numbers)) & (ours > _NOTHING * np.var(said))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, _covariance(numbers, said[:, 0], weights) / np.sqrt(own * ours), np.nan)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (weights @ values) / weights.sum(axis=1)


def _covariance(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    one, other = one - one.mean(), other - other.mean()  # first, so that large numbers cost no digits
    return _mean(one * other, weights) - _mean(one, weights) * _mean(other, weights)
