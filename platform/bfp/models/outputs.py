"""What the numbers that a head says of a session mean, by the type of its task, and what a row of predictions tells.

    Classes   K logits: probabilities of classes, recalibrated ones, and whether a session is called positive
    Numbers   a number in the target's own unit, an interval around it, and which numbers were learned from
    Hazards   the logarithm of a relative hazard, and where among the training sessions it stands; no time is told

Each says the columns of a session (`told`; their names are those of `bfp.inference.kept`), and what a person must know
of them (`warnings`). The spread is the standard deviation over the heads of the folds, None without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from bfp.models.linear import LinearHead
from bfp.models.recalibration import Recalibration, Threshold

Value = str | float | bool | None
"""Of a session, in one column."""

_Finite = Field(allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Classes:
    """names: of the classes, in the order of the logits. recalibration, threshold: from held-out sessions; threshold:
    None with more than two classes."""

    names: tuple[str, ...]
    recalibration: Recalibration
    threshold: Threshold | None

    def told(self, vector: np.ndarray, head: LinearHead, fold_heads: Sequence[LinearHead]) -> dict[str, Value]:
        """Of a session. vector: float (1, F)."""
        (probabilities,) = said = head.probabilities(vector)
        (recalibrated,) = self.recalibration(said)
        likeliest = int(probabilities.argmax())
        return {
            "predicted": self.names[likeliest],
            **{f"prob_{name}": float(p) for name, p in zip(self.names, probabilities, strict=True)},
            **{f"recalibrated_{name}": float(p) for name, p in zip(self.names, recalibrated, strict=True)},
            "positive_at_90_specificity": bool(probabilities[1] >= self.threshold.probability)
            if self.threshold
            else None,
            "spread": _spread([own.probabilities(vector)[0, likeliest] for own in fold_heads]),
        }

    def warnings(self, told: Mapping[str, Value]) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class Margin:
    """Of an interval around a predicted number: half its width, and the share of new subjects whose number it is meant
    to hold (`bfp.metrics.conformal`)."""

    coverage: Annotated[float, Field(gt=0, lt=1)]
    half_width: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Numbers:
    """trained_from, trained_to: the smallest and the largest number that was learned from. margin: None where there
    were too few subjects for one."""

    trained_from: Annotated[float, _Finite]
    trained_to: Annotated[float, _Finite]
    margin: Margin | None

    def told(self, vector: np.ndarray, head: LinearHead, fold_heads: Sequence[LinearHead]) -> dict[str, Value]:
        """Of a session. vector: float (1, F)."""
        number = float(head.logits(vector)[0, 0])
        return {
            "predicted": number,
            "low": number - self.margin.half_width if self.margin else None,
            "high": number + self.margin.half_width if self.margin else None,
            "spread": _spread([own.logits(vector)[0, 0] for own in fold_heads]),
        }

    def warnings(self, told: Mapping[str, Value]) -> list[str]:
        number = told["predicted"]
        assert isinstance(number, float)
        if self.trained_from <= number <= self.trained_to:
            return []
        learned = f"{self.trained_from:g} to {self.trained_to:g}"
        found = f"predicted {number:.6g}, outside what the model learned from ({learned})"
        return [f"{found}: it knows nothing of such numbers; look at the scans before the prediction"]


@dataclass(frozen=True, slots=True, eq=False)
class Hazards:
    """held_out: float64 (n,), rising, the log hazards of the training sessions, each from the head of the fold that did
    not see its subject."""

    held_out: np.ndarray

    def told(self, vector: np.ndarray, head: LinearHead, fold_heads: Sequence[LinearHead]) -> dict[str, Value]:
        """Of a session. vector: float (1, F). The spread is of percentiles: hazards of two heads have no one unit."""
        hazard = float(head.logits(vector)[0, 0])
        return {
            "log_hazard": hazard,
            "percentile": self.percentile(hazard),
            "spread": _spread([self.percentile(own.logits(vector)[0, 0]) for own in fold_heads]),
        }

    def warnings(self, told: Mapping[str, Value]) -> list[str]:
        return []

    def percentile(self, hazard: float) -> float:
        """How many of a hundred held-out sessions have a lower one; equal ones count half."""
        below, up_to = (np.searchsorted(self.held_out, hazard, side=side) for side in ("left", "right"))
        return float(50 * (below + up_to) / len(self.held_out))

    def fault(self) -> str:
        """Why sessions cannot be put among these; "" where they can."""
        whole = self.held_out.ndim == 1 and len(self.held_out) and np.isfinite(self.held_out).all()
        return "" if whole and (np.diff(self.held_out) >= 0).all() else "log hazards of training sessions that are none"


Outputs = Classes | Numbers | Hazards


def _spread(said: Sequence[float]) -> float | None:
    return float(np.std(said)) if said else None
