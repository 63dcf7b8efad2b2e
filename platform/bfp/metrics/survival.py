"""Concordance of survival (Harrell et al. 1982, doi 10.1001/jama.1982.03320430047030), and the share without the event,
for R sets of weights at once.

Concordance: of all pairs of sessions of which one is known to have had the event before the other, the share in which
that one is said to be at the higher risk; equal risks count half. Of equal times a pair is comparable where one had the
event and the other was last seen then. Undefined (NaN) where no pair is comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from bfp.metrics.bootstrap import LEVEL, Interval


def pairs_of(targets: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are comparable, and by how much each is right (1, or 0.5): float64 (n, n), of a pair in the row of
    the one that is known to be first.

    targets: float64 (n, 2), time and event; said: (n, 1), the higher the sooner.
    """
    time, event, risk = targets[:, 0], targets[:, 1] == 1, said[:, 0]
    sooner = (time[:, None] < time) | ((time[:, None] == time) & ~event)
    comparable = (event[:, None] & sooner).astype(np.float64)
    return comparable, comparable * ((risk[:, None] > risk) + 0.5 * (risk[:, None] == risk))


def concordance(targets: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """targets, said: as of `pairs_of`; weights: float64 (R, n)."""
    comparable, right = pairs_of(targets, said)
    with np.errstate(invalid="ignore"):
        return np.sum(weights @ right * weights, axis=1) / np.sum(weights @ comparable * weights, axis=1)


def event_free(targets: np.ndarray, weights: np.ndarray, *, at: float) -> np.ndarray:
    """The share without the event by a time (Kaplan and Meier 1958, doi 10.1080/01621459.1958.10501452), (R,).

    NaN where everybody was last seen before that time. targets, weights: as of `concordance`.
    """
    time, came = targets[:, 0], targets[:, 1] == 1
    free = np.ones(len(weights))
    for moment in np.unique(time[came & (time <= at)]):
        at_risk = weights[:, time >= moment].sum(axis=1)
        events = weights[:, came & (time == moment)].sum(axis=1)
        free *= 1 - np.divide(events, at_risk, out=np.zeros_like(free), where=at_risk > 0)
    known = (weights[:, time >= at].sum(axis=1) > 0) | (free == 0)
    return np.where(known, free, np.nan)


def event_free_interval(targets: np.ndarray, *, subjects: Sequence[str], at: float) -> Interval:
    """The share without the event by a time, with its 95 % interval over subjects.

    On the scale of log(-log) (Kalbfleisch and Prentice 1980), so that it stays within 0 and 1; the variance is the
    infinitesimal jackknife's, summed over subjects, since sessions of one are no independent witnesses. Where nobody
    had the event, or everybody, there is no variance: the interval has one end, the exact one (Clopper and Pearson
    1934, doi 10.1093/biomet/26.4.404) of as many subjects as are known to be without it, or with it. By bootstrap,
    whose replicates hold no event either, it would have no width.
    """
    (free,) = event_free(targets, np.ones((1, len(targets))), at=at)
    if not np.isfinite(free):
        return Interval(None, None, None)
    time, came, whose = targets[:, 0], targets[:, 1] == 1, np.unique(np.asarray(subjects), return_inverse=True)[1]
    count = whose.max() + 1
    if free == 1:
        at_risk = len(np.unique(whose[time >= at]))
        return Interval(1.0, float((1 - LEVEL) ** (1 / at_risk)), 1.0)
    if free == 0:
        with_event = len(np.unique(whose[came & (time <= at)]))
        return Interval(0.0, 0.0, float(1 - (1 - LEVEL) ** (1 / with_event)))
    if count < 2:
        return Interval(float(free), None, None)
    influence = np.zeros(len(targets))  # of each session, on minus the logarithm of the share
    for moment in np.unique(time[came & (time <= at)]):
        there, now = time >= moment, came & (time == moment)
        share = now.sum() / there.sum()
        influence += (now - share * there) / (there.sum() * (1 - share))
    error = np.sqrt(count / (count - 1) * np.sum(np.bincount(whose, influence) ** 2)) / -np.log(free)
    reach = np.exp(ndtri((1 + LEVEL) / 2) * error)
    return Interval(float(free), float(free**reach), float(free ** (1 / reach)))
