"""Tests of whether one approach is better than another, both judged on the same sessions and folds.

    delong          of these trained heads, two classes: the difference of the folds' mean AUROC over its standard
                    error. Within a fold the variance is DeLong's (DeLong et al. 1988, doi 10.2307/2531595) in
                    Obuchowski's form for several sessions of a subject (Obuchowski 1997, doi 10.2307/2533958); folds
                    share no subject, so variances of their differences add up. What training on other subjects would
                    have made of the heads is not in it: of approaches that are equally good it finds every fourth pair
                    different.
    corrected_t     of the approaches: Student's t over the folds' differences, its variance widened since the folds'
                    training sessions are largely the same (Nadeau and Bengio 2003, doi 10.1023/A:1024068626366). So few
                    folds tell a variance badly: it is taken for no less than what the tested subjects alone make of it.
    plain_t         Student's t as if folds were independent, as papers often print it: it finds too much
    holm            p values of one table, adjusted for there being several (Holm 1979, Scand. J. Statist. 6:65)

All are two-sided. Letters: n sessions, J folds, m sessions of the class and o others in a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata, t


class Test(NamedTuple):
    """difference: of ours above theirs; error: its standard error; p: of no difference; None where undefined."""

    difference: float | None
    error: float | None
    p: float | None


UNDEFINED = Test(None, None, None)
_NOTHING = 1e-9  # of a standard error, beside the difference


def delong(
    positive: np.ndarray, ours: np.ndarray, theirs: np.ndarray, *, folds: np.ndarray, subjects: Sequence[str]
) -> Test:
    """positive: bool (n,); ours, theirs: scores float (n,); folds: int (n,); subjects: whose each session is.

    Folds without a session of the class or of the others are left out, as from the mean AUROC. Undefined where another
    one has a single subject of either, or no fold is left.
    """
    whose = np.unique(np.asarray(subjects), return_inverse=True)[1]
    parts = [folds == fold for fold in np.unique(folds)]
    found = [
        _delong(positive[own], ours[own], theirs[own], whose[own])
        for own in parts
        if positive[own].any() and not positive[own].all()
    ]
    if not found or None in found:
        return UNDEFINED
    differences, variances = np.array(found).T
    difference, error = float(differences.mean()), float(np.sqrt(variances.sum()) / len(found))
    return Test(difference, error, _two_sided(difference, error, norm.sf))


def _delong(
    positive: np.ndarray, ours: np.ndarray, theirs: np.ndarray, whose: np.ndarray
) -> tuple[float, float] | None:
    """Difference and variance in one fold, None where either side has fewer than two subjects."""
    sides = [len(np.unique(whose[positive])), len(np.unique(whose[~positive]))]
    if min(sides) < 2:
        return None
    (above, below), (their_above, their_below) = (_placements(scores, positive) for scores in (ours, theirs))
    difference, m, o = float(np.mean(above - their_above)), len(above), len(below)
    count = whose.max() + 1
    of_class = np.bincount(whose[positive], above - their_above - difference, minlength=count)  # sums by subject
    of_others = np.bincount(whose[~positive], below - their_below - difference, minlength=count)
    people = len(np.unique(whose))
    variance = (
        _freed(sides[0]) * (of_class @ of_class) / m**2
        + _freed(sides[1]) * (of_others @ of_others) / o**2
        + 2 * _freed(people) * (of_class @ of_others) / (m * o)
    )
    return difference, max(float(variance), 0.0)


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each session of the class the share of the others that it is above, (m,), and of each other session the share
    of the class that it is below, (o,); equal ones count half."""
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(scores[positive])) / np.sum(~positive)
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / np.sum(positive)
    return above, below


def _freed(count: int) -> float:
    """What makes a mean square over so many an unbiased variance."""
    return count / (count - 1)


def corrected_t(differences: Sequence[float | None], *, beside: float, least_error: float | None) -> Test:
    """differences: of each fold, undefined ones left out, of one cross-validation or of several, dealt anew (Bouckaert
    and Frank 2004, doi 10.1007/978-3-540-24775-3_3).

    beside: how many sessions a fold tests for each that its heads learn from. least_error: the standard error of the
    difference over tested subjects (of a bootstrap); None: not known.
    """
    return _t(differences, beside=beside, least_error=least_error or 0.0)


def tested_beside(folds: np.ndarray) -> float:
    """`beside`, where each fold learns from all the others. folds: int (n,), where each session was tested."""
    sizes = np.unique(folds, return_counts=True)[1]
    return float(np.mean(sizes / (len(folds) - sizes)))


def plain_t(differences: Sequence[float | None]) -> Test:
    """As `corrected_t`, without what is corrected."""
    return _t(differences, beside=0.0, least_error=0.0)


def _t(differences: Sequence[float | None], *, beside: float, least_error: float) -> Test:
    values = np.array([value for value in differences if value is not None])
    if len(values) < 2:
        return UNDEFINED
    difference = float(values.mean())
    error = max(float(np.sqrt((1 / len(values) + beside) * values.var(ddof=1))), least_error)
    return Test(difference, error, _two_sided(difference, error, lambda z: t.sf(z, len(values) - 1)))


def holm(found: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values, in the same order; undefined ones stay so and do not count."""
    p = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return [float(value) if np.isfinite(value) else None for value in adjusted]


def _two_sided(difference: float, error: float, tail: Callable[[float], float]) -> float | None:
    """None where nothing varies and there is a difference nevertheless: that so few always agree proves nothing."""
    if error <= _NOTHING * abs(difference):
        return 1.0 if difference == 0 else None
    return float(2 * tail(abs(difference) / error))
