"""One linear head: logistic regression whose strength is chosen inside its training sessions.

The inverse strength C with the highest AUROC in a cross-validation of the training sessions, grouped by subject like
the outer one, is used to fit all of them (nested cross-validation: the tested sessions choose nothing). AUROC, the
figure that is reported, and not log loss: with few sessions and a weak signal log loss prefers the least confident
head, whose ranking is that of the largest nuisance (untrained tokens of 72 sessions: AUROC 0.43 where choosing by AUROC
gave 0.57 and the best single C 0.57). Several classes are one multinomial model.
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
    strengths: values of C to choose from; of equally good ones the smallest is taken.
    """
    choices = sorted(strengths)
    chosen = choices[0]
    whose = np.asarray(persons)
    fewest = min(len(np.unique(whose[classes == k])) for k in range(class_count))
    if len(choices) > 1 and fewest > 1:
        folds = grouped_folds(
            persons=persons,
            classes=classes,
            strata=[""] * len(persons),
            class_names=[str(k) for k in range(class_count)],
            folds=min(INNER_FOLDS, fewest),
            seed=seed,
        )
        chosen = choices[int(np.argmax(_inner_aurocs(vectors, classes, folds, choices)))]
    return FittedHead(_fit(vectors, classes, [chosen])[0], chosen)


def _inner_aurocs(vectors: np.ndarray, classes: np.ndarray, folds: np.ndarray, choices: list[float]) -> np.ndarray:
    """Of each strength the mean AUROC over the folds in which it is defined, rounded so that ties are ties."""
    by_fold = []
    for fold in np.unique(folds):
        tested = folds == fold
        heads = _fit(vectors[~tested], classes[~tested], choices)
        found = [auroc(classes[tested], head.probabilities(vectors[tested])) for head in heads]
        by_fold.append([np.nan if value is None else value for value in found])
    defined = np.isfinite(by_fold)
    return np.round(np.where(defined, by_fold, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1), 9)


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
