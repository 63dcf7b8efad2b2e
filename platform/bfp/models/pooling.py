"""From the stacks of a session to one vector.

The mean over all stacks forgets where a slice lies. Pooling by position keeps it: the height of a head, from its lowest
to its highest slice, is cut into bands, and each band has a mean of its own. A store of the form `neighbours` has
stacks of several modalities, and each modality (`part`) is taken for itself. Means may be weighted (`attention`).

What a session lacks (a band without a slice, a modality that was not scanned) is NaN here; a head fills it with the
mean of the sessions that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pooling:
    """bands: of height, 1 for the mean of all slices. parts: of a session, in the order of the vector."""

    bands: int
    parts: tuple[str, ...]

    def pool(
        self,
        features: np.ndarray,
        *,
        heights: np.ndarray,
        parts: Sequence[str],
        scores: np.ndarray | None = None,
    ) -> np.ndarray:
        """One session's vector, float32 (len(self.parts) · bands · D,), NaN where it has no stack.

        features: float32 (n, D) of its n stacks; heights: (n,), 0 lowest to 1 highest; parts: of each stack.
        scores: (n,); where given, means are weighted by their softmax over the stacks of a band and part.
        """
        bags = self.bags(heights, parts)
        pooled = np.full((len(self.parts) * self.bands, features.shape[1]), np.nan, dtype=np.float32)
        for bag in np.unique(bags[bags >= 0]):
            own = bags == bag
            if scores is None:
                pooled[bag] = features[own].mean(axis=0, dtype=np.float64)
            else:
                powers = np.exp(scores[own] - scores[own].max())
                pooled[bag] = powers / powers.sum() @ features[own]
        return pooled.reshape(-1)

    def bags(self, heights: np.ndarray, parts: Sequence[str]) -> np.ndarray:
        """Which stacks are averaged together: int64 (n,), the place of each one's mean in the vector, counted in D; -1
        where its part is none of `self.parts`."""
        bands = np.minimum((np.asarray(heights) * self.bands).astype(np.int64), self.bands - 1)
        number_of = {part: number for number, part in enumerate(self.parts)}
        numbers = np.array([number_of.get(part, -1) for part in parts], dtype=np.int64)
        return np.where(numbers < 0, -1, numbers * self.bands + bands)
