"""Concordance of survival (Harrell et al. 1982, doi 10.1001/jama.1982.03320430047030), and the share without the event,
for R sets of weights at once.

Concordance: of all pairs of sessions of which one is known to have had the event before the other, the share in which
that one is said to be at the higher risk; equal risks count half. Of equal times a pair is comparable where one had the
event and the other was last seen then. Undefined (NaN) where no pair is comparable.
"""

from __future__ import annotations

import numpy as np


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
