"""The linear head: standardise a vector, weigh it; of classes, softmax. Plain arrays, so that predicting needs no
scikit-learn.

Letters: F length of a vector, K outputs: the logits of classes, one number, or one log hazard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bfp.words import counted


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """centre, scale: float64 (F,), from the training sessions; weights: (K, F) and bias (K,) of the outputs.

    A component that is NaN (the session lacks it) counts as the training mean; one that never varied in training is
    ignored.
    """

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def standardise(self, vectors: np.ndarray) -> np.ndarray:
        """float (n, F) to float64 (n, F) without NaN."""
        return np.nan_to_num((vectors - self.centre) / self.scale, nan=0.0)

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """float (n, F) to float64 (n, K)."""
        return self.standardise(vectors) @ self.weights.T + self.bias

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """float (n, F) to float64 (n, K), each row summing to 1."""
        logits = self.logits(vectors)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def fault(self, *, outputs: int, length: int) -> str:
        """Why this head cannot judge vectors of that length: shapes or values; "" where it can."""
        shapes = (self.centre.shape, self.scale.shape, self.weights.shape, self.bias.shape)
        expected = ((length,), (length,), (outputs, length), (outputs,))
        if shapes != expected:
            return f"a head of shapes {shapes}, expected {expected} for {counted(outputs, 'output')}"
        if not all(np.isfinite(array).all() for array in (self.centre, self.weights, self.bias)):
            return "a head whose numbers are not all finite"
        return "" if (self.scale > 0).all() else "a head with a scale that is not positive"

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """For a safetensors file, which may hold several heads under prefixes."""
        return {f"{prefix}{name}": np.ascontiguousarray(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], prefix: str = "") -> LinearHead:
        """The inverse of `tensors`."""
        return cls(**{name: tensors[f"{prefix}{name}"] for name in cls.__slots__})


def standardisation(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale (F,) of the training vectors (n, F), over what is there.

    A component that nobody has gets centre 0, one that does not vary gets scale infinity: it then counts for nothing.
    """
    there = np.isfinite(vectors)
    count = np.maximum(there.sum(axis=0), 1)
    values = np.where(there, vectors, 0.0).astype(np.float64)
    centre = values.sum(axis=0) / count
    deviation = np.sqrt((np.where(there, values - centre, 0.0) ** 2).sum(axis=0) / count)
    flat = deviation <= 1e-6 * np.maximum(np.abs(centre), 1e-6)
    return centre, np.where(flat, np.inf, deviation)


def standardised(vectors: np.ndarray, training: np.ndarray) -> np.ndarray:
    """All vectors (n, F) by the training ones among them, bool (n,): float64 (n, F) without NaN, as a head has them."""
    centre, scale = standardisation(vectors[training])
    return np.nan_to_num((vectors - centre) / scale, nan=0.0)
