"""Charts as SVG, drawn by matplotlib from blocks: curves, intervals, ROC and reliability curves, histograms.

A chart is made for half a page and for a telephone alike: 460 units wide, so that its 13-unit letters can still be read
when it is shrunk to 370 pixels. Lines differ in dash and marker as well as in colour (Okabe & Ito's, safe for the
colour-blind), so a grey print loses nothing. Text stays text, and each colour is a CSS variable with a fallback:
the page decides between light and dark, and a chart taken out of the page still has its colours.

Equal blocks give equal bytes. Every chart comes with a sentence for those who do not see it.

`draw` is the way in; the functions below it make one kind of chart each, in the style that `draw` has set.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bfp.reports.blocks import Bars, Curves, Histogram, Intervals, Reliability, Roc, Scatter, Trends
from bfp.reports.numbers import interval_text, number_text

Chartable = Curves | Intervals | Bars | Trends | Roc | Reliability | Scatter | Histogram
Points = Mapping[str, Sequence[tuple[int, float]]]  # of each metric's name: (step, value), in any order

WIDTH = 460
FONT = 13
MOST_POINTS = 300  # of a curve; more are averaged, since they would only thicken the line
POINTS_PER_INCH = 72  # matplotlib's unit of an SVG is the point

# how many letters fit
LEGEND_CHARACTERS = 52  # in one row of a legend
TITLE_CHARACTERS = 52
AXIS_CHARACTERS = 56  # below an axis
ROW_CHARACTERS = 56  # in the words above an interval

ROW = 46  # the height of one interval
LEGEND_ROW = 20

TOLD_RATES = (0.1, 0.2, 0.5)  # false positive rates at which a ROC curve's interval is put into words

DASHED = (0, (4, 3))
INK, FAINT = "#1f2328", "#8c959f"


class Series(NamedTuple):
    """How one line is told from the others. dash and marker are matplotlib's."""

    variable: str
    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    marker: str


SERIES = [
    Series("--series-1", "#0072b2", "-", "o"),
    Series("--series-2", "#d55e00", (0, (5, 2)), "s"),
    Series("--series-3", "#009e73", (0, (1.2, 1.6)), "^"),
    Series("--series-4", "#cc79a7", (0, (6, 2, 1.2, 2)), "D"),
    Series("--series-5", "#6a51a3", (0, (9, 3)), "v"),
    Series("--series-6", "#8a6d00", (0, (3, 1.5, 1.2, 1.5, 1.2, 1.5)), "X"),
]
HATCHES = ("", "//", "..", "\\\\", "xx", "++")
VARIABLES = {INK: "--ink", FAINT: "--faint", **{series.colour: series.variable for series in SERIES}}

STYLE: Any = {  # matplotlib types its settings as a dict of 400 literal names
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT - 1,
    "ytick.labelsize": FONT - 1,
    "legend.fontsize": FONT - 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "figure.constrained_layout.use": True,
}


class Chart(NamedTuple):
    """svg: an <svg> element; says: the same in a sentence."""

    svg: str
    says: str


class _Drawn(NamedTuple):
    figure: Figure
    says: str


def draw(block: Chartable, points: Points) -> Chart:
    """The chart of a block; `points` are the run's figures, of which curves are made."""
    with mpl.rc_context(STYLE):
        match block:
            case Curves():
                drawn = _curves(block, points)
            case Intervals():
                drawn = _intervals(block)
            case Bars():
                drawn = _bars(block)
            case Trends():
                drawn = _trends(block)
            case Roc():
                drawn = _roc(block)
            case Reliability():
                drawn = _reliability(block)
            case Scatter():
                drawn = _scatter(block)
            case Histogram():
                drawn = _histogram(block)
        return Chart(_svg(drawn), drawn.says)


def _curves(block: Curves, points: Points) -> _Drawn:
    """Logged figures over steps, a line each; one that was never logged is left out of the chart and named."""
    figure, axes = _axes(height=300, x_label=block.x_label, y_label=block.y_label)
    lines = {name: _thinned(points[name]) for name in block.metrics if points.get(name)}
    drawn = [_line(axes, *line, series=index) for index, line in enumerate(lines.values())]
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if len(drawn) > 1:
        _legend(figure, drawn, list(lines))
    elif drawn:
        drawn[0].set_marker("")  # nothing to tell it from
    told = [f"{name} from {number_text(values[0])} to {number_text(values[-1])}" for name, (_, values) in lines.items()]
    told += [f"{name} was not logged" for name in block.metrics if name not in lines]
    return _Drawn(figure, f"{block.y_label} by {block.x_label}: {'; '.join(told)}.")


def _intervals(block: Intervals) -> _Drawn:
    """Estimates one below the other: a mark on its interval, single values as small rings, the figures in words."""
    last = len(block.rows) - 1
    figure, axes = _axes(height=ROW * len(block.rows) + 66, x_label=block.axis_label, y_label="")
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(-0.45, last + 0.7), yticks=[])
    told = []
    for index, (label, value, low, high, dots) in enumerate(block.rows):
        y = last - index
        text = interval_text(value, low, high)
        told.append(f"{label} {text}")
        label = textwrap.shorten(label, ROW_CHARACTERS - len(text), placeholder=" …")
        above: dict[str, Any] = {"va": "bottom", "transform": axes.get_yaxis_transform()}
        axes.text(0, y + 0.16, label, ha="left", **above)
        axes.text(1, y + 0.16, text, ha="right", **above)
        if block.reference is not None:
            axes.plot([block.reference] * 2, [y - 0.28, y + 0.14], color=INK, linewidth=1, linestyle=DASHED)
        _, colour, _, marker = SERIES[index % len(SERIES)]
        shown = [dot for dot in dots if dot is not None]
        axes.plot(shown, [y - 0.2] * len(shown), "o", color=FAINT, fillstyle="none", markersize=4.5)
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], "-", color=colour, linewidth=3, solid_capstyle="butt")
        if value is not None:
            fill = colour if index < len(SERIES) else "white"  # hollow, as of a line
            axes.plot([value], [y], marker, color=fill, markersize=8, markeredgecolor=INK, markeredgewidth=0.8)
    axes.margins(x=0.06)
    axes.grid(axis="x")
    return _Drawn(figure, f"{block.axis_label}: {'; '.join(told)}.")


def _bars(block: Bars) -> _Drawn:
    """Groups of bars with their intervals, rings for the single values and marks above."""
    figure, axes = _axes(height=330, x_label="", y_label=block.axis_label)
    width, told, patches = 0.84 / max(1, len(block.series)), list[str](), []
    ends = [block.base]
    for index, name in enumerate(block.series):
        _, colour, _, _ = SERIES[index % len(SERIES)]
        hatch = HATCHES[index % len(HATCHES)]
        for group, bars in enumerate(block.bars):
            value, low, high, dots, mark = bars[index]
            x = group + (index - (len(block.series) - 1) / 2) * width
            told.append(f"{name}, {block.groups[group]}: {interval_text(value, low, high)} {mark}".strip())
            if value is None:
                continue
            axes.bar(
                x,
                value - block.base,
                0.86 * width,
                block.base,
                color=colour,
                alpha=0.75,
                hatch=hatch,
                edgecolor=INK,
                linewidth=0.5,
            )
            rings = [dot for dot in dots if dot is not None]
            axes.plot([x] * len(rings), rings, "o", color=INK, fillstyle="none", markersize=3, markeredgewidth=0.6)
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=INK, linewidth=1.3)
            top = max(end for end in (value, high, *rings, block.base) if end is not None)
            ends += [end for end in (value, low, high, *rings) if end is not None]
            if mark:
                axes.text(x, top, mark, ha="center", va="bottom", fontsize=FONT - 2)
        patches.append(Patch(facecolor=colour, alpha=0.75, hatch=hatch, edgecolor=INK, linewidth=0.5))
    low_end, high_end = _span(np.array(ends))
    room = 0.08 * (high_end - low_end)
    axes.set(ylim=(low_end - room * (low_end < block.base), high_end + room), xlim=(-0.6, len(block.groups) - 0.4))
    axes.set_xticks(
        range(len(block.groups)),
        [textwrap.fill(name, max(8, 44 // max(1, len(block.groups)))) for name in block.groups],
    )
    axes.axhline(block.base, color=INK, linewidth=1)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(block.series) > 1:
        _legend(figure, patches, block.series)
    return _Drawn(figure, f"{block.axis_label}: {'; '.join(told)}.")


def _trends(block: Trends) -> _Drawn:
    """A line for each approach over a few places, with the interval of each value; lines stand a little apart."""
    figure, axes = _axes(height=330, x_label=block.x_label, y_label=block.y_label)
    places = sorted({at for line in block.lines for at in line.at})
    axes.set_xscale("log")
    drawn, told = [], []
    for index, (label, at, values, low, high) in enumerate(block.lines):
        apart = 1.02 ** (index - (len(block.lines) - 1) / 2)
        x = [place * apart for place in at]
        line = _line(axes, x, [math.nan if value is None else value for value in values], series=index)
        line.set_markevery(None)
        for place, bottom, top in zip(x, low, high, strict=True):
            if bottom is not None and top is not None:
                axes.plot([place, place], [bottom, top], color=line.get_color(), linewidth=1.2, alpha=0.7)
        drawn.append(line)
        said = zip(at, values, low, high, strict=True)
        told.append(f"{label}: " + ", ".join(f"at {number_text(a)} {interval_text(*ends)}" for a, *ends in said))
    axes.set_xticks(places, [f"{place:.3g}" for place in places])
    axes.minorticks_off()
    if block.reference is not None:
        axes.axhline(block.reference, color=INK, linewidth=1, linestyle=DASHED)
    axes.grid(axis="y")
    if drawn:
        _legend(figure, drawn, [line.label for line in block.lines])
    return _Drawn(figure, f"{block.y_label} by {block.x_label}: {'; '.join(told)}.")


def _roc(block: Roc) -> _Drawn:
    """ROC curves in the unit square, with the diagonal of guessing; bands for the intervals."""
    figure, axes = _axes(
        height=400, x_label="false positive rate (1 − specificity)", y_label="true positive rate (sensitivity)"
    )
    _unit_square(axes)
    drawn = [
        _line(axes, curve.false_positive, curve.true_positive, series=index) for index, curve in enumerate(block.curves)
    ]
    told = []
    for line, curve in zip(drawn, block.curves, strict=True):
        ends = zip(curve.rates, curve.low, curve.high, strict=True)
        band = [(rate, low, high) for rate, low, high in ends if low is not None and high is not None]
        rates, low_ends, high_ends = ([each[end] for each in band] for end in range(3))
        if band:
            axes.fill_between(rates, low_ends, high_ends, color=line.get_color(), alpha=0.18, linewidth=0, zorder=0)
        near = [f"{low:.2f} to {high:.2f} at {rate:.2g}" for rate, low, high in band if round(rate, 3) in TOLD_RATES]
        told.append(f"{curve.label}, intervals {', '.join(near)}" if near else curve.label)
    if drawn:
        _legend(figure, drawn, [curve.label for curve in block.curves])
    return _Drawn(figure, f"ROC curves: {'; '.join(told) or 'none'}.")


def _reliability(block: Reliability) -> _Drawn:
    """What was seen against what was said, with the diagonal where both are equal; bars for the intervals."""
    figure, axes = _axes(height=400, x_label="probability said", y_label="share of sessions seen")
    _unit_square(axes)
    drawn, told = [], []
    for index, (label, said, seen, low, high) in enumerate(block.curves):
        line = _line(axes, said, [math.nan if value is None else value for value in seen], series=index)
        line.set_markevery(None)
        for x, bottom, top in zip(said, low, high, strict=True):
            if bottom is not None and top is not None:
                axes.plot([x, x], [bottom, top], color=line.get_color(), linewidth=1.2, alpha=0.7)
        drawn.append(line)
        pairs = zip(said, seen, strict=True)
        told.append(f"{label}: " + ", ".join(f"{number_text(a)} said, {number_text(b)} seen" for a, b in pairs))
    if drawn:
        _legend(figure, drawn, [curve.label for curve in block.curves])
    return _Drawn(figure, f"Reliability curves: {'; '.join(told) or 'none'}.")


def _scatter(block: Scatter) -> _Drawn:
    """A point a session, the same span both ways, with the diagonal."""
    figure, axes = _axes(height=400, x_label=block.x_label, y_label=block.y_label)
    low, high = _span(np.array([*block.true, *block.said]))
    room = 0.04 * (high - low)
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle=DASHED)
    axes.plot(block.true, block.said, "o", color=SERIES[0].colour, markersize=4, alpha=0.5, markeredgewidth=0)
    axes.grid()
    ends = " and ".join(
        f"{label} from {number_text(min(values))} to {number_text(max(values))}"
        for label, values in ((block.x_label, block.true), (block.y_label, block.said))
    )
    return _Drawn(figure, f"{len(block.true)} points: {ends}.")


def _histogram(block: Histogram) -> _Drawn:
    """How a figure is spread; what lies beyond a flag is hatched and counted."""
    values = np.array([value for value in block.values if value is not None and math.isfinite(value)])
    figure, axes = _axes(height=280, x_label=block.x_label, y_label=block.y_label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if not values.size:
        return _Drawn(figure, f"{block.y_label} by {block.x_label}: no value.")
    low, high = _span(values)
    counts, borders = np.histogram(values, bins=min(30, max(8, round(2 * values.size**0.5))), range=(low, high))
    above = math.inf if block.flag_above is None else block.flag_above
    below = -math.inf if block.flag_below is None else block.flag_below
    said = f"{values.size} values from {number_text(values.min())} to {number_text(values.max())}"
    for count, left, right in zip(counts, borders[:-1], borders[1:], strict=True):
        inside = below <= (left + right) / 2 <= above
        colour, hatch = (SERIES[0].colour, None) if inside else (SERIES[1].colour, "///")
        axes.bar(left, count, right - left, align="edge", color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6)
    flagged = [
        f"{int(beyond.sum())} {side} {flag:g}"
        for side, flag, beyond in (("below", below, values < below), ("above", above, values > above))
        if math.isfinite(flag)
    ]
    for flag in filter(math.isfinite, (below, above)):
        axes.axvline(flag, color=INK, linewidth=1.2, linestyle=DASHED)
    if flagged:
        said += f", {', '.join(flagged)}"
        axes.set_title(", ".join(flagged), loc="right")
    return _Drawn(figure, f"{block.y_label} by {block.x_label}: {said}.")


# the parts of a chart -----------------------------------------------------------------------------------------------


def _axes(*, height: int, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Axes with both names horizontal, which reads best when small: x's below, y's on top of its axis."""
    figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH))
    axes = figure.add_subplot()
    axes.set_xlabel("\n".join(textwrap.wrap(x_label, AXIS_CHARACTERS)))
    axes.set_title("\n".join(textwrap.wrap(y_label, TITLE_CHARACTERS)), pad=10)
    return figure, axes


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=DASHED)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], *, series: int) -> Line2D:
    """A line of the series' own colour, dash and marker; some seven markers on its way, apart from its neighbours'.
    Where there are more lines than series, the later ones are thin, and their markers hollow."""
    _, colour, dash, marker = SERIES[series % len(SERIES)]
    stride = max(1, len(x) // 7)
    every = (series * stride // len(SERIES) % stride, stride)
    (line,) = axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markevery=every)
    if series >= len(SERIES):
        line.set(fillstyle="none", linewidth=1.0)
    return line


def _legend(figure: Figure, lines: Sequence[Artist], labels: Sequence[str]) -> None:
    """Below the axes, in as many columns as the labels leave room for; the figure grows by what it takes."""
    longest = max(len(label) for label in labels) + 5
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // longest))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + (rows - 1) * LEGEND_ROW / POINTS_PER_INCH)
    figure.legend(lines, labels, loc="outside lower left", ncols=columns)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Steps and values in order, neighbours averaged until few enough are left; values that are no number left out."""
    finite = np.array(sorted(point for point in points if math.isfinite(point[1])) or [(0, math.nan)], dtype=np.float64)
    pieces = np.array_split(finite, min(len(finite), MOST_POINTS))
    means = np.array([piece.mean(axis=0) for piece in pieces])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _span(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis that holds all values, never of no length."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _svg(drawn: _Drawn) -> str:
    """As an element to stand in a page: no fixed size, no declarations, no names that two charts would share."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": drawn.says}):
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    return svg
