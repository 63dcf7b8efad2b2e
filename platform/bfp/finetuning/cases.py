"""Which sessions are shown as cases, and which slices of each: what the heads were most right and most wrong about.

A case was judged by the head that did not see its subject. Cases are the best and the worst that there is, and no
sample: what most sessions look like they do not say.

What is best has one scale, a session's merit: above 0 it is right, below 0 wrong, and the further from 0 the more so.

    classes   the probability of the class that it was taken for, below 0 where that is not its own
    numbers   by how much its absolute error is smaller than the median one
    times     its pairs in the right order less those in the wrong one

A pair is of two sessions of one fold, which one head has put in order, and of which one is known to have had the event
before the other (`metrics.survival`). So where the event was not seen, only events that came before the session was
last seen can show that its risk was put too high or was rightly low, and nothing can show that it was put too low. Who
was last seen early has few pairs, and by their number is neither best nor worst: by their share the worst would be
somebody with one wrong pair of one. Merits of times add up to 2P·(2C - 1), of P pairs and concordance C: the cases are
the sessions that lift and that lower it most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bfp.metrics.survival import pairs_of

MOST_CASES = 8
SLICES = 4
APART = 0.05
"""Of the height: about 7 mm of a head. Neighbouring slices are nearly the same picture."""


class Case(NamedTuple):
    """session: its place in the study; fold: that tested it, from 0; group: whose picture it is part of."""

    session: int
    fold: int
    group: int
    is_right: bool


class Order(NamedTuple):
    """Of each session, how many pairs it is part of, and how many of them are in the right order, equal risks counting
    half: float64 (n,)."""

    pairs: np.ndarray
    right: np.ndarray

    @property
    def merits(self) -> np.ndarray:
        merits: np.ndarray = 2 * self.right - self.pairs
        return merits


def merits_of_classes(targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    """targets: int (n,); said: float (n, K), probabilities."""
    return np.where(said.argmax(axis=1) == targets, 1, -1) * said.max(axis=1)


def merits_of_numbers(targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    """targets: float (n,); said: float (n, 1), numbers."""
    errors = np.abs(said[:, 0] - targets)
    merits: np.ndarray = np.median(errors) - errors
    return merits


def order_of_times(targets: np.ndarray, said: np.ndarray, *, folds: np.ndarray) -> Order:
    """targets: float (n, 2), time and event; said: float (n, 1), log hazards; folds: int (n,)."""
    order = Order(*np.zeros((2, len(targets))))
    for fold in np.unique(folds):
        own = folds == fold
        for found, of_pairs in zip(order, pairs_of(targets[own], said[own]), strict=True):
            found[own] = of_pairs.sum(axis=0) + of_pairs.sum(axis=1)
    return order


def cases_of(
    merits: np.ndarray, *, groups: np.ndarray, folds: np.ndarray, persons: Sequence[str], most: int = MOST_CASES
) -> list[Case]:
    """By group, first those that are right, then those that are wrong, the furthest from 0 first; as many of each as
    `most` allows, at least one, and of a subject the furthest session alone.

    merits: float (n,); groups, folds: int (n,).
    """
    different = np.unique(groups).tolist()
    each = max(1, most // (2 * len(different)))
    found: list[Case] = []
    for group in different:
        for way in (1, -1):
            own = np.flatnonzero((groups == group) & (way * merits > 0)).tolist()
            ranked = sorted(own, key=lambda n: -abs(merits[n]))
            furthest = {persons[n]: n for n in reversed(ranked)}  # the last that is set stays
            for n in [n for n in ranked if furthest[persons[n]] == n][:each]:
                found.append(Case(n, int(folds[n]), group, way > 0))
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
