"""Which stacks of a store have label maps or are of labelled sessions, and whether they are enough for a probe.

Light: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bfp.batches.held_out import held_out, is_held_out
from bfp.batches.plan import by_row_group
from bfp.cohorts.labels import present
from bfp.errors import InputError
from bfp.metrics.tissue import check_subjects
from bfp.store.reader import SliceStore, pixels_of
from bfp.words import some_of

MAX_STACKS = 1024  # of labelled sessions: 150 MB at 224 pixels; to read them costs as much as 1.3 steps of 64 stacks
CLASS_SUBJECTS = 2  # a value of a label counts when so many subjects have it, of those held out and of the others


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


class LabelledSessions(NamedTuple):
    """Sessions with one of the values of a label, S in all.

    names: the values, K of them; classes: int (S,), indices into names; subjects: of each; held_out: bool (S,).
    stacks: rows of an index, in order of session and slice; session_of: int (rows,), whose they are.
    """

    names: list[str]
    classes: np.ndarray
    subjects: list[str]
    held_out: np.ndarray
    stacks: pa.Table
    session_of: np.ndarray


def labelled_sessions(index: pa.Table, sessions: pa.Table, *, target: str, share: float, most: int) -> LabelledSessions:
    """The sessions with a value of the label `target` that enough subjects have, and at most so many stacks of them.

    sessions: rows of `store.sessions()`. share: of the subjects that are held out. The stacks are spread evenly over
    sessions and slices. Raises InputError where there is no such label, or fewer than two such values.
    """
    told = sessions.to_pylist(maps_as_pydicts="strict")
    columns = sorted({column for row in told for column in row["labels"] or ()})
    if target not in columns:
        raise InputError(f"no session carries a label {target}; found {', '.join(columns) or 'no labels at all'}")
    value_of = {
        (row["cohort"], row["subject"], row["session"]): present((row["labels"] or {}).get(target, "")) for row in told
    }
    keys = list(zip(*_columns(index, "cohort", "subject", "session"), strict=True))
    held = {key: held_out(*key[:2], share=share) for key in set(keys) if value_of.get(key)}
    subjects: dict[str, tuple[set[tuple[str, str]], set[tuple[str, str]]]] = {}
    for key, is_held in held.items():
        subjects.setdefault(value_of[key], (set(), set()))[is_held].add(key[:2])
    names = sorted(name for name, sides in subjects.items() if min(map(len, sides)) >= CLASS_SUBJECTS)
    if len(names) < 2:
        counts = [f"{name} {len(seen)} and {len(kept)}" for name, (seen, kept) in sorted(subjects.items())]
        raise InputError(
            f"needs two values that {CLASS_SUBJECTS} subjects each have, of those to learn from and of those held out; "
            f"found {some_of(counts) or 'none'}"
        )
    slices = index["slice"].to_pylist()
    rows = sorted((key, slices[row], row) for row, key in enumerate(keys) if value_of.get(key) in names)
    few = [rows[at] for at in np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    kept = sorted({key for key, _, _ in few})
    number = {key: at for at, key in enumerate(kept)}
    return LabelledSessions(
        names=names,
        classes=np.array([names.index(value_of[key]) for key in kept]),
        subjects=[f"{cohort}/{subject}" for cohort, subject, _ in kept],
        held_out=np.array([held[key] for key in kept]),
        stacks=index.take([row for _, _, row in few]),
        session_of=np.array([number[key] for key, _, _ in few]),
    )


class Read(NamedTuple):
    """Some stacks: their places in the table of all, their rows of it, and pixels uint8 (n, 3, H, W)."""

    at: np.ndarray
    rows: pa.Table
    pixels: np.ndarray


def read_stacks(store: SliceStore, stacks: pa.Table) -> Iterator[Read]:
    """The pixels of rows of the store's index, a row group at a time."""
    files = store.stack_files()
    for at in by_row_group(stacks):
        rows = stacks.take(at)
        group = store.read_row_group(files[rows["file"][0].as_py()], rows["row_group"][0].as_py())
        yield Read(at, rows, pixels_of(group)[rows["row"].to_numpy()])


def subjects_of(rows: pa.Table) -> list[str]:
    """Text that tells subjects apart over cohorts, for each row."""
    return [f"{cohort}/{subject}" for cohort, subject in zip(*_columns(rows, "cohort", "subject"), strict=True)]


def _keys(table: pa.Table, modality: list[str]) -> Iterator[tuple[str, str, str, str, int]]:
    return zip(*_columns(table, "cohort", "subject", "session"), modality, table["slice"].to_pylist(), strict=True)


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]
