"""Ridge regression: a number for each session, such as age.

A strength is better by its mean absolute error, the figure that is reported.

A head is fitted on the standardised numbers, so that the same strengths suit years and millilitres, and says numbers in
their own unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge as SklearnRidge

from bfp.finetuning.heads import in_span
from bfp.finetuning.splits import bands_of
from bfp.models.linear import LinearHead


@dataclass(frozen=True, slots=True)
class Ridge:
    """A `Learner`. Targets: float64 (n,), finite; a head says K = 1 number."""

    def fit(self, vectors: np.ndarray, targets: np.ndarray, strengths: Sequence[float]) -> list[LinearHead]:
        span, mean, deviation = in_span(vectors), targets.mean(), targets.std()
        heads = []
        for strength in strengths:
            standardised = (targets - mean) / (deviation or 1.0)
            model = SklearnRidge(alpha=1 / strength, solver="svd").fit(span.coordinates, standardised)
            heads.append(
                span.head(deviation * model.coef_[None], np.array([mean + deviation * float(model.intercept_)]))
            )
        return heads

    def say(self, head: LinearHead, vectors: np.ndarray) -> np.ndarray:
        return head.logits(vectors)

    def merit(self, targets: np.ndarray, said: np.ndarray, folds: np.ndarray) -> tuple[float, ...]:
        return (-float(np.mean(np.abs(targets - said[:, 0]))),)

    def dealt(self, targets: np.ndarray) -> np.ndarray:
        return bands_of(targets)
