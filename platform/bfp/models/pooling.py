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
        bands = np.minimum((np.asarray(heights) * self.bands).astype(int), self.bands - 1)
        pooled = np.full((len(self.parts), self.bands, features.shape[1]), np.nan, dtype=np.float32)
        for number, part in enumerate(self.parts):
            mine = np.array([name == part for name in parts], dtype=bool)
            for band in np.unique(bands[mine]):
                own = mine & (bands == band)
                if scores is None:
                    pooled[number, band] = features[own].mean(axis=0, dtype=np.float64)
                else:
                    powers = np.exp(scores[own] - scores[own].max())
                    pooled[number, band] = powers / powers.sum() @ features[own]
        return pooled.reshape(-1)
