"""One linear head: logistic regression whose strength is chosen inside its training sessions.

The inverse strength C with the highest AUROC in a cross-validation of the training sessions, grouped by subject like
the outer one, is used to fit all of them (nested cross-validation: the tested sessions choose nothing). AUROC, the
figure that is reported, and not log loss: with few sessions and a weak signal log loss prefers the least confident
head, whose ranking is that of the largest nuisance (untrained tokens of 72 sessions: AUROC 0.43 where choosing by AUROC
gave 0.57 and the best single C 0.57). Of strengths that rank alike, log loss takes the best calibrated. Several classes
are one multinomial model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from bfp.finetuning.splits import grouped_folds
from bfp.metrics.auroc import auroc
from bfp.models.linear import LinearHead, standardisation

INNER_FOLDS = 5


class FittedHead(NamedTuple):
    """A head and the inverse strength C that was chosen for it."""

    head: LinearHead
    strength: float


def fit_head(
    vectors: np.ndarray,
    classes: np.ndarray,
    *,
    persons: Sequence[str],
    class_count: int,
    strengths: Sequence[float],
    seed: int,
) -> FittedHead:
    """A head for the training sessions.

    vectors: float (n, F), NaN where a session lacks a component; classes: int (n,), each of 0 … class_count-1 present;
    strengths: values of C to choose from.
    """
    whose = np.asarray(persons)
    fewest = min(len(np.unique(whose[classes == k])) for k in range(class_count))
    chosen = min(strengths)  # the most cautious, where there is nothing to choose by
    if len(strengths) > 1 and fewest > 1:
        folds = grouped_folds(
            persons=persons,
            classes=classes,
            strata=[""] * len(persons),
            class_names=[str(k) for k in range(class_count)],
            folds=min(INNER_FOLDS, fewest),
            seed=seed,
        )
        merits = _merits(vectors, classes, folds, strengths)
        chosen = max(zip(merits, strengths, strict=True))[1]
    return FittedHead(_fit(vectors, classes, [chosen])[0], chosen)


def _merits(
    vectors: np.ndarray, classes: np.ndarray, folds: np.ndarray, strengths: Sequence[float]
) -> list[tuple[float, float]]:
    """Of each strength the mean AUROC over the folds (rounded, so that ties are ties), then minus the mean log loss."""
    aurocs: list[list[float]] = [[] for _ in strengths]
    losses: list[list[float]] = [[] for _ in strengths]
    for fold in np.unique(folds):
        tested = folds == fold
        for number, head in enumerate(_fit(vectors[~tested], classes[~tested], strengths)):
            said = head.probabilities(vectors[tested])
            found = auroc(classes[tested], said)
            aurocs[number] += [found] if found is not None else []
            losses[number] += list(-np.log(np.maximum(said[np.arange(len(said)), classes[tested]], 1e-12)))
    return [
        (round(float(np.mean(own or [0.5])), 9), -float(np.mean(lost)))
        for own, lost in zip(aurocs, losses, strict=True)
    ]


def _fit(vectors: np.ndarray, classes: np.ndarray, strengths: Sequence[float]) -> list[LinearHead]:
    """A head of each strength."""
    centre, scale = standardisation(vectors)
    standardised = LinearHead(centre, scale, np.zeros((1, len(centre))), np.zeros(1)).standardise(vectors)
    # With an L2 penalty the weights lie in the span of the sessions: its few coordinates give exactly the same model.
    basis = np.linalg.qr(standardised.T)[0] if len(vectors) < len(centre) else np.eye(len(centre))  # (F, n)
    coordinates = standardised @ basis
    heads = []
    for strength in strengths:
        model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8).fit(coordinates, classes)
        weights, bias = model.coef_ @ basis.T, model.intercept_
        if len(weights) == 1:  # two classes: one logit of the second against the first
            weights, bias = np.vstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
        heads.append(LinearHead(centre, scale, weights, bias))
    return heads
