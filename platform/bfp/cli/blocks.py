"""A run's results in the terminal: the same blocks as on its page, as text and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bfp.cli.output import grid, table
from bfp.reports.blocks import Bars, Block, Curves, Facts, Histogram, Intervals, Picture, Roc, Table, Text, Trends
from bfp.reports.numbers import cell_text, interval_text, number_text
from bfp.storage import Place

if TYPE_CHECKING:
    from rich.console import RenderableType


def render(blocks: Iterable[Block], *, run: Place, metrics: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """The blocks in their order; charts as the figures behind them, pictures by the path of their file."""
    logged: dict[str, list[float]] = {}
    for row in sorted(metrics, key=lambda row: row["step"]):
        logged.setdefault(row["name"], []).append(row["value"])
    for block in blocks:
        yield from _render(block, run=run, logged=logged)


def _render(block: Block, *, run: Place, logged: Mapping[str, list[float]]) -> Iterator[RenderableType]:
    match block:
        case Facts():
            yield _title(block.title)
            yield grid((name, cell_text(value)) for name, value in block.rows)
        case Table():
            numeric = [
                number
                for number in range(len(block.columns))
                if block.rows and all(not isinstance(row[number], str) for row in block.rows)
            ]
            rows = ([cell_text(cell) for cell in row] for row in block.rows)
            yield table(block.title, block.columns, rows, right=numeric)
        case Curves():
            rows = (
                [name, number_text(values[0]), number_text(values[-1])]
                for name in block.metrics
                if (values := logged.get(name))
            )
            yield table(block.title, [block.y_label, "first", "last"], rows, right=(1, 2))
        case Intervals():
            rows = ([row.label, interval_text(row.value, row.low, row.high)] for row in block.rows)
            yield table(block.title, ["", f"{block.axis_label} [95 % interval]"], rows)
        case Bars():
            rows = (
                [group, name, f"{interval_text(*bar[:3])} {bar.mark}".strip()]
                for group, bars in zip(block.groups, block.bars, strict=True)
                for name, bar in zip(block.series, bars, strict=True)
            )
            yield table(block.title, ["", "", f"{block.axis_label} [95 % interval]"], rows)
        case Trends():
            rows = (
                [line.label, f"{at:.3g}", interval_text(*ends)]
                for line in block.lines
                for at, *ends in zip(line.at, line.values, line.low, line.high, strict=True)
            )
            yield table(block.title, ["", block.x_label, f"{block.y_label} [95 % interval]"], rows)
        case Histogram():
            yield _title(f"{block.title} ({block.x_label})")
            yield grid([(f"{len(block.values)} values", _spread(block.values))])
        case Picture():
            yield _title(block.title)
            yield grid([(str(run / block.file),)])
        case Roc() | Text():
            return  # a curve and the methods text are for the page
    if note := getattr(block, "note", ""):
        yield f"  {note}"


def _spread(values: list[float]) -> str:
    if not values:
        return "none"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{number_text(low)} to {number_text(high)}, median {number_text(middle)}"


def _title(text: str) -> RenderableType:
    from rich.text import Text as RichText

    return RichText(f"\n{text}", style="bold")
