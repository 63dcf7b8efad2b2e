"""Whom an encoder has met in its pretraining: written beside its weights, so that whoever judges it can tell.

    <encoder>/seen.parquet     a row for each scan that it was shown

Two hashes of 64 bits stand in a row, and no name: of the subject (cohort and label), and of what the scan's voxels
came to when they were ingested (shape, window, share of head, brain volume, bias field: figures with all their digits,
which two scans hardly ever share). The second finds a person under another name, as long as both stores were made with
the same window and masks. A hash of a label that can be guessed tells who it is: the file is as private as the list of
subjects.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfp.errors import InputError
from bfp.storage import Place, intact

FILE = "seen.parquet"
SCHEMA = pa.schema([pa.field("subject", pa.int64()), pa.field("scan", pa.int64())])
LEAST_SHARE = 0.5  # of a subject's scans: single ones may look alike by chance
_VOXELS = ("shape", "window_low", "window_high", "foreground", "brain_ml", "bias_field_ratio")


class Met(NamedTuple):
    """Of the subjects that are judged, as cohort/subject: whom the encoder met under this name, and whom by scans whose
    voxels came to the same under whatever name."""

    by_name: frozenset[str]
    by_voxels: frozenset[str]

    @property
    def anyhow(self) -> frozenset[str]:
        return self.by_name | self.by_voxels


def fingerprints(scans: pa.Table) -> pa.Table:
    """Rows of SCHEMA. scans: rows of the store's table."""
    subjects = [_hash(f"{cohort}/{subject}") for cohort, subject in _identity(scans)]
    voxels = zip(*(scans[name].to_pylist() for name in _VOXELS), strict=True)
    return pa.table(
        [pa.array(subjects, pa.int64()), pa.array(map(_hash, map(repr, voxels)), pa.int64())], schema=SCHEMA
    )


def write_seen(folder: Place, tables: Iterable[pa.Table]) -> None:
    """tables: rows of SCHEMA, of this pretraining and of what it started from; equal rows are written once."""
    rows = sorted(
        {row for table in tables for row in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)}
    )
    columns = [pa.array([row[number] for row in rows], pa.int64()) for number in range(2)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), buffer, compression="zstd")
    (folder / FILE).write(buffer.getvalue())


def read_seen(folder: Place) -> pa.Table | None:
    """None where the encoder does not tell. Raises InputError where the file is no such table."""
    file = folder / FILE
    if not file.exists():
        return None
    with intact(file, "list of scans that were seen"), file.open_parquet() as parquet:
        found = parquet.read()
    if found.schema.names != SCHEMA.names:
        raise InputError(f"{file}: has the columns {', '.join(found.schema.names)}, expected {', '.join(SCHEMA.names)}")
    return found


def met(seen: pa.Table, scans: pa.Table) -> Met:
    """Which subjects of these scans (rows of the store's table) an encoder has met."""
    own = fingerprints(scans)
    names = np.array([f"{cohort}/{subject}" for cohort, subject in _identity(scans)], dtype=object)
    known, alike = (np.isin(own[name].to_numpy(), seen[name].to_numpy()) for name in SCHEMA.names)
    people, whose = np.unique(names.astype(str), return_inverse=True)
    share = np.bincount(whose, alike) / np.maximum(np.bincount(whose), 1)
    return Met(frozenset(names[known].tolist()), frozenset(people[share >= LEAST_SHARE].tolist()))


def _identity(scans: pa.Table) -> list[tuple[str, str]]:
    return list(zip(scans["cohort"].to_pylist(), scans["subject"].to_pylist(), strict=True))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
