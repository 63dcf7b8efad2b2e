"""A linear head and its strength of regularisation, learned from sessions and chosen inside them.

Three kinds of targets have a head each (`logistic`, `ridge`, `cox`); they differ in how weights are fitted, in what a
head says, and in what tells that one strength is better than another: a `Learner`. What they share stands here: the
strength with the highest merit in a cross-validation of the training sessions, grouped by subject like the outer one,
is used to fit all of them (nested cross-validation: the tested sessions choose nothing).

Letters: n sessions, F length of a vector, K columns of what is said of a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bfp.finetuning.splits import grouped_folds
from bfp.models.linear import LinearHead, standardisation

INNER_FOLDS = 5


class FittedHead(NamedTuple):
    """A head and the inverse strength C that was chosen for it."""

    head: LinearHead
    strength: float


class Learner(Protocol):
    """How heads for one kind of targets are learned, used and compared."""

    def fit(self, vectors: np.ndarray, targets: np.ndarray, strengths: Sequence[float]) -> list[LinearHead]:
        """A head of each inverse strength C. vectors: float (n, F), NaN where a session lacks a component."""
        ...

    def say(self, head: LinearHead, vectors: np.ndarray) -> np.ndarray:
        """What a head says of each session, float64 (n, K)."""
        ...

    def merit(self, targets: np.ndarray, said: np.ndarray, folds: np.ndarray) -> tuple[float, ...]:
        """How good it is, the larger the better. said: (n, K), of each session by the head that has not seen it, whose
        fold is in folds, int (n,)."""
        ...

    def dealt(self, targets: np.ndarray) -> np.ndarray:
        """int64 (n,): of which sort each session is, where folds are to be alike; 0, 1, … without a gap."""
        ...


def fit_head(
    learner: Learner,
    vectors: np.ndarray,
    targets: np.ndarray,
    *,
    persons: Sequence[str],
    strengths: Sequence[float],
    seed: int,
) -> FittedHead:
    """A head for the training sessions. strengths: values of C to choose from; persons: whose session it is."""
    chosen = min(strengths)  # the most cautious, where there is nothing to choose by
    folds = inner_folds(learner.dealt(targets), persons=persons, seed=seed)
    if len(strengths) > 1 and folds is not None:
        chosen = max(zip(_merits(learner, vectors, targets, folds, strengths), strengths, strict=True))[1]
    return FittedHead(learner.fit(vectors, targets, [chosen])[0], chosen)


def inner_folds(dealt: np.ndarray, *, persons: Sequence[str], seed: int) -> np.ndarray | None:
    """Folds inside the training sessions, int64 (n,); None where a sort of sessions is of one subject only."""
    whose, sorts = np.asarray(persons), range(int(dealt.max()) + 1)
    fewest = min(len(np.unique(whose[dealt == sort])) for sort in sorts)
    if fewest < 2:
        return None
    return grouped_folds(
        persons=persons,
        classes=dealt,
        strata=[""] * len(persons),
        class_names=[str(sort) for sort in sorts],
        folds=min(INNER_FOLDS, fewest),
        seed=seed,
    )


def _merits(
    learner: Learner, vectors: np.ndarray, targets: np.ndarray, folds: np.ndarray, strengths: Sequence[float]
) -> list[tuple[float, ...]]:
    pieces: list[list[np.ndarray]] = [[] for _ in strengths]  # of each strength, what was said fold by fold
    parts = [folds == fold for fold in np.unique(folds)]
    for tested in parts:
        for said, head in zip(pieces, learner.fit(vectors[~tested], targets[~tested], strengths), strict=True):
            said.append(learner.say(head, vectors[tested]))
    order = np.concatenate([np.flatnonzero(tested) for tested in parts])
    return [learner.merit(targets[order], np.concatenate(said), folds[order]) for said in pieces]


class InSpan(NamedTuple):
    """Standardised training vectors by their coordinates in what they span.

    With an L2 penalty the weights lie in the span of the sessions: its few coordinates give exactly the same model.
    coordinates: float64 (n, r); basis: (F, r).
    """

    centre: np.ndarray
    scale: np.ndarray
    coordinates: np.ndarray
    basis: np.ndarray

    def head(self, weights: np.ndarray, bias: np.ndarray) -> LinearHead:
        """weights: (K, r); bias: (K,)."""
        return LinearHead(self.centre, self.scale, weights @ self.basis.T, bias)


def in_span(vectors: np.ndarray) -> InSpan:
    centre, scale = standardisation(vectors)
    standardised = LinearHead(centre, scale, np.zeros((1, len(centre))), np.zeros(1)).standardise(vectors)
    if len(vectors) >= len(centre):
        return InSpan(centre, scale, standardised, np.eye(len(centre)))
    basis = np.linalg.qr(standardised.T)[0]  # (F, n)
    return InSpan(centre, scale, standardised @ basis, basis)
