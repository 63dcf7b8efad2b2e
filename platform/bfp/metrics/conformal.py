"""How far a predicted number may be off: half the width of an interval, from errors on held-out sessions.

Split conformal prediction (Lei et al. 2018, doi 10.1080/01621459.2017.1307116): of n absolute errors, and of a new
session like them, the new one is not above the ⌈(n+1)(1-α)⌉-th smallest with a probability of 1-α at least. Two things
are otherwise here.

Sessions of one subject are alike, so a subject weighs 1 and each of its sessions its share of that, beside a new
subject of weight 1 whose error may be anything (Lee, Barber and Willett 2023, arXiv 2306.06342).

The errors are those of a cross-validation, and the head that predicts was fitted on all sessions. With the interval
around its prediction that is the jackknife's, over folds, and not the CV+ of Barber et al. (2021, doi
10.1214/20-AOS1965), which needs the heads of all folds for each prediction, and so cannot serve where each fold had an
encoder of its own. It has no guarantee for every head; for stable ones it holds, since a head of all sessions errs a
little less than those that were measured (`tests/metrics/test_conformal.py` counts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COVERAGE = 0.9
"""Of new subjects like those of the training, 1-α: so many have the true number inside their interval."""


def half_width(errors: np.ndarray, *, subjects: Sequence[str], coverage: float = COVERAGE) -> float | None:
    """In the unit of the errors. errors: float (n,), absolute, of held-out sessions; subjects: whose each is.

    None where there are too few subjects for any finite interval: fewer than 9 for 90 %.
    """
    whose, sizes = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)[1:]
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(1 / sizes[whose[order]])
    wanted = coverage * (len(sizes) + 1)
    at = int(np.searchsorted(reached, wanted - 1e-9))  # sums of shares are not exact
    return float(errors[order[at]]) if at < len(order) else None
