"""What stands in a classifier's model.json beside its classes: how its probabilities are recalibrated, and from which
one on a session is called positive. Fitted by `bfp.metrics.recalibration` on held-out sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import expit, logit, softmax

_EXTREME = 1e-9  # probabilities nearer to 0 or 1 have no log odds to speak of


_Finite = Field(allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Platt:
    """Of two classes: log odds of the second one · slope + intercept."""

    slope: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    intercept: Annotated[float, _Finite]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """float (n, 2) to float64 (n, 2)."""
        second = expit(self.slope * log_odds(probabilities) + self.intercept)
        return np.stack([1 - second, second], axis=1)


@dataclass(frozen=True, slots=True)
class Temperature:
    """Of more classes: logits / temperature."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """float (n, K) to float64 (n, K)."""
        return np.asarray(softmax(logits_of(probabilities) / self.temperature, axis=1))


Recalibration = Platt | Temperature


@dataclass(frozen=True, slots=True)
class Threshold:
    """A session is called positive (of the second of two classes) where its probability is at least `probability`;
    specificity and sensitivity are those of the held-out sessions that it was found on."""

    probability: Annotated[float, _Finite]
    specificity: Annotated[float, Field(ge=0, le=1)]
    sensitivity: Annotated[float, Field(ge=0, le=1)]


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Of the second of two classes: float (n, 2) to float64 (n,)."""
    return np.asarray(logit(np.clip(probabilities[:, 1], _EXTREME, 1 - _EXTREME)))


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Up to a constant of each row."""
    return np.log(np.clip(probabilities, _EXTREME, 1.0))
