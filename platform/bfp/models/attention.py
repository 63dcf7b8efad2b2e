"""Attention pooling: the stacks of a session to one vector, by weights that were learned (gated attention).

Ilse, Tomczak and Welling 2018, arXiv 1802.04712, equation 9: stack k weighs softmax over the session's stacks of
w·(tanh(V u_k) ⊙ sigmoid(U u_k)), and the session's vector is the weighted mean of its stacks. What is weighed is each
stack's standardised vector z_k. What weighs, u_k, is z_k with its place beside it: waves of its height, and which part
it is of. (Departure: the paper's bag has no order, and a head has.)

A model has one such map for its head and one for the head of each fold, whose vectors stand side by side, as `Pooling`
has one for each band: a head looks at its own. Plain arrays, so that predicting needs no training code; the maps are
learned in `finetuning.network`, which takes `places` from here.

Letters: n stacks, D length of a stack's vector, P of its place, L of the hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WAVES = (0.5, 1.0, 2.0, 4.0)
"""Of the height, 0 to 1, in periods: the finest tells apart slices about 2 cm from each other."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMap:
    """centre, scale: float64 (D,), of the training stacks. tanh, sigmoid: (L, D + P) and their biases (L,); score:
    (L,)."""

    centre: np.ndarray
    scale: np.ndarray
    tanh: np.ndarray
    tanh_bias: np.ndarray
    sigmoid: np.ndarray
    sigmoid_bias: np.ndarray
    score: np.ndarray

    def weights(self, features: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How much each stack of one session weighs, float64 (n,), summing to 1; features (n, D), places (n, P)."""
        known = np.hstack([self._standardised(features), places])
        gate = 1 / (1 + np.exp(-(known @ self.sigmoid.T + self.sigmoid_bias)))
        scores = (np.tanh(known @ self.tanh.T + self.tanh_bias) * gate) @ self.score
        powers = np.exp(scores - scores.max())
        found: np.ndarray = powers / powers.sum()
        return found

    def pool(self, features: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The session's vector, float64 (D,)."""
        pooled: np.ndarray = self.weights(features, places) @ self._standardised(features)
        return pooled

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        standardised: np.ndarray = (features - self.centre) / self.scale
        return standardised

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """For a safetensors file, which may hold several maps under prefixes."""
        return {f"{prefix}{name}": np.ascontiguousarray(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], prefix: str = "") -> AttentionMap:
        """The inverse of `tensors`."""
        return cls(**{name: tensors[f"{prefix}{name}"] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPooling:
    """maps: of the model's head, then of each fold's. parts: of a session, as in `Pooling`."""

    maps: tuple[AttentionMap, ...]
    parts: tuple[str, ...]

    def pool(self, features: np.ndarray, *, heights: np.ndarray, parts: Sequence[str]) -> np.ndarray:
        """One session's vectors side by side, float32 (len(self.maps) · D,), NaN where it has no stack.

        features: float32 (n, D) of its n stacks; heights: (n,), 0 lowest to 1 highest; parts: of each stack.
        """
        if not len(features):
            return np.full(len(self.maps) * features.shape[1], np.nan, dtype=np.float32)
        where = places(heights, [self.parts.index(part) for part in parts], part_count=len(self.parts))
        return np.concatenate([each.pool(features, where) for each in self.maps]).astype(np.float32)


def places(heights: np.ndarray, parts: Sequence[int] | np.ndarray, *, part_count: int) -> np.ndarray:
    """Where stacks lie, float64 (n, P): waves of their heights, then a column for each part, 1 where it is of it."""
    turns = 2 * np.pi * np.asarray(heights, dtype=np.float64)[:, None] * np.array(WAVES)
    return np.hstack([np.sin(turns), np.cos(turns), np.eye(part_count)[np.asarray(parts, dtype=np.int64)]])
