"""Which subjects training never sees, so that something can be judged on them.

By a hash of the subject's name: it depends on nothing else, so a subject is held out in every run of the same share,
whatever the store holds besides, and a later check finds the same ones.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa


def held_out(cohort: str, subject: str, *, share: float) -> bool:
    """Whether a subject belongs to the share that is held out."""
    digest = hashlib.sha256(f"held out\0{cohort}\0{subject}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def is_held_out(rows: pa.Table, *, share: float) -> np.ndarray:
    """The same for each row of a table with cohort and subject: bool (rows,)."""
    keys = list(zip(rows["cohort"].to_pylist(), rows["subject"].to_pylist(), strict=True))
    known = {key: held_out(*key, share=share) for key in set(keys)}
    return np.array([known[key] for key in keys], dtype=bool)
