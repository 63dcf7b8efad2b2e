"""What is in a store, in a few tables: scans by cohort and modality, what was rejected and why, which scans to look at.

For `bfp store show` and the report of an ingest: plain rows, which those two render.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.store.reader import SliceStore

EXAMPLES = 3


class ModalityRow(NamedTuple):
    """Scans of one modality in one cohort. Figures are medians over them; None where none is known."""

    cohort: str
    modality: str
    scans: int
    subjects: int
    stacks: int
    shift_mm: float | None
    foreground: float | None
    flagged: int


class RejectedRow(NamedTuple):
    """How often a reason was given, with the first few cases."""

    reason: str
    scans: int
    examples: tuple[str, ...]


class FlaggedRow(NamedTuple):
    """A scan that is in the store and worth a look: its warnings, as sentences."""

    cohort: str
    subject: str
    session: str
    modality: str
    shift_mm: float | None
    warnings: tuple[str, ...]


class Summary(NamedTuple):
    """modalities by cohort and name; rejected the most frequent first; flagged the furthest moved first."""

    modalities: list[ModalityRow]
    rejected: list[RejectedRow]
    flagged: list[FlaggedRow]


def summarise(store: SliceStore, *, cohorts: Collection[str] | None = None) -> Summary:
    """The summary of a store, or of some of its cohorts."""
    scans, rejected = (_of_cohorts(table, cohorts) for table in (store.scans(), store.rejected()))
    return Summary(_modalities(scans), _rejected(rejected), _flagged(scans))


def _of_cohorts(table: pa.Table, cohorts: Collection[str] | None) -> pa.Table:
    if cohorts is None:
        return table
    return table.filter(pc.is_in(table["cohort"], value_set=pa.array(list(cohorts), pa.string())))


def _modalities(scans: pa.Table) -> list[ModalityRow]:
    keys = scans.select(["cohort", "modality"]).group_by(["cohort", "modality"]).aggregate([]).to_pylist()
    rows = []
    for key in sorted(keys, key=lambda key: (key["cohort"], key["modality"])):
        own = scans.filter(pc.and_(*(pc.equal(scans[name], value) for name, value in key.items())))
        rows.append(
            ModalityRow(
                **key,
                scans=own.num_rows,
                subjects=pc.count_distinct(own["subject"]).as_py(),
                stacks=pc.sum(own["stacks"]).as_py(),
                shift_mm=_median(own["shift_mm"]),
                foreground=_median(own["foreground"]),
                flagged=pc.sum(pc.greater(pc.list_value_length(own["warnings"]), 0)).as_py() or 0,
            )
        )
    return rows


def _rejected(rejected: pa.Table) -> list[RejectedRow]:
    counts = {each["values"]: each["counts"] for each in pc.value_counts(rejected["reason"]).to_pylist()}
    rows = []
    for reason, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        first = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, EXAMPLES).to_pylist()
        rows.append(
            RejectedRow(reason, count, tuple(f"{row['uri'].rpartition('/')[2]}: {row['detail']}" for row in first))
        )
    return rows


def _flagged(scans: pa.Table) -> list[FlaggedRow]:
    names = ["cohort", "subject", "session", "modality", "shift_mm", "warnings"]
    own = scans.filter(pc.greater(pc.list_value_length(scans["warnings"]), 0)).select(names).to_pylist()
    rows = [FlaggedRow(**{**row, "warnings": tuple(row["warnings"])}) for row in own]
    return sorted(rows, key=lambda row: (-(row.shift_mm or 0.0), row))


def _median(column: pa.ChunkedArray) -> float | None:
    values = np.asarray(column.drop_null(), dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None
