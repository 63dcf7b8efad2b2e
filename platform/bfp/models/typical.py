"""How far a session lies from those that a model was trained on: what infer calls `distance` and `atypical`.

A head says something of any vector, also of a scanner, a contrast or a side up that it never met. A vector (F,) is
standardised as the head does it (a component that is absent counts as the training mean), then

    within      Mahalanobis distance in the first components of the training sessions, squared
    outside     what these components leave of it: squared norm of the rest

There are far fewer sessions n than components F, so the variance along a component is known for few: one component for
SESSIONS_PER_COMPONENT sessions, MOST_COMPONENTS at the most; and each variance is drawn towards their mean as Ledoit
and Wolf do (2004, doi 10.1016/S0047-259X(03)00096-4), for the smallest ones look smaller than they are.

Both parts are measured on training sessions too, each from the sessions of the other folds, as a new one would be: by
itself a session always lies near the components that it shaped. `distance` is the mean of the two parts, each in units
of the median of these held-out ones: 1 is usual. `atypical` is the share of the held-out ones that lie less far.
The measure is of complete sessions, unless fewer than half are: in stacks of several modalities an empty channel moves
a vector far, and with the sixth of the demo's sessions that lack one among the measured, 5 % of scans of an unseen
scanner and of inverted ones were beyond 95 % of them, which are told from usual ones with AUROCs of 0.96 and 1.00.
Neither changes when components of all vectors are shifted or scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bfp.models.linear import LinearHead, standardisation

SESSIONS_PER_COMPONENT = 10
MOST_COMPONENTS = 64
WARNED_FROM = 0.99  # of the held-out training sessions lie less far


class Parts(NamedTuple):
    """Of n vectors, float64 (n,) each: see the module."""

    within: np.ndarray
    outside: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """centre, scale: float64 (F,), as in a head; components: (k, F), orthonormal rows; variances: (k,), positive."""

    centre: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    variances: np.ndarray

    def parts(self, vectors: np.ndarray) -> Parts:
        """vectors: float (n, F)."""
        standardised = _standardised(self.centre, self.scale, vectors)
        along = standardised @ self.components.T
        rest = np.square(standardised).sum(axis=1) - np.square(along).sum(axis=1)
        return Parts((np.square(along) / self.variances).sum(axis=1), np.maximum(rest, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Typical:
    """The space of all training sessions, and how far they lie from the others.

    units: float64 (2,), the medians of both parts over the held-out sessions; held_out: float64 (n,), their distances,
    rising.
    """

    space: Space
    units: np.ndarray
    held_out: np.ndarray

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """float (n, F) to float64 (n,)."""
        return _in_units(self.space.parts(vectors), self.units)

    def atypical(self, distances: np.ndarray) -> np.ndarray:
        """The share (n,) of the held-out training sessions that lie less far, 0 to 1."""
        return np.searchsorted(self.held_out, distances, side="left") / len(self.held_out)

    def warning(self, atypical: float) -> str:
        """What a person must know of a session; "" where there is nothing."""
        if atypical < WARNED_FROM:
            return ""
        nearer = "all" if atypical == 1 else f"{atypical:.0%} of the"
        return (
            f"unlike what the model was trained on: {nearer} {len(self.held_out):,} training sessions lie less far; "
            "look at the scans before the prediction"
        )

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """For a safetensors file, beside the heads."""
        own = {name: getattr(self.space, name) for name in Space.__slots__}
        own |= {"units": self.units, "held_out": self.held_out}
        return {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in own.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], prefix: str = "") -> Typical:
        """The inverse of `tensors`."""
        space = Space(**{name: tensors[f"{prefix}{name}"] for name in Space.__slots__})
        return cls(space, tensors[f"{prefix}units"], tensors[f"{prefix}held_out"])

    def fault(self, *, length: int) -> str:
        """Why this cannot judge vectors of that length; "" where it can."""
        count = len(self.space.variances)
        shapes = tuple(getattr(self.space, name).shape for name in Space.__slots__)
        if shapes != ((length,), (length,), (count, length), (count,)) or self.units.shape != (2,):
            return f"training sessions described by shapes {shapes}, expected vectors of length {length}"
        arrays = (self.space.centre, self.space.components, self.space.variances, self.units, self.held_out)
        if not len(self.held_out) or not all(np.isfinite(array).all() for array in arrays):
            return "training sessions described by numbers that are not all finite"
        positive = all((array > 0).all() for array in (self.space.scale, self.space.variances, self.units))
        return "" if positive else "training sessions described by a scale that is not positive"


def fit_typical(vectors: np.ndarray, folds: np.ndarray, *, complete: np.ndarray) -> Typical:
    """vectors: float (n, F) of the training sessions, NaN where one lacks a component; folds: int (n,), at least two,
    those of the cross-validation, so that a subject is never its own measure; complete: bool (n,), whether a session
    has all modalities."""
    if 2 * complete.sum() >= len(vectors) and len(np.unique(folds[complete])) > 1:
        vectors, folds = vectors[complete], folds[complete]
    within, outside = np.empty(len(vectors)), np.empty(len(vectors))
    fewest = min(int((folds != fold).sum()) for fold in np.unique(folds))
    components = max(1, min(fewest // SESSIONS_PER_COMPONENT, MOST_COMPONENTS))  # in every space: distances compare
    for fold in np.unique(folds):
        tested = folds == fold
        within[tested], outside[tested] = fit_space(vectors[~tested], components).parts(vectors[tested])
    units = np.array([np.median(part) for part in (within, outside)])
    units[units <= 0] = 1.0  # nothing is left outside the components: the part is 0, whatever its unit
    return Typical(fit_space(vectors, components), units, np.sort(_in_units(Parts(within, outside), units)))


def fit_space(vectors: np.ndarray, components: int) -> Space:
    """float (n, F), n at least 2; so many components, or what the sessions have of them."""
    centre, scale = standardisation(vectors)
    standardised = _standardised(centre, scale, vectors)
    sessions = len(vectors)
    # The n × n matrix of products has the same components as the F × F one of covariances, and is the smaller one.
    spread, own = np.linalg.eigh(standardised @ standardised.T)
    spread, own = np.maximum(spread[::-1], 0.0), own[:, ::-1]
    there = int((spread > 1e-9 * max(spread[0], 1e-300)).sum())
    count = max(1, min(components, there))
    rows = (own[:, :count].T @ standardised) / np.sqrt(np.maximum(spread[:count, None], 1e-300))
    variances = np.maximum(spread[:count] / sessions, 1e-12)
    pulled = _shrinkage(own[:, :count] * np.sqrt(spread[:count]))
    return Space(centre, scale, rows, (1 - pulled) * variances + pulled * variances.mean())


def _shrinkage(along: np.ndarray) -> float:
    """How far the variances are drawn to their mean, 0 to 1. along: float64 (n, k), uncorrelated columns."""
    sessions, count = along.shape
    variances = np.square(along).mean(axis=0)
    apart = np.square(variances - variances.mean()).sum()
    # of each session's matrix of products around the covariance, in squared Frobenius norm
    noise = (np.square(np.square(along).sum(axis=1)).mean() - np.square(variances).sum()) / sessions
    return float(np.clip(noise / apart, 0.0, 1.0)) if count > 1 and apart > 0 else 0.0


def _standardised(centre: np.ndarray, scale: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return LinearHead(centre, scale, np.zeros((1, len(centre))), np.zeros(1)).standardise(vectors)


def _in_units(parts: Parts, units: np.ndarray) -> np.ndarray:
    return (parts.within / units[0] + parts.outside / units[1]) / 2
