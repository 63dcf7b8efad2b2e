"""What a report is made of: a row of blocks, in reading order, as plain values.

A driver says what came out as blocks; they stand in the run's results.json, so that the page, `bfp show` and a page
made again years later show the same. Rendering is `bfp.reports.page`'s.

Every axis carries its name and unit in one text ("height, mm"). Intervals are 95 % unless the caption says otherwise.
A figure that is undefined is None and shown as "undefined", never as 0 or left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from bfp.errors import InputError

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """A short list of names and values: what ran on what."""

    title: str
    rows: list[tuple[str, Cell]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; numbers are set right-aligned."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Curves:
    """Logged figures over steps, drawn from metrics.parquet: one line for each metric's name."""

    title: str
    metrics: list[str]
    y_label: str
    x_label: str = "step"
    note: str = ""


class IntervalRow(NamedTuple):
    """One estimate: its value, its interval and, if any, the single values (folds) behind it."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    dots: list[float | None] = []  # noqa: RUF012  (a NamedTuple's default; never edited)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Estimates side by side with their intervals; `reference` is a value of no effect, drawn as a line."""

    title: str
    rows: list[IntervalRow]
    axis_label: str
    reference: float | None = None
    note: str = ""


class Bar(NamedTuple):
    """One of several beside each other: its value, its interval, the single values behind it, and a mark of how it
    differs from the one that the others are compared with ("***")."""

    value: float | None
    low: float | None
    high: float | None
    dots: list[float | None] = []  # noqa: RUF012
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars, in each one of every series; they stand on `base`. bars: for each group, one for each series."""

    title: str
    groups: list[str]
    series: list[str]
    bars: list[list[Bar]]
    axis_label: str
    base: float
    note: str = ""


class TrendLine(NamedTuple):
    """Values with their intervals over a few places, rising."""

    label: str
    at: list[float]
    values: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True, slots=True)
class Trends:
    """How a figure goes with something, a line for each approach; `reference` is a value of no effect."""

    title: str
    lines: list[TrendLine]
    x_label: str
    y_label: str
    reference: float | None = None
    note: str = ""


class RocCurve(NamedTuple):
    """One ROC curve: false positive rates, true positive rates (both rising from 0 to 1); and at some false positive
    rates, the interval of the true one."""

    label: str
    false_positive: list[float]
    true_positive: list[float]
    rates: list[float] = []  # noqa: RUF012
    low: list[float | None] = []  # noqa: RUF012
    high: list[float | None] = []  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Roc:
    title: str
    curves: list[RocCurve]
    note: str = ""


class ReliabilityCurve(NamedTuple):
    """Bins of sessions in order of their probability: its mean in each bin, and the share seen with its interval."""

    label: str
    said: list[float]
    seen: list[float | None]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Whether probabilities are what they say: on the diagonal they are."""

    title: str
    curves: list[ReliabilityCurve]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scatter:
    """What was said of each session against what is so, both in one unit; on the diagonal both are equal."""

    title: str
    true: list[float]
    said: list[float]
    x_label: str
    y_label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How one figure is spread over scans or sessions; above `flag_above`, below `flag_below` a value is an outlier."""

    title: str
    values: list[float]
    x_label: str
    y_label: str
    flag_above: float | None = None
    flag_below: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG of the run folder ("pictures/qc.png"), with the caption that stands under it."""

    title: str
    file: str
    caption: str


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs, such as the methods text that is ready to paste."""

    title: str
    paragraphs: list[str]


Block = Facts | Table | Curves | Intervals | Bars | Trends | Roc | Reliability | Scatter | Histogram | Picture | Text

_KINDS: dict[str, type[Block]] = {
    kind.__name__.lower(): kind
    for kind in (Facts, Table, Curves, Intervals, Bars, Trends, Roc, Reliability, Scatter, Histogram, Picture, Text)
}


@dataclass(frozen=True, slots=True)
class Results:
    """What a run came to: figures for machines, blocks for people."""

    figures: dict[str, Cell]
    blocks: list[Block] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        blocks = [{"block": type(block).__name__.lower(), **asdict(block)} for block in self.blocks]
        return {"figures": self.figures, "blocks": blocks}


def results_from_json(found: dict[str, Any]) -> Results:
    """The inverse of `Results.as_json`.

    Raises InputError for a kind of block that only another version of bfp knows.
    """
    blocks: list[Block] = []
    for entry in found.get("blocks", []):
        fields = dict(entry)
        name = fields.pop("block")
        if name not in _KINDS:
            raise InputError(
                f"results.json: unknown block {name!r}; show this run with the version of bfp that made it"
            )
        kind = _KINDS[name]
        if kind is Intervals:
            fields["rows"] = [IntervalRow(*row) for row in fields["rows"]]
        elif kind is Bars:
            fields["bars"] = [[Bar(*bar) for bar in group] for group in fields["bars"]]
        elif kind is Trends:
            fields["lines"] = [TrendLine(*line) for line in fields["lines"]]
        elif kind is Roc:
            fields["curves"] = [RocCurve(*curve) for curve in fields["curves"]]
        elif kind is Reliability:
            fields["curves"] = [ReliabilityCurve(*curve) for curve in fields["curves"]]
        blocks.append(kind(**fields))
    return Results(figures=found.get("figures", {}), blocks=blocks)
