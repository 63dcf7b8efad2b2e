"""Logistic regression: which of K classes a session belongs to. Several classes are one multinomial model.

A strength is better by its AUROC, the figure that is reported, and not by log loss: with few sessions and a weak signal
log loss prefers the least confident head, whose ranking is that of the largest nuisance (untrained tokens of 72
sessions: AUROC 0.43 where choosing by AUROC gave 0.57 and the best single C 0.57). Of strengths that rank alike, log
loss takes the best calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from bfp.finetuning.heads import in_span
from bfp.metrics.auroc import auroc
from bfp.models.linear import LinearHead


@dataclass(frozen=True, slots=True)
class Logistic:
    """A `Learner`. Targets: int64 (n,), 0 … class_count-1, each present; a head says K = class_count probabilities."""

    class_count: int

    def fit(self, vectors: np.ndarray, targets: np.ndarray, strengths: Sequence[float]) -> list[LinearHead]:
        span, heads = in_span(vectors), []
        for strength in strengths:
            model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8).fit(span.coordinates, targets)
            weights, bias = model.coef_, model.intercept_
            if len(weights) == 1:  # two classes: one logit of the second against the first
                weights, bias = np.vstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
            heads.append(span.head(weights, bias))
        return heads

    def say(self, head: LinearHead, vectors: np.ndarray) -> np.ndarray:
        return head.probabilities(vectors)

    def merit(self, targets: np.ndarray, said: np.ndarray, folds: np.ndarray) -> tuple[float, ...]:
        """The mean AUROC over the folds (rounded, so that ties are ties), then minus the mean log loss."""
        aurocs = [auroc(targets[folds == fold], said[folds == fold]) for fold in np.unique(folds)]
        defined = [value for value in aurocs if value is not None]
        losses = -np.log(np.maximum(said[np.arange(len(said)), targets], 1e-12))
        return round(float(np.mean(defined or [0.5])), 9), -float(np.mean(losses))

    def dealt(self, targets: np.ndarray) -> np.ndarray:
        return targets
