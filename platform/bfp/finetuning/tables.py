"""The tables of a cross-validation: who was tested in which fold, and what was said of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfp.finetuning.crossvalidation import Judged
from bfp.finetuning.labels import Labelled
from bfp.finetuning.splits import FOLD_COLUMN


def predictions_schema(classes: Sequence[str]) -> pa.Schema:
    """One row per approach and session: fold (from 1), the true class, the probability of each class, the likeliest."""
    text = [pa.field(name, pa.string()) for name in ("approach", "cohort", "subject", "session")]
    probabilities = [pa.field(f"prob_{name}", pa.float64()) for name in classes]
    return pa.schema(
        [
            *text,
            pa.field("fold", pa.int32()),
            pa.field("class", pa.string()),
            *probabilities,
            pa.field("predicted", pa.string()),
        ]
    )


def predictions_parquet(
    judged: Mapping[str, Judged], labelled: Labelled, *, folds: np.ndarray, classes: Sequence[str]
) -> bytes:
    """What every approach said of every session, from the head that did not see its subject; its class for it."""
    identity = [list(values) for values in zip(*labelled.sessions, strict=True)]
    schema = predictions_schema(classes)
    tables = []
    for name, each in judged.items():
        columns = [
            [name] * len(labelled.sessions),
            *identity,
            folds + 1,
            [classes[k] for k in each.classes],
            *each.probabilities.T,
            [classes[k] for k in each.probabilities.argmax(axis=1)],
        ]
        tables.append(
            pa.table(
                [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
            )
        )
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    return buffer.getvalue()


def folds_csv(labelled: Labelled, *, folds: np.ndarray, classes: Sequence[str]) -> bytes:
    """cohort, subject, session, class, fold (from 1): the split, for other studies to use."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cohort", "subject", "session", "class", FOLD_COLUMN])
    for key, number, fold in zip(labelled.sessions, labelled.classes, folds, strict=True):
        writer.writerow([*key, classes[number], fold + 1])
    return text.getvalue().encode()
