"""The columns of the tables that bfp writes, for other programs: generated from the Arrow schemas that the writers use.

    python -m bfp.cli.columns schemas      writes schemas/<table>.columns.json

One file a table: where it lies, what a row is, and of each column the name, the Arrow type that a reader of the file
gets, whether it may be null, and the meaning. The meanings stand here: each column has one, or nothing is written.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Collection
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bfp.finetuning import tables
from bfp.inference import kept
from bfp.storage import place
from bfp.store import schemas

SIZE_PX = 224  # for which the width of pixels and labels is given; another `size` gives another width
CLASS = "<class>"  # stands for the name of each class of the model


class TableContract(NamedTuple):
    """files: where the table lies; row: what one row is."""

    files: str
    row: str
    schema: pa.Schema


TABLES = {
    "store-stacks": TableContract("<store>/stacks/part-<hash>.parquet", "a stack", schemas.stacks(SIZE_PX)),
    "store-masks": TableContract(
        "<store>/masks/part-<hash>.parquet", "a stack and a segmentation", schemas.masks(SIZE_PX)
    ),
    "store-scans": TableContract(
        "<store>/scans/part-<hash>.parquet", "a scan that is in the store, or a volume of it", schemas.SCANS
    ),
    "store-sessions": TableContract("<store>/sessions/part-<hash>.parquet", "a session", schemas.SESSIONS),
    "store-rejected": TableContract("<store>/rejected/part-<hash>.parquet", "a scan left out", schemas.REJECTED),
    "store-label_maps": TableContract(
        "<store>/label_maps/part-<hash>.parquet", "a label map or brain mask of a session", schemas.LABEL_MAPS
    ),
    "finetune-predictions": TableContract(
        "<run>/predictions/predictions.parquet",
        "an approach and a session, judged by the fold that did not see its subject",
        tables.predictions_schema(tables.columns_of("classification", [CLASS])),
    ),
    **{
        f"finetune-predictions-{kind}": TableContract(
            "<run>/predictions/predictions.parquet",
            f"as in finetune-predictions, of a {kind}",
            tables.predictions_schema(tables.columns_of(kind)),
        )
        for kind in ("regression", "survival")
    },
    "infer-predictions": TableContract(
        "<run>/predictions/predictions.parquet",
        "a session",
        kept.predictions_schema(kept.told_columns("classification", [CLASS]), embedding=True),
    ),
    **{
        f"infer-predictions-{kind}": TableContract(
            "<run>/predictions/predictions.parquet",
            f"a session, of a model for {kind}",
            kept.predictions_schema(kept.told_columns(kind), embedding=True),
        )
        for kind in ("regression", "survival")
    },
    "infer-embeddings": TableContract(
        "<run>/predictions/predictions.parquet", "a session, of an encoder without a head", kept.embeddings_schema()
    ),
    "finetune-segmentations": TableContract(
        "<run>/predictions/segmentations.parquet",
        "an approach, a session and a class, judged by the fold that did not see its subject",
        tables.SEGMENTATIONS,
    ),
    "infer-segmentations": TableContract(
        "<run>/predictions/predictions.parquet",
        "a session, of a model that segments",
        kept.segmentations_schema([CLASS]),
    ),
    "infer-rejected": TableContract("<run>/rejected/rejected.parquet", "a scan left out", kept.REJECTED),
}

IDENTITY = {
    "cohort": "name of the cohort",
    "subject": "label of the subject, without `sub-`",
    "session": "label of the session, without `ses-`; empty where the subject has one visit without a label",
}
SCAN = {"modality": "BIDS suffix, such as T1w", "uri": "the scan's file"}
PREDICTION = {
    f"prob_{CLASS}": "probability of the class; a column for each class of the model",
    "predicted": "the likeliest class",
}
JUDGED = {
    "approach": "what was judged: the encoder's vectors, or a baseline's",
    **IDENTITY,
    "fold": "in which the subject was tested, from 1",
}
LOT = "of the approach `permuted` the one that its permutation gave"
LOG_HAZARD = "logarithm of the relative hazard: the higher, the sooner"
UNKNOWN_SPREAD = "null of a model whose encoder was tuned"
REJECTED = {
    **IDENTITY,
    **SCAN,
    "reason": "why it was left out, one of a closed list (`bfp.errors.Reason`)",
    "detail": "what was found and what was expected",
}
SEEN = {
    "modalities": "that the model saw",
    "missing": "that the model was trained with and did not see",
    "stacks": "how many were seen",
    "shift_mm": "the largest header offset within the session, mm; null with one scan",
    "foreground": "the smallest share of a scan that is head",
    "warnings": "sentences for a person, each after its modality",
    "scans": "the files that were used",
    "model": "hash of the model that predicted",
    "bfp": "version that predicted",
    "inputs": "hash of the session's files, of the model and of how scans are prepared: with another, it "
    "is predicted anew",
}
EMBEDDING = "mean over stacks of the spread (standard deviation) of their patch tokens"
AMONG_TRAINED = {
    "distance": "from the training sessions that lack no modality; 1 is that of a usual one; null of a model whose "
    "encoder or pooling was trained",
    "atypical": "share of these training sessions, each held out, whose distance is smaller; from 0.99 on the row "
    "has a warning; null likewise",
    "embedding": f"{EMBEDDING}; only with `embedding: true`",
    **SEEN,
}
MEANINGS = {
    "store-stacks": {
        **IDENTITY,
        "modalities": "of the three channels",
        "present": "of the three channels: false where the session lacks the modality and the channel is zeros",
        "volume": "which one of a 4-D scan whose volumes have stacks each, from 0; null where the scan is one volume, "
        "and where an earlier bfp wrote it",
        "slice": "index of the centre slice along z of the working grid",
        "position_mm": "of the slice's centre, mm, RAS+: z of an axial one, y of a coronal one, x of a sagittal one",
        "height": "along that axis, 0 at the first slice kept of the scan, 1 at the last",
        "foreground": "share of the slice that is head",
        "pixels": "uint8 (3, size, size), row by row; axial: anterior up, the patient's left at column 0; coronal: "
        "superior up, left at column 0; sagittal: superior up, posterior at column 0; here for size 224",
    },
    "store-masks": {
        **IDENTITY,
        "segmentation": "its name in the cohort's spec",
        "slice": "as in stacks",
        "modality": "of the scan on whose working grid it lies; of a 4-D scan all volumes do",
        "labels": "uint16 (size, size), little-endian, of the stack's centre slice, laid out as pixels; 0 is none of "
        "the labels; here for size 224",
    },
    "store-scans": {
        **IDENTITY,
        **SCAN,
        "volume": "as in stacks; each has a row of its own",
        "size_bytes": "of the file",
        "etag": "a mark that changes when the file does: the object's etag, or the time of its last change in ns",
        "chosen": "of how many scans of its modality it was taken, and by what rule; empty where it was the only one; "
        "null where an earlier bfp wrote it",
        "shape": "of the volume as stored, voxels",
        "spacing_mm": "of the volume as stored, mm",
        "axes": "directions of the stored axes, such as LPS",
        "ras_from_native": "4 × 4, row by row: from stored voxels to the scanner's space, mm, RAS+",
        "working_shape": "of the grid that the stacks were cut from, voxels",
        "ras_from_working": "4 × 4, row by row: from voxels of the working grid to the reference scan's space, mm",
        "window_low": "the grey value, in the scan's units, that became 0; without the bias field, where that was "
        "corrected",
        "window_high": "the grey value, in the scan's units, that became 255; likewise",
        "register": "how it came onto its session's reference: rigid, header, or none (it is the reference, stands by "
        "itself, or shares the grid); of all scans of a store what was asked for, where an earlier bfp wrote it",
        "reference_ras_from_scan_ras": "4 × 4, row by row: the motion that was applied, mm; the identity for the "
        "reference and unless registered",
        "shift_mm": "how far rigid registration moves the head, applied or not, mm; under `register: header` to some "
        "2 mm where that shows that the header is right; null for the reference or if not estimated",
        "similarity_before": "normalised mutual information with the reference, by header; null if not estimated",
        "similarity_after": "the same after registration",
        "foreground": "share of the volume that is head",
        "brain": "where the brain mask comes from: none, given, image, deepbet or program; null where an earlier bfp "
        "wrote it",
        "brain_ml": "volume of the mask, ml; null without one",
        "bias_field_ratio": "strength of the bias field that was corrected, its 95th percentile within the foreground "
        "over its 5th; null where none was",
        "qform_sform_mm": "distance between the header's two geometries, mm; null unless the file has both",
        "stacks": "how many stacks show it",
        "warnings": "sentences for a person",
    },
    "store-sessions": {
        **IDENTITY,
        "modalities": "of its scans, whether or not they could be used",
        "labels": "what the cohort carried along, as text, by column name",
    },
    "store-rejected": REJECTED,
    "store-label_maps": {
        **IDENTITY,
        "segmentation": "its name in the cohort's spec; `brain` is the brain mask where brain: given",
        "drawn_on": "modality of the scan it was drawn on",
        "uri": "the label map's file",
        "size_bytes": "of the file; 0 where it is not there",
        "etag": "as in scans",
        "chosen": "of how many label maps it was taken, and by what rule; empty where it was the only one",
        "reason": "why it was not used, one of a closed list (`bfp.errors.Reason`); null where it was",
        "detail": "what was found and what was expected; null where it was used",
        "warnings": "sentences for a person",
    },
    "finetune-predictions": {**JUDGED, "class": f"the true class; {LOT}", **PREDICTION},
    "finetune-predictions-regression": {
        **JUDGED,
        "target": f"the true number; {LOT}",
        "predicted": "the number that was predicted, in the same unit",
    },
    "finetune-predictions-survival": {
        **JUDGED,
        "time": f"to the event, or to where the subject was last seen without it; {LOT}",
        "event": "1 where the event came at that time, else 0; likewise",
        "log_hazard": LOG_HAZARD,
    },
    "infer-predictions": {
        **IDENTITY,
        **PREDICTION,
        f"recalibrated_{CLASS}": "the probability, recalibrated on held-out training sessions; it holds where "
        "classes are as frequent as there",
        "positive_at_90_specificity": "whether the probability of the second of two classes is at least the one "
        "that 90 % of held-out training sessions of the first stay below; null with more classes",
        "spread": f"standard deviation, over the fold heads, of the predicted class's probability; {UNKNOWN_SPREAD}",
        **AMONG_TRAINED,
    },
    "infer-predictions-regression": {
        **IDENTITY,
        "predicted": "the number, in the target's own unit; outside the numbers of the training the row has a warning",
        "low": "lower end of an interval around it that held the true number of at least 90 % of held-out training "
        "subjects; null of a model of fewer than 9 subjects",
        "high": "the upper end; null likewise",
        "spread": f"standard deviation, over the fold heads, of the number; {UNKNOWN_SPREAD}",
        **AMONG_TRAINED,
    },
    "infer-predictions-survival": {
        **IDENTITY,
        "log_hazard": f"{LOG_HAZARD}; relative to the training sessions, and no time",
        "percentile": "how many of a hundred training sessions, each held out, have a lower one",
        "spread": f"standard deviation, over the fold heads, of the percentile; {UNKNOWN_SPREAD}",
        **AMONG_TRAINED,
    },
    "infer-embeddings": {
        **IDENTITY,
        "class_token": "mean of the stacks' class tokens",
        "patch_mean": "mean of the stacks' patch tokens",
        "embedding": EMBEDDING,
        **SEEN,
    },
    "finetune-segmentations": {
        **JUDGED,
        "class": "of the segmentation",
        "space": "native: compared in the file in which it was drawn; working: in the stacks, where that was not to be "
        "had",
        "dice": "null where nothing of the class was drawn, whatever was predicted",
        "hd95_mm": "the larger of the two 95th percentiles of the distances from one surface to the other, mm; null "
        "where the class is not both drawn and predicted",
        "predicted_ml": "volume of the class as predicted",
        "drawn_ml": "volume of the class as drawn",
    },
    "infer-segmentations": {
        **IDENTITY,
        "mask": "path of the session's mask below <run>/derivatives",
        "space": "the scan on whose voxels the mask lies",
        f"ml_{CLASS}": "volume of the class in the mask; a column for each class of the model",
        **SEEN,
    },
    "infer-rejected": {
        **REJECTED,
        "inputs": "as in predictions; null for what was left out before its session was read",
    },
}


def infer_meanings(columns: Collection[str]) -> dict[str, str]:
    """Of the columns of an inference's table, by those that only one kind of model has; also of the columns of other
    kinds, since a folder of derivatives may hold sessions of several models."""
    marks = {"log_hazard": "infer-predictions-survival", "low": "infer-predictions-regression"}
    marks |= {"mask": "infer-segmentations", "class_token": "infer-embeddings"}
    table = next((table for mark, table in marks.items() if mark in columns), "infer-predictions")
    others = {name: meaning for other in marks.values() for name, meaning in MEANINGS[other].items()}
    return others | MEANINGS["infer-predictions"] | MEANINGS[table]


def columns_text(table: str) -> str:
    """The published columns of a table as the text of their file."""
    contract, meanings = TABLES[table], MEANINGS[table]
    assert set(contract.schema.names) == set(meanings), table
    columns: list[dict[str, Any]] = [
        {"name": field.name, "type": str(field.type), "nullable": field.nullable, "meaning": meanings[field.name]}
        for field in _as_read(contract.schema)
    ]
    content = {"table": table, "files": contract.files, "row": contract.row, "columns": columns}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _as_read(schema: pa.Schema) -> pa.Schema:
    """The schema after a journey through Parquet, which has names of its own for what lists hold."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    return pq.read_schema(buffer)


def file_name(table: str) -> str:
    return f"{table}.columns.json"


if __name__ == "__main__":
    for table in TABLES:
        (place(sys.argv[1]) / file_name(table)).write(columns_text(table).encode())
