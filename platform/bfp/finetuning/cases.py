"""Which sessions are shown as cases, and which slices of each: the surest of the right and of the wrong.

A case was judged by the head that did not see its subject. Cases are the best and the worst that there is, and no
sample: what most sessions look like they do not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_CASES = 8
SLICES = 4
APART = 0.05
"""Of the height: about 7 mm of a head. Neighbouring slices are nearly the same picture."""


class Case(NamedTuple):
    """session: its place in the study; fold: that tested it, from 0; target, taken_for: classes; probability: of
    `taken_for`."""

    session: int
    fold: int
    target: int
    taken_for: int
    probability: float

    @property
    def is_right(self) -> bool:
        return self.target == self.taken_for


def cases_of(
    targets: np.ndarray, said: np.ndarray, *, folds: np.ndarray, persons: Sequence[str], most: int = MOST_CASES
) -> list[Case]:
    """By class, first those that were rightly taken for it, then those that were wrongly taken for another, the surest
    first; as many of each as `most` allows, at least one, and of a subject the surest session alone.

    targets, folds: int (n,); said: float (n, K), out of fold.
    """
    class_count = said.shape[1]
    each = max(1, most // (2 * class_count))
    taken_for = said.argmax(axis=1)
    sure = said.max(axis=1)
    found: list[Case] = []
    for k in range(class_count):
        for own in (taken_for == k, taken_for != k):
            ranked = sorted(np.flatnonzero((targets == k) & own).tolist(), key=lambda n: (-sure[n], n))
            surest = {persons[n]: n for n in reversed(ranked)}  # the last that is set stays
            for n in sorted(surest.values(), key=lambda n: (-sure[n], n))[:each]:
                found.append(Case(n, int(folds[n]), k, int(taken_for[n]), float(sure[n])))
    return found


def telling_slices(shares: np.ndarray, *, heights: np.ndarray, parts: Sequence[str], most: int = SLICES) -> list[int]:
    """The stacks with the largest shares, for or against, in their order; those of one part lie APART from each other.

    shares, heights: (n,); parts: of each stack, as of `models.pooling`.
    """
    chosen: list[int] = []
    for n in np.argsort(-np.abs(shares), kind="stable").tolist():
        near = [m for m in chosen if parts[m] == parts[n] and abs(heights[m] - heights[n]) < APART]
        if not near and len(chosen) < most:
            chosen.append(n)
    return sorted(chosen)
