"""What an inference says of what came out: predictions, what was missing or rejected, pictures, methods text."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bfp import __version__
from bfp.drivers.infer_outputs import Row, Told, judged_by, told_by
from bfp.imaging.register import SUSPICIOUS_SHIFT_MM
from bfp.imaging.stacks import SliceAxis
from bfp.inference.kept import Kept
from bfp.inference.outcomes import Outcome, Preview
from bfp.models.typical import WARNED_FROM
from bfp.reports.blocks import Block, Cell, Facts, Histogram, Picture, Results, Table, Text
from bfp.reports.pictures import SessionSlices, mosaic, orientation
from bfp.runs import Run
from bfp.specs.infer import Infer

SHOWN_ROWS = 50
SHOWN_TO_LOOK_AT = 20
PICTURE = "pictures/sessions.png"


def results_of(spec: Infer, run: Run, told: dict[str, Any], kept: Kept, *, with_pictures: bool) -> Results:
    """Figures and blocks, of everything that stands in the two tables."""
    rows, own = kept.predictions.to_pylist(), told_by(told)
    figures: dict[str, Cell] = {"sessions": len(rows), "rejected": kept.rejected.num_rows}
    figures |= {**own.figures(rows), "atypical": sum(map(_far, rows))}
    blocks: list[Block] = [
        _predictions(rows, own),
        *to_look_at(rows, own),
        *without_rows(rows, kept.rejected.to_pylist()),
        Text("Limits", [own.limits]),
    ]
    blocks += own.histograms(rows) if rows else []
    if any(row["distance"] is not None for row in rows):
        blocks.append(_distances(rows))
    blocks.append(rejected_table(kept.rejected.to_pylist()))
    if any(row["missing"] for row in rows):
        blocks.append(missing_table(rows, then="predictions may be worse than the model's cross-validation says"))
    if shifts := [row["shift_mm"] for row in rows if row["shift_mm"] is not None]:
        axis = "largest shift within a session, mm"
        blocks.append(Histogram("Registration", shifts, axis, "sessions", flag_above=SUSPICIOUS_SHIFT_MM))
    if with_pictures and (run.folder / PICTURE).exists():
        caption = "Slices as the model saw them, in their order, one row for each channel. "
        axis = told["preprocessing"].get("slice_axis", "axial")
        blocks.append(Picture("Sessions", PICTURE, caption + orientation(axis)))
    blocks += [_model(spec, told, rows), _methods(told)]
    return Results(figures=figures, blocks=blocks)


def write_pictures(
    run: Run, outcomes: Sequence[Outcome], *, brief: Callable[[Row], str], channels: tuple[str, ...], axis: SliceAxis
) -> None:
    """Slices of a few sessions, titled by what was predicted. brief: that, of a row; "" for nothing."""
    sessions = []
    for outcome in outcomes:
        assert outcome.row is not None
        assert isinstance(outcome.preview, Preview)
        name = " ".join(filter(None, (outcome.row["cohort"], outcome.row["subject"], outcome.row["session"])))
        title = ": ".join(filter(None, (name, brief(outcome.row))))
        sessions.append(SessionSlices(title, outcome.preview.pixels, channels, outcome.preview.visible))
    (run.folder / PICTURE).write(mosaic(sessions, axis=axis))


def _predictions(rows: list[Row], own: Told) -> Table:
    shown: list[list[Cell]] = [
        [
            row["cohort"],
            row["subject"],
            row["session"],
            *own.cells(row),
            row["spread"],
            ", ".join(row["missing"]) or "none",
            "yes" if _reasons(row, own) else "",
        ]
        for row in rows[:SHOWN_ROWS]
    ]
    more = f" The first {SHOWN_ROWS} of {len(rows):,} are shown." if len(rows) > SHOWN_ROWS else ""
    return Table(
        title="Predictions",
        columns=["cohort", "subject", "session", *own.columns, "spread", "missing", "look first"],
        rows=shown,
        note=f"All stand in predictions/predictions.parquet. Spread: standard deviation of {own.spread} over the heads "
        "of the folds. Missing: modalities that the model was trained with. Look first: there is something about the "
        f"scans or the prediction that a person should see before using it; why stands below.{own.note}{more}",
    )


def to_look_at(rows: list[Row], own: Told | None = None) -> list[Table]:
    """The sessions of which a person should see the scans first, each with all reasons, the most unlike the training
    first. own: None where nothing is predicted that heads of folds could be apart in."""
    why = [(row, reasons) for row in rows if (reasons := _reasons(row, own))]
    if not why:
        return []
    why.sort(key=lambda each: -(each[0].get("distance") or 0.0))
    shown: list[list[Cell]] = [
        [
            row["cohort"],
            row["subject"],
            row["session"],
            "; ".join(reasons),
            *([own.brief(row), row["atypical"], row["spread"]] if own else []),
        ]
        for row, reasons in why[:SHOWN_TO_LOOK_AT]
    ]
    atypical = (
        "Atypical: the share of the training sessions, each held out, that lie less far from the others; from "
        f"{WARNED_FROM} on the model was not trained on the like. "
    )
    more = f" The first {SHOWN_TO_LOOK_AT} of {len(why):,} are shown." if len(why) > SHOWN_TO_LOOK_AT else ""
    return [
        Table(
            "Sessions to look at",
            ["cohort", "subject", "session", "why", *(["predicted", "atypical", "spread"] if own else [])],
            shown,
            note=f"{atypical if own else ''}The reasons stand in predictions/predictions.parquet too (warnings).{more}",
        )
    ]


def _reasons(row: Row, own: Told | None) -> list[str]:
    apart = [f"the heads of the folds are apart ({row['spread']:.3g})"] if own and own.apart(row) else []
    return [*row["warnings"], *apart]


def without_rows(rows: list[Row], rejected: list[Row]) -> list[Table]:
    """The sessions that have scans and no row, since none of them could be used."""
    names = ("cohort", "subject", "session")
    there = {tuple(row[name] for name in names) for row in rows}
    absent = dict[tuple[str, ...], list[str]]()
    for row in rejected:
        if (key := tuple(row[name] for name in names)) not in there:
            absent.setdefault(key, []).append(row["reason"])
    if not absent:
        return []
    shown: list[list[Cell]] = [
        [*key, "; ".join(dict.fromkeys(reasons))] for key, reasons in list(absent.items())[:SHOWN_TO_LOOK_AT]
    ]
    more = f" The first {SHOWN_TO_LOOK_AT} of {len(absent):,} are shown." if len(absent) > SHOWN_TO_LOOK_AT else ""
    note = f"None of their scans could be used: nothing is said of them.{more}"
    return [Table("Sessions of which nothing came", [*names, "why"], shown, note=note)]


def _far(row: Row) -> bool:
    """Whether it lies far from the training sessions, where that is known."""
    return row["atypical"] is not None and bool(row["atypical"] >= WARNED_FROM)


def _distances(rows: list[Row]) -> Histogram:
    nearest_far = min((row["distance"] for row in rows if _far(row)), default=None)
    return Histogram(
        title="How far sessions lie from the training sessions",
        values=[row["distance"] for row in rows],
        x_label="distance, 1 is that of a usual training session",
        y_label="sessions",
        flag_above=None if nearest_far is None else math.nextafter(nearest_far, 0.0),  # it is one of them
    )


def rejected_table(rows: list[Row]) -> Table:
    examples: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        examples[row["reason"]].append(f"{row['uri']}: {row['detail']}")
    note = "All stand in rejected/rejected.parquet." if rows else "No scan was rejected."
    listed: list[list[Cell]] = [[reason, len(found), "; ".join(found[:3])] for reason, found in examples.items()]
    return Table("Rejected scans", ["reason", "scans", "for example"], listed, note=note)


def missing_table(rows: list[Row], *, then: str) -> Table:
    """then: what follows for what is written of these sessions."""
    counts = Counter(name for row in rows for name in row["missing"])
    listed: list[list[Cell]] = [[name, count, count / len(rows)] for name, count in counts.most_common()]
    return Table(
        "Modalities that the model was trained with and sessions lack",
        ["modality", "sessions without it", "share"],
        listed,
        note=f"In their place stood what the encoder had there in its training; {then}.",
    )


def _model(spec: Infer, told: dict[str, Any], rows: list[Row]) -> Facts:
    facts = told["facts"]
    return Facts(
        "Model",
        [
            ("place", spec.model),
            ("learned", told_by(told).learned),
            judged_by(told),
            ("modalities shown", ", ".join(told["shown"])),
            ("encoder", f"{facts['encoder']}, weights {facts['weights'][:16]}"),
            ("trained by", f"bfp {facts['bfp']}, run {facts['run']}"),
            ("stacks a session", float(np.mean([row["stacks"] for row in rows])) if rows else None),
            ("hash", rows[0]["model"] if rows else None),
        ],
    )


def _methods(told: dict[str, Any]) -> Text:
    facts, own = told["facts"], told_by(told)
    spread = (
        f"The spread is the standard deviation of {own.spread} over the {told['folds']} heads of its cross-validation."
        if told["folds"]
        else "There is no spread over folds: the encoder was tuned, and those of the folds are not kept."
    )
    paragraph = (
        f"{own.methods(facts['run'])} "
        f"Scans were prepared as its training data were (imaging version {facts['imaging']}), and each session's "
        f"stacks of {', '.join(told['shown'])} gave one row. {spread} Software: bfp {__version__}."
    )
    return Text("Methods", [paragraph])
