"""The tables of a cross-validation: who was tested in which fold, and what was said of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfp.finetuning.crossvalidation import Judged
from bfp.finetuning.labels import Labelled
from bfp.finetuning.splits import FOLD_COLUMN

if TYPE_CHECKING:  # torch
    from bfp.finetuning.segmentation import FoldResult, Segmented


class Columns(NamedTuple):
    """What the tables tell of a task: its targets and what is said of them.

    targets: name and type of each column of what is true; said: likewise of what a head says.
    """

    targets: list[pa.Field]
    said: list[pa.Field]


def columns_of(kind: str, classes: Sequence[str] = ()) -> Columns:
    """kind: of the task: classification (of these classes), regression or survival."""
    number = pa.float64()
    if kind == "classification":
        said = [pa.field(f"prob_{name}", number) for name in classes]
        return Columns([pa.field("class", pa.string())], [*said, pa.field("predicted", pa.string())])
    if kind == "regression":
        return Columns([pa.field("target", number)], [pa.field("predicted", number)])
    return Columns([pa.field("time", number), pa.field("event", number)], [pa.field("log_hazard", number)])


def predictions_schema(columns: Columns) -> pa.Schema:
    """One row per approach and session: fold (from 1), what is true, what the head said."""
    text = [pa.field(name, pa.string()) for name in ("approach", "cohort", "subject", "session")]
    return pa.schema([*text, pa.field("fold", pa.int32()), *columns.targets, *columns.said])


def predictions_parquet(
    judged: Mapping[str, Judged], labelled: Labelled, *, folds: np.ndarray, kind: str, classes: Sequence[str]
) -> bytes:
    """What every approach said of every session, from the head that did not see its subject; its target for it."""
    identity = [list(values) for values in zip(*labelled.sessions, strict=True)]
    schema = predictions_schema(columns_of(kind, classes))
    tables = []
    for name, each in judged.items():
        values = [
            [name] * len(labelled.sessions),
            *identity,
            folds + 1,
            *_targets(each.targets, classes),
            *each.said.T,
            *([[classes[k] for k in each.said.argmax(axis=1)]] if classes else []),
        ]
        arrays = [pa.array(own, field.type) for own, field in zip(values, schema, strict=True)]
        tables.append(pa.table(arrays, schema=schema))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    return buffer.getvalue()


def folds_csv(labelled: Labelled, *, folds: np.ndarray, kind: str, classes: Sequence[str]) -> bytes:
    """cohort, subject, session, what is true, fold (from 1): the split, for other studies to use."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    targets = _targets(labelled.targets, classes)
    writer.writerow(
        ["cohort", "subject", "session", *(field.name for field in columns_of(kind, classes).targets), FOLD_COLUMN]
    )
    for key, fold, *target in zip(labelled.sessions, folds, *targets, strict=True):
        writer.writerow([*key, *target, fold + 1])
    return text.getvalue().encode()


def _targets(targets: np.ndarray, classes: Sequence[str]) -> list[list[Any]]:
    """A column each of what is true."""
    if classes:
        return [[classes[k] for k in targets]]
    return [column.tolist() for column in targets.reshape(len(targets), -1).T]


SEGMENTATIONS = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("approach", "cohort", "subject", "session")),
        pa.field("fold", pa.int32()),
        pa.field("class", pa.string()),
        pa.field("space", pa.string()),
        pa.field("dice", pa.float64()),
        pa.field("hd95_mm", pa.float64()),
        pa.field("predicted_ml", pa.float64()),
        pa.field("drawn_ml", pa.float64()),
    ]
)
"""One row per approach, session and class: how the tested session came out. space: native, or working where the file
of its labels could not be had; dice, hd95_mm: null where undefined (`bfp.metrics.segmentation`)."""


def segmentations_parquet(study: Segmented, folds: Mapping[str, Sequence[FoldResult]]) -> bytes:
    """folds: of each approach."""
    rows = [
        {
            "approach": approach,
            **study.sessions[score.session]._asdict(),
            "fold": number,
            "class": name,
            "space": score.space,
            **found._asdict(),
        }
        for approach, results in folds.items()
        for number, result in enumerate(results, start=1)
        for score in result.scores
        for name, found in zip(study.labels.classes, score.overlaps, strict=True)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SEGMENTATIONS), buffer, compression="zstd")
    return buffer.getvalue()
