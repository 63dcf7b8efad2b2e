"""What an inference does otherwise where its model segments: masks of its own, what is said of them, pictures.

<run>/derivatives/<cohort>/    masks on the voxels of the scans, as BIDS derivatives (`bfp.cohorts.derivatives`)
<run>/predictions/             a row for each session: where its mask is, and the volume of each class
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.cohorts.derivatives import Masks
from bfp.cohorts.sessions import Key
from bfp.drivers.infer_results import rejected_table, to_look_at, without_rows
from bfp.imaging.stacks import SliceAxis
from bfp.reports.blocks import Block, Cell, Facts, Histogram, Picture, Results, Table, Text
from bfp.reports.numbers import interval_text
from bfp.reports.pictures import Outlined, orientation, outlines
from bfp.runs import Run
from bfp.specs.infer import Infer
from bfp.storage import Place

if TYPE_CHECKING:
    from bfp.inference.kept import Kept
    from bfp.inference.outcomes import Outcome

SHOWN_ROWS = 50
PICTURE = "pictures/masks.png"
LIMITS = (
    "For research; not a medical device. A mask is what the model finds likeliest in each voxel; it does not say how "
    "likely, and scans unlike those of its training may be segmented wrongly without any sign of it."
)


def masks_of(told: dict[str, Any], *, folder: Place) -> Masks:
    """Where the masks of a run go, and what is said of each."""
    description = f"{told['target']} as predicted by the model {told['facts']['run']}"
    return Masks(folder / "derivatives", told["target"], tuple(told["classes"]), description)


def segment_sessions(told: dict[str, Any], *, folder: Place) -> Any:
    """As `inference.pipeline.predict_sessions`, of the model that model.json tells of, for the run in that folder."""
    from bfp.inference.pipeline import segment_sessions

    return partial(segment_sessions, drawn_on=told["drawn_on"], masks=masks_of(told, folder=folder))


def write_pictures(run: Run, outcomes: Sequence[Outcome], *, axis: SliceAxis) -> None:
    """A slice of a few sessions, with the outlines of its mask."""
    from bfp.inference.outcomes import MaskPreview

    slices = []
    for outcome in outcomes:
        assert outcome.row is not None
        assert isinstance(outcome.preview, MaskPreview)
        name = " ".join(filter(None, (outcome.row["cohort"], outcome.row["subject"], outcome.row["session"])))
        slices.append(Outlined(name, outcome.preview.grey, outcome.preview.labels, None))
    (run.folder / PICTURE).write(outlines(slices, axis=axis))


def results_of(spec: Infer, run: Run, told: dict[str, Any], kept: Kept, *, with_pictures: bool) -> Results:
    """Figures and blocks, of everything that stands in the two tables; and what stands once beside the masks."""
    rows, classes = kept.predictions.to_pylist(), list(told["classes"])
    scans = [(Key(row["cohort"], row["subject"], row["session"]), row["space"]) for row in rows]
    masks_of(told, folder=run.folder).describe(scans)
    figures: dict[str, Cell] = {"sessions": len(rows), "rejected": kept.rejected.num_rows}
    figures |= {f"with_{name}": sum(row[f"ml_{name}"] > 0 for row in rows) for name in classes}
    rejected = kept.rejected.to_pylist()
    blocks: list[Block] = [_masks(rows, classes), *to_look_at(rows), *without_rows(rows, rejected)]
    blocks.append(Text("Limits", [LIMITS]))
    blocks += [
        Histogram(f"Volume of {name}", [row[f"ml_{name}"] for row in rows], f"{name}, ml", "sessions")
        for name in classes
        if rows
    ]
    blocks.append(rejected_table(rejected))
    if with_pictures and (run.folder / PICTURE).exists():
        caption = "Of each session the slice with most of its mask, as the model saw it, and its outlines. "
        axis = told["preprocessing"].get("slice_axis", "axial")
        blocks.append(Picture("Masks", PICTURE, caption + orientation(axis)))
    blocks += [_model(spec, told, rows), _methods(told)]
    return Results(figures=figures, blocks=blocks)


def _masks(rows: list[dict[str, Any]], classes: list[str]) -> Table:
    shown: list[list[Cell]] = [
        [
            row["cohort"],
            row["subject"],
            row["session"],
            *(row[f"ml_{name}"] for name in classes),
            ", ".join(row["missing"]) or "none",
            row["mask"],
        ]
        for row in rows[:SHOWN_ROWS]
    ]
    more = f" The first {SHOWN_ROWS} of {len(rows):,} are shown." if len(rows) > SHOWN_ROWS else ""
    return Table(
        title="Masks",
        columns=["cohort", "subject", "session", *(f"{name}, ml" for name in classes), "missing", "mask"],
        rows=shown,
        note="Masks lie in derivatives/, each on the voxels of the scan that its sidecar names; all rows stand in "
        f"predictions/predictions.parquet. Missing: modalities that the model was trained with.{more}",
    )


def _model(spec: Infer, told: dict[str, Any], rows: list[dict[str, Any]]) -> Facts:
    figures, facts = told["facts"]["figures"], told["facts"]
    dice = [
        (
            f"cross-validated Dice, {name}",
            interval_text(*(figures[f"dice_{name}{end}"] for end in ("", "_low", "_high"))),
        )
        for name in told["classes"]
        if f"dice_{name}" in figures
    ]
    return Facts(
        "Model",
        [
            ("place", spec.model),
            ("learned", f"{told['target']}: {', '.join(told['classes'])}"),
            *dice,
            ("drawn on", ", ".join(told["drawn_on"])),
            ("modalities shown", ", ".join(told["shown"])),
            ("encoder", f"{facts['encoder']}, weights {facts['weights'][:16]}"),
            ("trained by", f"bfp {facts['bfp']}, run {facts['run']}"),
            ("hash", rows[0]["model"] if rows else None),
        ],
    )


def _methods(told: dict[str, Any]) -> Text:
    facts = told["facts"]
    shown = ", ".join(told["shown"])
    paragraph = (
        f"{told['target']} ({', '.join(told['classes'])}) was segmented with the model {facts['run']}. Scans were "
        f"prepared as its training data were (imaging version {facts['imaging']}); every slice of {shown} was "
        "predicted, the probabilities were carried back to the voxels of the scan by linear interpolation, and the "
        f"largest was taken; outside the slices there is background. Software: bfp {__version__}."
    )
    return Text("Methods", [paragraph])
