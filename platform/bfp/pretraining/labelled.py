"""Which stacks of a store have label maps, and whether they are enough for a probe. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bfp.batches.held_out import is_held_out
from bfp.metrics.tissue import check_subjects


class Labelled(NamedTuple):
    """stacks: the rows of an index that have labels, in order of subject and slice; masks: int (n,), where they are."""

    stacks: pa.Table
    masks: np.ndarray


def labelled_stacks(index: pa.Table, masks: pa.Table) -> Labelled:
    """The stacks that have labels. masks: rows of `store.mask_index()` or `store.masks()`, of one segmentation.

    Labels lie on the working grid of the scan that is the stack's first present channel.
    """
    where = {key: row for row, key in enumerate(_keys(masks, masks["modality"].to_pylist()))}
    shown = zip(index["modalities"].to_pylist(), index["present"].to_pylist(), strict=True)
    first = [modalities[present.index(True)] for modalities, present in shown]
    found = sorted((key, row, where[key]) for row, key in enumerate(_keys(index, first)) if key in where)
    rows = np.array([row for _, row, _ in found], dtype=np.int64)
    return Labelled(index.take(rows), np.array([mask for _, _, mask in found], dtype=np.int64))


def check_enough(stacks: pa.Table, *, share: float) -> None:
    """Raise InputError where too few subjects have labels, of those that are held out or of the others."""
    held, subjects = is_held_out(stacks, share=share), np.array(subjects_of(stacks), dtype=object)
    check_subjects(len(set(subjects[~held])), len(set(subjects[held])))


def subjects_of(rows: pa.Table) -> list[str]:
    """Text that tells subjects apart over cohorts, for each row."""
    return [f"{cohort}/{subject}" for cohort, subject in zip(*_columns(rows, "cohort", "subject"), strict=True)]


def _keys(table: pa.Table, modality: list[str]) -> Iterator[tuple[str, str, str, str, int]]:
    return zip(*_columns(table, "cohort", "subject", "session"), modality, table["slice"].to_pylist(), strict=True)


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]
