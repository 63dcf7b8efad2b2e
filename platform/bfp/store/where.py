"""Filters: which stacks of a store a job uses."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.storage import Place


def select(
    index: pa.Table,
    *,
    cohorts: Collection[str] | None = None,
    modalities: Collection[str] | None = None,
    subjects: Collection[str] | None = None,
    exclude_subjects: Collection[str] | None = None,
) -> pa.Table:
    """The rows of `SliceStore.stack_index()` for which every filter that is given holds, in their order.

    modalities: stacks that show at least one of these. subjects: with or without the prefix `sub-`.
    """
    keep = np.ones(index.num_rows, dtype=bool)
    if cohorts is not None:
        keep &= _among(index["cohort"], cohorts)
    if subjects is not None:
        keep &= _among(index["subject"], map(_plain, subjects))
    if exclude_subjects is not None:
        keep &= ~_among(index["subject"], map(_plain, exclude_subjects))
    if modalities is not None:
        keep &= (
            (_among(pc.list_flatten(index["modalities"]), modalities) & _flat(index["present"]))
            .reshape(-1, 3)
            .any(axis=1)
        )
    return index.filter(pa.array(keep))


def read_subjects(file: Place) -> list[str]:
    """The subjects of a text file, one a line; empty lines and what follows `#` do not count."""
    lines = (line.partition("#")[0].strip() for line in file.read().decode().splitlines())
    return [line for line in lines if line]


def _plain(subject: str) -> str:
    return subject.removeprefix("sub-")


def _among(column: pa.ChunkedArray, values: Collection[str] | map) -> np.ndarray:
    return np.asarray(pc.is_in(column, value_set=pa.array(list(values), pa.string())))


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.list_flatten(column))
