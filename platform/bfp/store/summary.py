"""What is in a store, in a few tables: scans by cohort and modality, what was rejected and why, which scans to look at.

A 4-D scan with stacks for each of its volumes is one scan; its figures are one each for the volumes.

For `bfp store show` and the report of an ingest: plain rows, which those two render.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.store.reader import SliceStore

EXAMPLES = 3
BINS = 12
ENOUGH = 20  # scans of one modality in one cohort, before one of them can be called an outlier
FAR_OUT = 3.0
QC_FIGURES = {
    "shift_mm": 0.5,
    "similarity_before": 0.01,
    "similarity_after": 0.01,
    "foreground": 0.01,
    "brain_ml": 10.0,
    "bias_field_ratio": 0.05,
    "qform_sform_mm": 0.1,
}
"""The figures of `scans` by which scans are compared; a middle half narrower than this counts as so wide."""


SUMMARISED = ("cohort", "subject", "session", "modality", "volume", "stacks", "warnings", *QC_FIGURES)


class ModalityRow(NamedTuple):
    """Scans of one modality in one cohort. Figures are medians over them; None where none is known."""

    cohort: str
    modality: str
    scans: int
    subjects: int
    stacks: int
    shift_mm: float | None
    foreground: float | None
    flagged: int


class SpreadRow(NamedTuple):
    """How one QC figure is spread over the scans of one modality in one cohort.

    low, median, high: the quantiles 0.05, 0.5 and 0.95; bins: how many scans lie in each of BINS parts of the range
    from least to most.
    """

    cohort: str
    modality: str
    figure: str
    scans: int
    least: float
    low: float
    median: float
    high: float
    most: float
    bins: tuple[int, ...]


class RejectedRow(NamedTuple):
    """How often a reason was given, with the first few cases."""

    reason: str
    scans: int
    examples: tuple[str, ...]


class FlaggedRow(NamedTuple):
    """A scan in the store that is worth a look: its warnings, and what sets it apart from its like, as sentences, with
    the number of the volume where it is one of several."""

    cohort: str
    subject: str
    session: str
    modality: str
    shift_mm: float | None
    warnings: tuple[str, ...]


class SegmentationRow(NamedTuple):
    """Label maps of one segmentation in one cohort: how many, how many were used, how many of these are doubtful.

    unused: the reasons of the others, each with how often it was given, the most frequent first.
    """

    cohort: str
    segmentation: str
    drawn_on: str
    maps: int
    used: int
    doubtful: int
    unused: tuple[str, ...]


class Summary(NamedTuple):
    """modalities, spreads and segmentations by cohort and name; rejected the most frequent first.

    flagged: the furthest outliers first, then by how far they were moved.
    """

    modalities: list[ModalityRow]
    spreads: list[SpreadRow]
    segmentations: list[SegmentationRow]
    rejected: list[RejectedRow]
    flagged: list[FlaggedRow]


def summarise(store: SliceStore, *, cohorts: Collection[str] | None = None) -> Summary:
    """The summary of a store, or of some of its cohorts."""
    tables = (store.scans(SUMMARISED), store.label_maps(), store.rejected())
    scans, label_maps, rejected = (_of_cohorts(table, cohorts) for table in tables)
    groups = _groups(scans)
    flagged = _flagged(scans, groups)
    return Summary(
        _modalities(groups, flagged), _spreads(groups), _segmentations(label_maps), _rejected(rejected), flagged
    )


def _of_cohorts(table: pa.Table, cohorts: Collection[str] | None) -> pa.Table:
    if cohorts is None:
        return table
    return table.filter(pc.is_in(table["cohort"], value_set=pa.array(list(cohorts), pa.string())))


def _groups(scans: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """The scans by cohort and modality, with the row that each had."""
    scans = scans.append_column("row", pa.array(np.arange(scans.num_rows)))
    keys = scans.select(["cohort", "modality"]).group_by(["cohort", "modality"]).aggregate([]).to_pylist()
    return {
        (cohort, modality): scans.filter(
            pc.and_(pc.equal(scans["cohort"], cohort), pc.equal(scans["modality"], modality))
        )
        for cohort, modality in sorted((key["cohort"], key["modality"]) for key in keys)
    }


def _modalities(groups: Mapping[tuple[str, str], pa.Table], flagged: list[FlaggedRow]) -> list[ModalityRow]:
    counts = Counter((row.cohort, row.modality) for row in flagged)
    return [
        ModalityRow(
            *key,
            scans=own.group_by(["subject", "session"]).aggregate([]).num_rows,  # a scan may have a row for each volume
            subjects=pc.count_distinct(own["subject"]).as_py(),
            stacks=pc.sum(own["stacks"]).as_py(),
            shift_mm=_median(own["shift_mm"]),
            foreground=_median(own["foreground"]),
            flagged=counts[key],
        )
        for key, own in groups.items()
    ]


def _spreads(groups: Mapping[tuple[str, str], pa.Table]) -> list[SpreadRow]:
    rows = []
    for key, own in groups.items():
        for figure in QC_FIGURES:
            _, values = _known(own[figure])
            if values.size:
                least, low, median, high, most = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()
                bins, _ = np.histogram(values, BINS, (least, most if most > least else least + 1))
                rows.append(SpreadRow(*key, figure, len(values), least, low, median, high, most, tuple(bins.tolist())))
    return rows


def _segmentations(label_maps: pa.Table) -> list[SegmentationRow]:
    names = ["cohort", "segmentation", "drawn_on"]
    columns = [label_maps[name].to_pylist() for name in names]
    reasons, warnings = label_maps["reason"].to_pylist(), label_maps["warnings"].to_pylist()
    grouped: dict[tuple[str, ...], list[tuple[str | None, bool]]] = {}
    for *key, reason, told in zip(*columns, reasons, warnings, strict=True):
        grouped.setdefault(tuple(key), []).append((reason, bool(told)))
    rows = []
    for (cohort, segmentation, drawn_on), own in sorted(grouped.items()):
        unused = Counter(reason for reason, _ in own if reason is not None)
        rows.append(
            SegmentationRow(
                cohort,
                segmentation,
                drawn_on,
                maps=len(own),
                used=len(own) - unused.total(),
                doubtful=sum(doubtful for reason, doubtful in own if reason is None),
                unused=tuple(f"{reason}: {count}" for reason, count in unused.most_common()),
            )
        )
    return rows


def _outliers(groups: Mapping[tuple[str, str], pa.Table]) -> Iterator[tuple[int, float, str]]:
    """Scans far from the half of their like: row, how many times its width away, and a sentence that says so.

    Tukey's far out: FAR_OUT widths of the middle half beyond it.
    """
    for (cohort, modality), own in groups.items():
        for figure, narrow in QC_FIGURES.items():
            places, values = _known(own[figure])
            if values.size < ENOUGH:
                continue
            low, high = np.quantile(values, [0.25, 0.75])
            width = max(high - low, narrow)
            away = np.maximum(low - values, values - high) / width
            rows = own["row"].to_numpy()
            for at in np.flatnonzero(away > FAR_OUT):
                usual = f"from {low:.3g} to {high:.3g} in half of the {modality} of {cohort}"
                yield int(rows[places[at]]), float(away[at]), f"{figure} is {values[at]:.3g}; {usual}"


def _rejected(rejected: pa.Table) -> list[RejectedRow]:
    counts = {each["values"]: each["counts"] for each in pc.value_counts(rejected["reason"]).to_pylist()}
    rows = []
    for reason, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        first = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, EXAMPLES).to_pylist()
        examples = dict.fromkeys(f"{_whose(row)}: {row['detail']}" for row in first)
        rows.append(RejectedRow(reason, count, tuple(examples)))
    return rows


def _flagged(scans: pa.Table, groups: Mapping[tuple[str, str], pa.Table]) -> list[FlaggedRow]:
    apart: dict[int, list[tuple[float, str]]] = {}
    for row, away, sentence in _outliers(groups):
        apart.setdefault(row, []).append((away, sentence))
    warned = np.flatnonzero(np.asarray(pc.greater(pc.list_value_length(scans["warnings"]), 0)))
    numbers = sorted({*warned.tolist(), *apart})
    names = ["cohort", "subject", "session", "modality", "shift_mm", "warnings", "volume"]
    looks: dict[tuple[str, ...], tuple[float, FlaggedRow]] = {}
    for number, row in zip(numbers, scans.select(names).take(pa.array(numbers, pa.int64())).to_pylist(), strict=True):
        volume = row.pop("volume")
        which = "" if volume is None else f"volume {volume}: "
        sentences = (*row["warnings"], *(sentence for _, sentence in apart.get(number, ())))
        row["warnings"] = tuple(which + sentence for sentence in sentences)
        furthest = max((away for away, _ in apart.get(number, ())), default=0.0)
        scan = (row["cohort"], row["subject"], row["session"], row["modality"])
        if scan in looks:
            before, first = looks[scan]
            furthest, row["warnings"] = max(before, furthest), first.warnings + row["warnings"]
        looks[scan] = furthest, FlaggedRow(**row)
    return [row for *_, row in sorted((-away, -(row.shift_mm or 0.0), row) for away, row in looks.values())]


def _whose(row: Mapping[str, str]) -> str:
    """A rejected scan by its labels, not by its file's name, which may be a patient's."""
    labels = (("sub", row["subject"]), ("ses", row["session"]))
    known = " ".join([*(f"{entity}-{label}" for entity, label in labels if label), row["modality"]]).strip()
    return known or "a file without labels"


def _known(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Where a figure is known, as places in the column, and what it is there."""
    values = np.asarray(column.cast(pa.float64()).fill_null(np.nan))
    places = np.flatnonzero(np.isfinite(values))
    return places, values[places]


def _median(column: pa.ChunkedArray) -> float | None:
    _, values = _known(column)
    return float(np.median(values)) if values.size else None
