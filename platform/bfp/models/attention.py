"""Attention pooling: `Pooling` whose means are weighted, by weights that were learned (gated attention).

Ilse, Tomczak and Welling 2018, arXiv 1802.04712, equation 9: stack k weighs softmax over its bag of
w·(tanh(V u_k) ⊙ sigmoid(U u_k)). The bag is a band of height of one part, as in `Pooling`: with one band it is the
session, as published; with several, attention begins as pooling by position (all scores alike) and learns which stacks
of a band to look at. u_k is the stack's standardised vector with its place beside it: waves of its height, since a bag
knows no order and a head has one, and which part it is of.

A model has one such map for its head and one for the head of each fold, whose vectors stand side by side: a head looks
at its own. Plain arrays, so that predicting needs no training code; the maps are learned in `finetuning.network`, which
takes `places` from here.

Letters: n stacks, D length of a stack's vector, P of its place, L of the hidden layer, F length of a session's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bfp.models.pooling import Pooling

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

    def scores(self, features: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How much each stack is looked at, before the softmax, float64 (n,); features (n, D), places (n, P)."""
        known = np.hstack([(features - self.centre) / self.scale, places])
        gate = 1 / (1 + np.exp(-(known @ self.sigmoid.T + self.sigmoid_bias)))
        found: np.ndarray = (np.tanh(known @ self.tanh.T + self.tanh_bias) * gate) @ self.score
        return found

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """For a safetensors file, which may hold several maps under prefixes."""
        return {f"{prefix}{name}": np.ascontiguousarray(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], prefix: str = "") -> AttentionMap:
        """The inverse of `tensors`."""
        return cls(**{name: tensors[f"{prefix}{name}"] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPooling:
    """maps: of the model's head, then of each fold's. within: the bands and parts whose means are weighted."""

    maps: tuple[AttentionMap, ...]
    within: Pooling

    @property
    def parts(self) -> tuple[str, ...]:
        return self.within.parts

    def pool(self, features: np.ndarray, *, heights: np.ndarray, parts: Sequence[str]) -> np.ndarray:
        """One session's vectors side by side, float32 (len(self.maps) · F,), NaN where it has no stack.

        features: float32 (n, D) of its n stacks; heights: (n,), 0 lowest to 1 highest; parts: of each stack.
        """
        where = places(heights, [self.parts.index(part) for part in parts], part_count=len(self.parts))
        return np.concatenate(
            [
                self.within.pool(features, heights=heights, parts=parts, scores=each.scores(features, where))
                for each in self.maps
            ]
        )


def places(heights: np.ndarray, parts: Sequence[int] | np.ndarray, *, part_count: int) -> np.ndarray:
    """Where stacks lie, float64 (n, P): waves of their heights, then a column for each part, 1 where it is of it."""
    turns = 2 * np.pi * np.asarray(heights, dtype=np.float64)[:, None] * np.array(WAVES)
    return np.hstack([np.sin(turns), np.cos(turns), np.eye(part_count)[np.asarray(parts, dtype=np.int64)]])
