"""Cox's proportional hazards: how soon an event comes to a session's subject, against the others.

The partial likelihood (Cox 1972, doi 10.1111/j.2517-6161.1972.tb00899.x; equal times after Breslow 1974,
doi 10.2307/2529620) with an L2 penalty, maximised by L-BFGS. What a head says is a logarithm of relative hazard: an
order, and no time.

A strength is better by its concordance (`bfp.metrics.survival`), the figure that is reported; of those that order
alike, the stronger regularised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from bfp.finetuning.heads import in_span
from bfp.metrics.survival import concordance
from bfp.models.linear import LinearHead


@dataclass(frozen=True, slots=True)
class Cox:
    """A `Learner`. Targets: float64 (n, 2), the time (positive) and 1 where the event came then, 0 where the subject
    was last seen without it; a head says K = 1 number, the higher the sooner."""

    def fit(self, vectors: np.ndarray, targets: np.ndarray, strengths: Sequence[float]) -> list[LinearHead]:
        span, heads = in_span(vectors), []
        for strength in strengths:

            def loss(weights: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
                value, slope = partial_likelihood(span.coordinates @ weights, targets)
                return weights @ weights / 2 - strength * value, weights - strength * (span.coordinates.T @ slope)

            start = np.zeros(span.coordinates.shape[1])
            found = minimize(
                loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-7, "ftol": 1e-14}
            )
            heads.append(span.head(found.x[None], np.zeros(1)))
        return heads

    def say(self, head: LinearHead, vectors: np.ndarray) -> np.ndarray:
        return head.logits(vectors)

    def merit(self, targets: np.ndarray, said: np.ndarray, folds: np.ndarray) -> tuple[float, ...]:
        """The mean concordance over the folds where it is defined."""
        tested = [folds == fold for fold in np.unique(folds)]
        found = [float(concordance(targets[own], said[own], np.ones((1, own.sum())))[0]) for own in tested]
        defined = [value for value in found if np.isfinite(value)]
        return (round(float(np.mean(defined or [0.5])), 9),)

    def dealt(self, targets: np.ndarray) -> np.ndarray:
        return np.unique(targets[:, 1], return_inverse=True)[1].astype(np.int64)


def partial_likelihood(hazards: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The logarithm of the partial likelihood of log hazards (n,), and its slope by them (n,)."""
    order = np.argsort(-targets[:, 0], kind="stable")  # the last first: who is at risk at a time stands before it
    time, event, hazard = targets[order, 0], targets[order, 1], hazards[order]
    highest = hazard.max()
    weight = np.exp(hazard - highest)
    last_of_tie = np.searchsorted(-time, -time, side="right") - 1
    at_risk = np.cumsum(weight)[last_of_tie]
    value = float(event @ (hazard - highest - np.log(at_risk)))
    per_event = event / at_risk
    first_of_tie = np.searchsorted(-time, -time, side="left")
    met = np.cumsum(per_event[::-1])[::-1][first_of_tie]  # events at this time or before it
    slope = np.empty_like(hazard)
    slope[order] = event - weight * met
    return value, slope
