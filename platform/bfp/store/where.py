"""Filters: which stacks of a store a job uses."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.errors import InputError
from bfp.storage import Place
from bfp.words import counted


def select(
    index: pa.Table,
    *,
    cohorts: Collection[str] | None = None,
    modalities: Collection[str] | None = None,
    subjects: Collection[str] | None = None,
    exclude_subjects: Collection[str] | None = None,
) -> pa.Table:
    """The rows of `SliceStore.stack_index()` for which every filter that is given holds, in their order.

    modalities: stacks that show at least one of these. subjects: "01" or "cohort/01", with or without `sub-`.
    Raises InputError where a subject without its cohort stands in two of the cohorts.
    """
    if cohorts is not None:
        index = index.filter(_among(index["cohort"], cohorts))
    keep = np.ones(index.num_rows, dtype=bool)
    if subjects is not None:
        keep &= _of_subjects(index, subjects)
    if exclude_subjects is not None:
        keep &= ~_of_subjects(index, exclude_subjects)
    if modalities is not None:
        keep &= (
            (_among(pc.list_flatten(index["modalities"]), modalities) & _flat(index["present"]))
            .reshape(-1, 3)
            .any(axis=1)
        )
    return index.filter(pa.array(keep))


def read_subjects(file: Place) -> list[str]:
    """The subjects of a text file, one a line ("01", "cohort/01"); empty lines and what follows `#` do not count."""
    lines = (line.partition("#")[0].strip() for line in file.read().decode().splitlines())
    return [line for line in lines if line]


def unknown_subjects(index: pa.Table, subjects: Collection[str]) -> list[str]:
    """Those of the subjects that have no row."""
    known = {*index["subject"].to_pylist()}
    known |= set(pc.binary_join_element_wise(index["cohort"], index["subject"], "/").to_pylist())
    return [subject for subject in subjects if _plain(subject) not in known]


def _of_subjects(index: pa.Table, subjects: Collection[str]) -> np.ndarray:
    """bool (n,): which rows are of these subjects."""
    wanted = [_plain(subject) for subject in subjects]
    alone = _among(index["subject"], wanted)
    _check_one_cohort(index.filter(pa.array(alone)))
    return alone | _among(pc.binary_join_element_wise(index["cohort"], index["subject"], "/"), wanted)


def _check_one_cohort(rows: pa.Table) -> None:
    cohorts: dict[str, set[str]] = {}
    for pair in rows.group_by(["cohort", "subject"]).aggregate([]).to_pylist():
        cohorts.setdefault(pair["subject"], set()).add(pair["cohort"])
    several = {subject: sorted(names) for subject, names in sorted(cohorts.items()) if len(names) > 1}
    if several:
        subject, names = next(iter(several.items()))
        more = f", and {counted(len(several) - 1, 'other')} alike" if len(several) > 1 else ""
        raise InputError(
            f"where: subject {subject} of the list stands in the cohorts {' and '.join(names)}{more}; "
            f"write {names[0]}/{subject}, or name one cohort in `where.cohorts`"
        )


def _plain(subject: str) -> str:
    """The subject without BIDS' prefix, and with its cohort if that is said."""
    cohort, slash, label = subject.rpartition("/")
    return cohort + slash + label.removeprefix("sub-")


def _among(column: pa.ChunkedArray, values: Collection[str]) -> np.ndarray:
    return np.asarray(pc.is_in(column, value_set=pa.array(list(values), pa.string())))


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.list_flatten(column))
