"""What an ingest says of what came out: tables, histograms, pictures, and the methods text.

All of it is read back from the store, so that it tells what is there and not what was meant to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp import __version__
from bfp.cohorts.dicom import converter
from bfp.cohorts.sessions import Key
from bfp.drivers.inputs import slice_spacing_mm
from bfp.imaging import IMAGING_VERSION, SHOWN_HEIGHTS
from bfp.imaging.register import SUSPICIOUS_SHIFT_MM
from bfp.reports.blocks import Block, Cell, Facts, Histogram, Picture, Results, Table, Text
from bfp.reports.pictures import Pair, SessionSlices, mosaic, orientation, overlays
from bfp.runs import Run
from bfp.specs.ingest import Ingest
from bfp.specs.preprocessing import BRAIN_PROGRAM, ModalityStacks
from bfp.storage import Place
from bfp.store.reader import SliceStore
from bfp.store.summary import Summary
from bfp.words import bytes_text, counted

SHOWN_SETS = 8
SETS_AT_ONCE = 8  # while a picture is made: each slice of a set is a few requests on object storage
SHOWN_PAIRS = 12
SHOWN_PAIR_HEIGHT = 0.6  # above the ventricles' floor, where edges are plenty
SHOWN_ROWS = 50

HISTOGRAMS = (
    ("Shift onto the reference", "shift_mm", "shift of the head's centre, mm", SUSPICIOUS_SHIFT_MM),
    ("Foreground", "foreground", "share of the volume that is head", None),
    ("Bias field", "bias_field_ratio", "95th percentile of the field over its 5th", None),
)
"""Title, column of `scans`, what it is, and from where on it is suspicious."""


def results_of(spec: Ingest, run: Run, made: SliceStore, summary: Summary, *, snapshot: int | None) -> Results:
    """Figures and blocks; pictures are written into the run's folder."""
    scans = sum(row.scans for row in summary.modalities)
    rejected = sum(row.scans for row in summary.rejected)
    figures: dict[str, Cell] = {
        "stacks": made.totals.stacks,
        "scans": scans,
        "sessions": made.totals.sessions,
        "rejected": rejected,
        "rejected_by_reason": "; ".join(f"{row.reason}: {row.scans}" for row in summary.rejected),
        "flagged": len(summary.flagged),
        "bytes": made.totals.size_bytes,
        "snapshot": snapshot,
    }
    blocks: list[Block] = [
        Facts(
            "Store",
            [
                ("place", str(made.place)),
                ("snapshot", snapshot if snapshot is not None else "none was taken"),
                ("stacks", made.totals.stacks),
                ("size", bytes_text(made.totals.size_bytes)),
                ("sessions", made.totals.sessions),
                ("scans", f"{scans} done, {rejected} rejected"),
                ("preprocessing", f"fingerprint {made.fingerprint}, imaging version {IMAGING_VERSION}"),
            ],
        ),
        _modalities_table(summary),
        _rejected_table(summary),
    ]
    if summary.segmentations:
        blocks.append(_segmentations_table(summary))
    if summary.flagged:
        blocks.append(_flagged_table(summary))
    blocks += _histograms(made.scans([column for _, column, *_ in HISTOGRAMS]))
    if spec.pictures and made.totals.stacks:
        blocks += pictures_of(made, folder=run.folder / "pictures")
    blocks.append(Text("Methods", [_methods(spec, summary, brain_program=made.preprocessing.get(BRAIN_PROGRAM, []))]))
    return Results(figures=figures, blocks=blocks)


def _modalities_table(summary: Summary) -> Table:
    rows: list[list[Cell]] = []
    for row in summary.modalities:
        shift: Cell = "" if row.shift_mm is None else row.shift_mm  # references alone: nothing to move
        counts: list[Cell] = [row.scans, row.subjects, row.stacks]
        rows.append([row.cohort, row.modality, *counts, shift, row.foreground, row.flagged])
    return Table(
        "Scans by cohort and modality",
        ["cohort", "modality", "scans", "subjects", "stacks", "median shift, mm", "median foreground", "flagged"],
        rows,
        note="Shift: how far registration moved a scan onto its session's reference or, by headers alone, would have. "
        "Foreground: the share of the volume that is head.",
    )


def _rejected_table(summary: Summary) -> Table:
    rows: list[list[Cell]] = [[row.reason, row.scans, "; ".join(row.examples)] for row in summary.rejected]
    note = "All of them stand in the store's table `rejected`." if rows else "No scan was rejected."
    return Table("Rejected scans", ["reason", "scans", "for example"], rows, note=note)


def _segmentations_table(summary: Summary) -> Table:
    rows: list[list[Cell]] = [[*row[:-1], "; ".join(row.unused)] for row in summary.segmentations]
    return Table(
        "Label maps and brain masks",
        ["cohort", "segmentation", "drawn on", "found", "used", "doubtful", "not used"],
        rows,
        note="Each of them, with its file and how it was chosen, stands in the store's table `label_maps`.",
    )


def _flagged_table(summary: Summary) -> Table:
    rows: list[list[Cell]] = [
        [
            row.cohort,
            row.subject,
            row.session,
            row.modality,
            "" if row.shift_mm is None else row.shift_mm,
            "; ".join(row.warnings),
        ]
        for row in summary.flagged[:SHOWN_ROWS]
    ]
    more = len(summary.flagged) - len(rows)
    note = "They are in the store; the furthest off come first." + (
        f" {counted(more, 'more is', 'more are')} not shown." if more else ""
    )
    return Table(
        "Scans worth a look", ["cohort", "subject", "session", "modality", "shift, mm", "why"], rows, note=note
    )


def _histograms(scans: pa.Table) -> list[Block]:
    return [
        Histogram(title, values, x_label, "scans", flag_above=flag)
        for title, column, x_label, flag in HISTOGRAMS
        if (values := [value for value in scans[column].to_pylist() if value is not None and np.isfinite(value)])
    ]


# pictures -------------------------------------------------------------------------------------------------------------


class _Set(NamedTuple):
    """The stacks of one working grid, in slice order: a piece of the store's index, and its first row."""

    rows: pa.Table
    first: dict[str, Any]


def pictures_of(made: SliceStore, *, folder: Place) -> list[Picture]:
    """Write pictures of a store's stacks and registrations into a folder; blocks that show them in a run's report.

    Of the index of stacks, which grows with the store, only the files are read of which something is shown.
    """
    shown, count = _shown_sets(made)
    filled = [channel for channel in range(3) if any(each.first["present"][channel] for each in shown)]
    with ThreadPoolExecutor(SETS_AT_ONCE) as pool:
        slices = list(pool.map(lambda each: _slices(made, each, filled), shown))
    (folder / "stacks.png").write(mosaic(slices, axis=made.slice_axis))
    blocks = [
        Picture(
            "Stacks",
            "pictures/stacks.png",
            f"{len(shown)} of {count} sets of stacks, spread over all: slices in their order, one row for each "
            f"channel. {orientation(made.slice_axis)}",
        )
    ]
    if made.form == "modalities" and (pairs := _pairs(made)):
        (folder / "registration.png").write(overlays(pairs, axis=made.slice_axis))
        how = {"rigid": "after rigid registration", "header": "by their headers alone", "none": "as they are"}
        blocks.append(
            Picture(
                "Registration",
                "pictures/registration.png",
                f"The scans with the largest shift, {how[made.preprocessing['register']]}: edges of the scan on its "
                "session's reference, and both as a chequerboard. Edges should follow the anatomy below them.",
            )
        )
    return blocks


def _shown_sets(made: SliceStore) -> tuple[list[_Set], int]:
    """Some sets, spread over all of the store, and how many it has."""
    files = _evenly(len(made.stack_files()), SHOWN_SETS)
    if len(files) == len(made.stack_files()):
        sets = _sets(made.stack_index())
        return [sets[number] for number in _evenly(len(sets), SHOWN_SETS)], len(sets)
    shown = []
    for place, file in enumerate(files):  # of the first its first set, of the last its last
        sets = _sets(made.stack_index([file]))
        shown.append(sets[round(place / (len(files) - 1) * (len(sets) - 1))])
    scans = made.scans(Key._fields)
    sessions = scans.group_by(list(Key._fields)).aggregate([])
    return shown, scans.num_rows if made.form == "neighbours" else sessions.num_rows


def _sets(index: pa.Table) -> list[_Set]:
    """The index cut where cohort, subject, session, the first channel's modality or the volume changes."""
    columns = [index["cohort"], index["subject"], index["session"], pc.list_element(index["modalities"], 0)]
    columns.append(pc.fill_null(index["volume"], -1))
    codes = np.stack([np.asarray(column.combine_chunks().dictionary_encode().indices) for column in columns])
    starts = [0, *(np.flatnonzero((np.diff(codes, axis=1) != 0).any(axis=0)) + 1).tolist()]
    firsts = index.take(starts).to_pylist()
    ends = [*starts[1:], index.num_rows]
    return [
        _Set(index.slice(start, end - start), first) for start, end, first in zip(starts, ends, firsts, strict=True)
    ]


def _evenly(count: int, most: int) -> list[int]:
    """At most so many places, evenly over `count`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))})


def _slices(made: SliceStore, each: _Set, channels: list[int]) -> SessionSlices:
    neighbours = made.form == "neighbours"
    names = made.channels if neighbours else each.first["modalities"]
    pixels = np.stack([_pixels(made, each, height=height) for height in SHOWN_HEIGHTS])  # (n, 3, size, size)
    shown = f" {each.first['modalities'][0]}" if neighbours else ""
    if each.first["volume"] is not None:
        shown += f" volume {each.first['volume']}"
    return SessionSlices(
        _title(each) + shown,
        pixels[:, channels],
        tuple(names[channel] for channel in channels),
        tuple(each.first["present"][channel] for channel in channels),
    )


def _pairs(made: SliceStore) -> list[Pair]:
    """One slice of the scans that registration moved furthest, with that of their session's reference."""
    furthest = _furthest(made)
    if not furthest.num_rows:
        return []
    files = made.stack_files_of_scans()
    index = made.stack_index({file for row in furthest["row"].to_pylist() for file in files[row]})
    sets = {tuple(each.first[name] for name in Key._fields): each for each in _sets(index)}

    def pair(row: dict[str, Any]) -> Pair:
        each = sets[tuple(row[name] for name in Key._fields)]
        reference, channel = each.first["present"].index(True), each.first["modalities"].index(row["modality"])
        pixels = _pixels(made, each, height=SHOWN_PAIR_HEIGHT)
        title = f"{_title(each)}: {row['modality']} on {made.channels[reference]}, {row['shift_mm']:.1f} mm"
        return Pair(title, pixels[reference], pixels[channel])

    with ThreadPoolExecutor(SETS_AT_ONCE) as pool:
        return list(pool.map(pair, furthest.to_pylist()))


def _furthest(made: SliceStore) -> pa.Table:
    """The scans with the largest shifts that are not their session's reference, the first of its channels that is
    there: identity, modality, shift_mm and `row` in `scans`."""
    scans = made.scans([*Key._fields, "modality", "shift_mm"])
    channel = pc.index_in(scans["modality"], pa.array(made.channels))
    shift_mm = pc.fill_null(scans["shift_mm"], 0.0)
    scans = scans.set_column(scans.column_names.index("shift_mm"), "shift_mm", shift_mm)
    scans = scans.append_column("channel", channel).append_column("row", pa.array(range(scans.num_rows), pa.int64()))
    references = scans.group_by(list(Key._fields)).aggregate([("channel", "min")])
    others = scans.join(references, list(Key._fields))
    others = others.filter(pc.greater(others["channel"], others["channel_min"]))
    order = [("shift_mm", "descending"), *((name, "ascending") for name in (*Key._fields, "channel"))]
    return others.sort_by(order).slice(0, SHOWN_PAIRS)


def _pixels(made: SliceStore, each: _Set, *, height: float) -> np.ndarray:
    """uint8 (3, size, size): the stack of a set that is nearest to a height."""
    nearest = int(np.abs(np.asarray(each.rows["height"]) - height).argmin())
    row = each.rows.slice(nearest, 1).to_pylist()[0]
    return made.read_packed(made.stack_files()[row["file"]], row["row_group"])[row["row"]]


def _title(each: _Set) -> str:
    return " ".join(filter(None, (each.first["cohort"], each.first["subject"], each.first["session"])))


# words ----------------------------------------------------------------------------------------------------------------


def _methods(spec: Ingest, summary: Summary, *, brain_program: Sequence[str] = ()) -> str:
    how = spec.preprocessing
    stacks = how.stacks
    interpolated = {"linear": "linearly", "cubic": "by cubic B-splines"}[how.interpolation]
    cohorts = "; ".join(
        f"{row.cohort}: {row.scans} {row.modality} of {counted(row.subjects, 'subject')}" for row in summary.modalities
    )
    if isinstance(stacks, ModalityStacks):
        reference = (
            "Within a session, the first available of "
            f"{', '.join(stacks.channels)} served as the reference, and the other scans were "
            + {
                "rigid": "registered to it rigidly (mutual information, SimpleITK) and ",
                "header": "placed on it by their headers and ",
                "none": "required to share its grid and ",
            }[how.registration]
            + ("used as they were. " if how.registration == "none" else f"resampled once, {interpolated}. ")
        )
        channels = (
            f"A sample is the same {how.slice_axis} slice of {', '.join(stacks.channels)}; an absent modality is zero. "
        )
    else:
        reference = f"Each scan was resampled once, {interpolated}, on its own axes. "
        channels = (
            f"A sample is three {how.slice_axis} slices of one scan, {stacks.gap_mm:g} mm apart. "
            if stacks.gap_mm
            else f"A sample is one {how.slice_axis} slice of one scan, the same in all three channels. "
        )
    low, high = how.window
    grey = f"Grey values from the {low:g}th to the {high:g}th percentile of the foreground became 0 to 255. "
    if how.intensity == "zscore":
        grey = (
            f"Grey values within {how.zscore_limit:g} standard deviations of the foreground's mean, both taken between "
            f"its {low:g}th and {high:g}th percentile, became 0 to 255. "
        )
    bias = (
        f"The bias field of each scan was estimated within the {'brain' if how.brain != 'none' else 'head'} by N4ITK "
        "(Tustison et al. 2010; SimpleITK, a voxel every 8 mm) and divided out"
        f"{', of a 4-D file that of its first volume from all' if how.volumes == 'each' else ''}; images of both signs "
        "were left as they are. "
        if how.bias_field == "n4"
        else ""
    )
    dicom = any(cohort.dicom for cohort in spec.cohorts)
    converted = f"DICOM series were converted to NIfTI by {converter()} (Li et al. 2016). " if dicom else ""
    head = "brain" if how.brain != "none" else "head"
    between = ""
    if how.slice_range_mm is not None:
        between = f" from {how.slice_range_mm[0]:g} to {how.slice_range_mm[1]:g} mm of its centre"
    volumes = {
        "refuse": "",
        "first": "Of 4-D files the first volume was taken. ",
        "mean": "Of 4-D files the mean of the volumes was taken. ",
        "each": "Each volume of a 4-D file gave samples of its own, in the frame of the first, in its own window. ",
    }[how.volumes]
    carried = {
        "rigid": ", registered rigidly with the scan it was drawn on,",
        "header": ", placed by the header of the scan it was drawn on,",
        "none": "",
    }[how.registration]
    mask = {
        "none": "",
        "given": f"the given brain mask{carried}",
        "image": "the brain of the skull-stripped reference",
        "deepbet": "the brain mask of deepbet",
        "program": f"the brain mask of {' '.join(brain_program[:1])}, a program of the user's own,",
    }[how.brain]
    return (
        f"Scans ({cohorts}) were prepared with bfp {__version__}. {converted}Axes were renamed to lie closest to RAS, "
        f"without de-obliquing. {volumes}{reference}Slices of {how.size} × {how.size} pixels of {how.spacing_mm:g} mm, "
        f"{slice_spacing_mm(how):g} mm apart, were cut around the centre of the {head}; those{between} with at least "
        f"{how.min_foreground:.0%} foreground were kept. "
        + (f"Voxels outside {mask} were set to zero. " if mask else "")
        + bias
        + grey
        + channels
    ).strip()
