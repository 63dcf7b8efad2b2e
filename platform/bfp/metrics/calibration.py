"""Whether probabilities are what they say: of a hundred sessions said to be at 0.3, thirty should be of the class.

    in the large    mean probability less the share of the class: 0 is right, above 0 promises too much
    slope           of a logistic regression of the class on the log odds of the probability: 1 is right; below 1
                    they are too extreme, as an overfitted model's are (Cox 1958, doi 10.1093/biomet/45.3-4.562)
    curve           sessions in order of their probability, in bins of equally many: what was said and what was seen

Probabilities of all folds are taken together: they are on one scale, which is what is judged. Intervals are over
subjects. Letters: n sessions, R sets of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from bfp.metrics.bootstrap import Interval, Statistic, subject_bootstrap

BINS = 10
BIN_SESSIONS = 20  # fewer in a bin tell little
MOST_UNDEFINED = 0.02  # of the replicates of a slope
_EXTREME = 1e-6  # probabilities nearer to 0 or 1 have no log odds to speak of
_STEPS, _CLOSE, _STEEPEST = 50, 1e-8, 1e3


class Bin(NamedTuple):
    """said: the mean probability; seen: the share of the class, with its interval; sessions: how many."""

    said: float
    seen: Interval
    sessions: int


class Calibration(NamedTuple):
    in_the_large: Interval
    slope: Interval
    curve: list[Bin]


def calibration(positive: np.ndarray, probability: np.ndarray, *, subjects: Sequence[str], seed: int) -> Calibration:
    """positive: bool (n,); probability: float (n,) of being positive; subjects: whose each session is."""

    def interval(statistic: Statistic) -> Interval:
        return subject_bootstrap(statistic, subjects=subjects, seed=seed)

    def share_in(own: np.ndarray) -> Interval:
        found = interval(lambda weights: _mean(positive[own], weights[:, own]))
        # All alike: every replicate is too, and tells nothing of how far off their share may be.
        return found if 0 < positive[own].mean() < 1 else Interval(found.value, None, None)

    bins = int(np.clip(len(positive) // BIN_SESSIONS, 1, BINS))
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return Calibration(
        in_the_large=interval(lambda weights: _mean(probability - positive, weights)),
        slope=_unless_often_undefined(lambda weights: slopes(positive, probability, weights), interval),
        curve=[Bin(float(probability[own].mean()), share_in(own), len(own)) for own in parts],
    )


def _unless_often_undefined(statistic: Statistic, interval: Callable[[Statistic], Interval]) -> Interval:
    """No ends where too many replicates are undefined: those of a slope are the steepest."""
    undefined = []

    def counted(weights: np.ndarray) -> np.ndarray:
        values = statistic(weights)
        undefined.append((np.isnan(values).sum(), len(values)))
        return values

    found = interval(counted)
    bad, all_of_them = np.sum(undefined, axis=0)
    return found if bad <= MOST_UNDEFINED * all_of_them else Interval(found.value, None, None)


def slopes(positive: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The calibration slope for each set of weights (R,), by Newton's method on all at once.

    NaN where it is undefined: one class alone, a probability that never varies, classes that it separates wholly.
    """
    odds = logit(np.clip(probability, _EXTREME, 1 - _EXTREME))
    at = np.zeros((len(weights), 2))  # intercept, slope
    moved = np.full(len(weights), np.inf)
    for _ in range(_STEPS):
        said = expit(at[:, :1] + at[:, 1:] * odds)
        curvature, off = weights * said * (1 - said), weights * (positive - said)
        a, b, c = curvature.sum(axis=1), curvature @ odds, curvature @ odds**2
        g, h = off.sum(axis=1), off @ odds
        with np.errstate(all="ignore"):
            step = np.stack([c * g - b * h, a * h - b * g], axis=1) / (a * c - b * b)[:, None]
        moved = np.abs(step).max(axis=1)
        going = np.isfinite(moved) & (np.abs(at).max(axis=1) < _STEEPEST)
        at[going] += step[going]
        if not np.any(going & (moved > _CLOSE)):
            break
    return np.where(moved <= _CLOSE, at[:, 1], np.nan)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (weights @ values) / weights.sum(axis=1)
