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
    """The same for each row of a table with cohort and subject: bool (rows,). A subject is asked of once."""
    cohort, subject = (rows[name].dictionary_encode().combine_chunks() for name in ("cohort", "subject"))
    pairs = np.asarray(cohort.indices).astype(np.int64) * len(subject.dictionary) + np.asarray(subject.indices)
    known, which = np.unique(pairs, return_inverse=True)
    cohorts, subjects = cohort.dictionary.to_pylist(), subject.dictionary.to_pylist()
    asked = (divmod(pair, len(subjects)) for pair in known.tolist())
    return np.array([held_out(cohorts[one], subjects[other], share=share) for one, other in asked], dtype=bool)[which]
