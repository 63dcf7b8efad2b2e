"""What an inference does otherwise where its model is an encoder without a head: embeddings, and no prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from bfp import __version__
from bfp.drivers.infer_outputs import Row
from bfp.drivers.infer_results import PICTURE, SHOWN_ROWS, missing_table, rejected_table, to_look_at, without_rows
from bfp.imaging.stacks import SliceAxis
from bfp.inference.kept import Kept
from bfp.reports.blocks import Block, Cell, Facts, Picture, Results, Table, Text
from bfp.reports.pictures import orientation
from bfp.runs import Run
from bfp.specs.infer import Infer

LIMITS = (
    "For research; not a medical device. An embedding says nothing by itself: which of its numbers tell of a disease, "
    "of age or of the scanner is for a study to find out, with sessions of several sites on both sides. Whether scans "
    "are like those of the pretraining is not told here."
)


def results_of(spec: Infer, run: Run, told: dict[str, Any], kept: Kept, *, with_pictures: bool) -> Results:
    """Figures and blocks, of everything that stands in the two tables."""
    rows, axis = kept.predictions.to_pylist(), told["preprocessing"].get("slice_axis", "axial")
    rejected = kept.rejected.to_pylist()
    figures: dict[str, Cell] = {"sessions": len(rows), "rejected": len(rejected)}
    blocks: list[Block] = [_sessions(rows), *to_look_at(rows), *without_rows(rows, rejected), Text("Limits", [LIMITS])]
    blocks.append(rejected_table(rejected))
    if any(row["missing"] for row in rows):
        blocks.append(missing_table(rows, then="their embeddings lie elsewhere than those of whole sessions"))
    if with_pictures and (run.folder / PICTURE).exists():
        blocks.append(_picture(axis))
    return Results(figures=figures, blocks=[*blocks, _encoder(spec, told, rows), _methods(told)])


def _sessions(rows: list[Row]) -> Table:
    listed: list[list[Cell]] = [
        [row["cohort"], row["subject"], row["session"], row["stacks"], ", ".join(row["missing"]) or "none"]
        for row in rows[:SHOWN_ROWS]
    ]
    more = f" The first {SHOWN_ROWS} of {len(rows):,} are shown." if len(rows) > SHOWN_ROWS else ""
    return Table(
        title="Sessions",
        columns=["cohort", "subject", "session", "stacks", "missing"],
        rows=listed,
        note="Their embeddings stand in predictions/predictions.parquet. Missing: modalities that the encoder was "
        f"pretrained with.{more}",
    )


def _picture(axis: SliceAxis) -> Picture:
    caption = "Slices as the encoder saw them, in their order, one row for each channel. "
    return Picture("Sessions in pictures", PICTURE, caption + orientation(axis))


def _encoder(spec: Infer, told: dict[str, Any], rows: list[Row]) -> Facts:
    facts = told["facts"]
    return Facts(
        "Encoder",
        [
            ("place", spec.model),
            ("architecture", facts["encoder"]),
            ("modalities shown", ", ".join(told["shown"])),
            ("pretrained by", f"bfp {facts['bfp']}, run {facts['run']}"),
            ("weights", facts["weights"][:16]),
            ("length of each embedding", len(rows[0]["class_token"]) if rows else None),
            ("stacks a session", float(np.mean([row["stacks"] for row in rows])) if rows else None),
            ("hash", rows[0]["model"] if rows else None),
        ],
    )


def _methods(told: dict[str, Any]) -> Text:
    facts = told["facts"]
    paragraph = (
        f"Embeddings of sessions were made with the encoder of the pretraining {facts['run']} ({facts['encoder']}). "
        f"Scans were prepared as its training data were (imaging version {facts['imaging']}); the class token of each "
        f"stack of {', '.join(told['shown'])}, the mean of its patch tokens and their standard deviation were averaged "
        f"over the stacks of a session. Software: bfp {__version__}."
    )
    return Text("Methods", [paragraph])
