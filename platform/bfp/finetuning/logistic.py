"""One linear head: logistic regression whose strength is chosen inside its training sessions.

The strength C that gives the least log loss in a cross-validation of the training sessions, grouped by subject like
the outer one, is used to fit all of them (nested cross-validation: the tested sessions choose nothing). Log loss, not
AUROC: it also tells strengths apart that rank alike. Several classes are one multinomial model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from bfp.finetuning.splits import grouped_folds
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
    if len(strengths) == 1:
        return FittedHead(_fit(vectors, classes, strengths[0]), strengths[0])
    whose = np.asarray(persons)
    fewest = min(len(np.unique(whose[classes == k])) for k in range(class_count))
    if fewest < 2:  # nothing to choose by: the most cautious
        return FittedHead(_fit(vectors, classes, min(strengths)), min(strengths))
    folds = grouped_folds(
        persons=persons,
        classes=classes,
        strata=[""] * len(persons),
        class_names=[str(k) for k in range(class_count)],
        folds=min(INNER_FOLDS, fewest),
        seed=seed,
    )
    losses = [_log_loss(vectors, classes, folds, strength) for strength in strengths]
    chosen = strengths[int(np.argmin(losses))]
    return FittedHead(_fit(vectors, classes, chosen), chosen)


def _log_loss(vectors: np.ndarray, classes: np.ndarray, folds: np.ndarray, strength: float) -> float:
    """Mean negative log probability of the true class, each session judged by a head that has not seen its subject."""
    truth = np.empty(len(classes))
    for fold in np.unique(folds):
        tested = folds == fold
        head = _fit(vectors[~tested], classes[~tested], strength)
        truth[tested] = head.probabilities(vectors[tested])[np.arange(tested.sum()), classes[tested]]
    return float(-np.log(np.maximum(truth, 1e-12)).mean())


def _fit(vectors: np.ndarray, classes: np.ndarray, strength: float) -> LinearHead:
    centre, scale = standardisation(vectors)
    unfitted = LinearHead(centre, scale, np.zeros((1, len(centre))), np.zeros(1))
    standardised = unfitted.standardise(vectors)
    # With an L2 penalty the weights lie in the span of the sessions: its few coordinates give exactly the same model.
    basis = np.linalg.qr(standardised.T)[0] if len(vectors) < len(centre) else np.eye(len(centre))  # (F, n)
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-6).fit(standardised @ basis, classes)
    weights, bias = model.coef_ @ basis.T, model.intercept_
    if len(weights) == 1:  # two classes: one logit of the second against the first
        weights, bias = np.vstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
    return LinearHead(centre, scale, weights, bias)
