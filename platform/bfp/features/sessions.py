"""Vectors of stacks -> one vector a session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from bfp.cohorts.sessions import Key
from bfp.features.extraction import vectors_of
from bfp.models.pooling import Pooling


def pool_sessions(features: pa.Table, sessions: Sequence[Key], pooling: Pooling) -> np.ndarray:
    """The pooled vectors of these sessions, float32 (len(sessions), F); a session without a stack is all NaN.

    Where a 4-D scan has stacks for each of its volumes, these are pooled as if they were further slices: volumes count
    alike, and the mean is over all of them, as in inference (`inference.ready`).
    features: rows of `extraction.schema`, in any order.
    """
    rows_of: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    identity = zip(*(features[name].to_pylist() for name in ("cohort", "subject", "session")), strict=True)
    for row, key in enumerate(identity):
        rows_of[key].append(row)
    vectors, heights, parts = (
        vectors_of(features),
        features["height"].to_numpy(),
        np.array(features["part"].to_pylist()),
    )
    return np.stack(
        [
            pooling.pool(vectors[rows], heights=heights[rows], parts=list(parts[rows]))
            for key in sessions
            for rows in [np.array(rows_of.get(key, []), dtype=np.int64)]
        ]
    )
