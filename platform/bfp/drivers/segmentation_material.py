"""What a segmentation is learned from: the stacks of a store that have its labels, where each session's were drawn, and
the folds; for finetune and benchmark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.errors import InputError
from bfp.storage import place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.cohorts.sessions import Key
    from bfp.finetuning.segmentation import DrawnOn, Segmented
    from bfp.store.reader import SliceStore

AT_ONCE = 16
"""Questions to the storage."""


class Drawn(NamedTuple):
    """index: the stacks that have labels; study: of their sessions, all in one fold; left_out: why sessions are not
    among them, and how many."""

    index: pa.Table
    study: Segmented
    left_out: dict[str, int]


def drawn_in(store: SliceStore, index: pa.Table, segmentation: str) -> Drawn:
    """Of the stacks of an index, those that have labels of a segmentation. Raises InputError where none has."""
    import numpy as np

    from bfp.features.token_maps import Labels
    from bfp.finetuning.segmentation import Segmented

    if store.preprocessing.get("volumes") == "each":
        raise InputError(
            f"store: {store.place}: its scans have stacks of each of their volumes (preprocessing.volumes: each), and "
            "one mask for all; segment a store that was made with `first` or `mean`"
        )
    classes = store.classes(segmentation)
    if not index.num_rows:
        raise InputError(f"{store.place}: no stack is left by `where` and `modalities`")
    drawn = _with_labels(store, index, segmentation)
    sessions = _sessions(drawn)
    if not sessions:
        raise InputError(
            f"{store.place}: no stack that is left by `where` and `modalities` has labels of {segmentation}"
        )
    lacking = len(_sessions(index)) - len(sessions)
    spacing_mm = float(store.preprocessing["spacing_mm"])
    study = Segmented(
        sessions=sessions,
        drawn_on=_drawn_on(store, segmentation, sessions),
        folds=np.zeros(len(sessions), dtype=np.int64),
        labels=Labels(segmentation, classes),
        size_px=store.size_px,
        spacing_mm=(spacing_mm, spacing_mm, float(store.preprocessing.get("slice_spacing_mm") or spacing_mm)),
    )
    return Drawn(drawn, study, {f"no labels of {segmentation}": lacking} if lacking else {})


def _with_labels(store: SliceStore, index: pa.Table, segmentation: str) -> pa.Table:
    """The rows of an index whose stacks have label stacks, in its order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = ["cohort", "subject", "session", "slice"]
    ours = index.select(keys).append_column("place", pa.array(range(index.num_rows), pa.int64()))
    theirs = store.mask_index(segmentation).select([*keys, "modality"])
    if store.form == "neighbours":  # where each scan has stacks of its own, on the grid of one of which it was drawn
        keys.append("modality")
        ours = ours.append_column("modality", pc.list_element(index["modalities"], 0))
    places = ours.join(theirs, keys=keys, join_type="left semi")["place"]
    return index.take(places.combine_chunks().sort())


def _sessions(index: pa.Table) -> list[Key]:
    from bfp.cohorts.sessions import Key

    rows = index.group_by(list(Key._fields)).aggregate([])
    return sorted(Key(*key) for key in zip(*(rows[name].to_pylist() for name in Key._fields), strict=True))


def _drawn_on(store: SliceStore, segmentation: str, sessions: list[Key]) -> list[DrawnOn]:
    """Where the segmentation of each session was drawn."""
    import numpy as np

    from bfp.finetuning.segmentation import DrawnOn
    from bfp.imaging.grid import Grid

    maps = {
        (row["cohort"], row["subject"], row["session"]): row
        for row in store.label_maps().to_pylist()
        if row["segmentation"] == segmentation and row["reason"] is None
    }
    scans = {(row["cohort"], row["subject"], row["session"], row["modality"]): row for row in store.scans().to_pylist()}
    found = []
    for key in sessions:
        own = maps.get((key.cohort, key.subject, key.session))
        scan = scans.get((*key, own["drawn_on"])) if own else None
        told = scan is not None and scan["ras_from_working"] is not None
        working = Grid(scan["working_shape"], np.reshape(scan["ras_from_working"], (4, 4))) if scan and told else None
        motion = np.reshape(scan["reference_ras_from_scan_ras"], (4, 4)) if scan and told else np.eye(4)
        labels = place(own["uri"]) if own else store.place / "unknown"
        size_bytes, etag = (own["size_bytes"], own["etag"]) if own else (-1, "")
        found.append(DrawnOn(labels, size_bytes, etag, scan["uri"] if scan else "", working, motion))
    return found


def dealt(sessions: list[Key], segmentation: str, *, folds: int, seed: int, splits: str | None) -> np.ndarray:
    """int64 (n,): by the seed, stratified by cohort, or as the table `splits` says. Raises InputError."""
    import numpy as np

    from bfp.cohorts.labels import read_labels
    from bfp.finetuning.labels import of_table
    from bfp.finetuning.splits import given_folds, grouped_folds

    alike = np.zeros(len(sessions), dtype=np.int64)
    if splits is None:
        return grouped_folds(
            persons=[f"{key.cohort}/{key.subject}" for key in sessions],
            classes=alike,
            strata=[key.cohort for key in sessions],
            class_names=[segmentation],
            folds=folds,
            seed=seed,
        )
    return given_folds(
        of_table(read_labels(place(splits)), sessions),
        sessions=sessions,
        classes=alike,
        class_names=[segmentation],
        folds=folds,
        source=f"splits: {splits}",
    )


def split_csv(sessions: Sequence[Key], folds: np.ndarray) -> bytes:
    """cohort, subject, session, fold (from 1): the split, for other studies to use."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cohort", "subject", "session", "fold"])
    for key, fold in zip(sessions, folds, strict=True):
        writer.writerow([*key, fold + 1])
    return text.getvalue().encode()


def labels_seen(study: Segmented) -> list[list[Any]]:
    """Of each session, the file that what is predicted is compared with, and what is wrong with it now: a hash of
    results follows from it too. It asks the storage for every file."""
    from bfp.cohorts.threads import side_by_side

    faults = side_by_side(lambda where: where.fault(), study.drawn_on, at_once=AT_ONCE)
    return [
        [where.labels.uri, where.size_bytes, where.etag, fault]
        for where, fault in zip(study.drawn_on, faults, strict=True)
    ]
