from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bfp.reports.blocks import (
    Bar,
    Bars,
    Curves,
    Histogram,
    IntervalRow,
    Intervals,
    Reliability,
    ReliabilityCurve,
    Roc,
    RocCurve,
    Scatter,
    TrendLine,
    Trends,
)
from bfp.reports.figures import VARIABLES, Chartable, draw

POINTS = {
    "loss": [(step, 9.0 - step / 1000) for step in range(5000)],
    "dino": [(step, float(np.cos(step / 900))) for step in range(5000)],
    "ibot": [(0, 1.0)],
}
CURVES = Curves("Losses", ["loss", "dino", "ibot"], "loss, nats", x_label="step, 1")
INTERVALS = Intervals(
    "AUROC",
    [IntervalRow("pretrained", 0.83, 0.76, 0.90, [0.8, 0.9]), IntervalRow("permuted", None, None, None)],
    "AUROC, 1",
    reference=0.5,
)
ROC = Roc("ROC", [RocCurve("pretrained", [0.0, 0.2, 1.0], [0.0, 0.8, 1.0]), RocCurve("age", [0.0, 1.0], [0.0, 1.0])])
RELIABILITY = Reliability(
    "Calibration",
    [ReliabilityCurve("AD", [0.1, 0.5, 0.9], [0.2, None, 0.8], [0.1, None, 0.6], [0.3, None, 0.9])],
)
HISTOGRAM = Histogram("Shift", [0.3, 0.4, 1.1, 12.2], "displacement, mm", "scans", flag_above=5.0)
BARS = Bars(
    "Encoders",
    ["all", "T1w only"],
    ["theirs", "ours"],
    [[Bar(0.6, 0.5, 0.7, [0.55, None], "***"), Bar(0.8, 0.7, 0.9, [0.8])], [Bar(0.4, 0.3, 0.5), Bar(None, None, None)]],
    "AUROC, mean of folds",
    base=0.5,
)
TRENDS = Trends(
    "Few labels",
    [
        TrendLine("ours", [20.0, 80.0], [0.7, None], [0.6, None], [0.8, None]),
        TrendLine("none", [20.0], [0.5], [0.4], [0.6]),
    ],
    "subjects, 1",
    "AUROC, mean",
    reference=0.5,
)
SCATTER = Scatter("Age", [50.0, 60.0, 80.0], [55.0, 61.0, 70.0], "age, years", "age said, years")
CHARTS: list[Chartable] = [CURVES, INTERVALS, ROC, RELIABILITY, HISTOGRAM, BARS, TRENDS, SCATTER]


def _texts(svg: str) -> list[str]:
    element = ET.fromstring(svg.replace("xlink:href", "href"))
    return ["".join(text.itertext()) for text in element.iter("text")]


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (CURVES, ["loss, nats", "step, 1"]),
        (INTERVALS, ["AUROC, 1"]),
        (ROC, ["true positive rate (sensitivity)", "false positive rate (1 − specificity)"]),
        (RELIABILITY, ["share of sessions seen", "probability said"]),
        (HISTOGRAM, ["displacement, mm", "scans"]),
        (BARS, ["AUROC, mean of folds", "all", "T1w only", "ours", "***"]),
        (TRENDS, ["AUROC, mean", "subjects, 1", "20", "80"]),
        (SCATTER, ["age, years", "age said, years"]),
    ],
)
def test_every_axis_has_its_name(block: Chartable, names: list[str]) -> None:
    texts = _texts(draw(block, POINTS).svg)
    assert set(names) <= set(texts)


@pytest.mark.parametrize("block", CHARTS)
def test_a_chart_repeats_to_the_byte(block: Chartable) -> None:
    assert draw(block, POINTS) == draw(block, POINTS)


@pytest.mark.parametrize("block", CHARTS)
def test_every_colour_is_the_pages_to_choose(block: Chartable) -> None:
    svg = draw(block, POINTS).svg
    left_over = re.sub(r"var\((--[\w-]+), (#[0-9a-f]{6})\)", "", svg)
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]+", left_over)
    assert set(re.findall(r"var\((--[\w-]+),", svg)) <= set(VARIABLES.values())


def test_lines_differ_in_dash_and_in_marker_not_in_colour_alone() -> None:
    svg = draw(CURVES, POINTS).svg
    dashes = set(re.findall(r"stroke-dasharray: ([\d., ]+)", svg))
    assert len(dashes) == 2  # the third line, the first, is whole
    assert len(set(re.findall(r'<path id="([^"]+)"', svg))) >= 3


def test_a_long_curve_is_thinned_and_keeps_its_level() -> None:
    short, long = (
        draw(Curves("Loss", ["loss"], "loss, nats"), {"loss": POINTS["loss"][::stride]}) for stride in (20, 1)
    )
    assert len(long.svg) < 1.3 * len(short.svg)
    assert long.says == "loss, nats by step: loss from 8.99 to 4.01."


def test_a_reliability_curve_says_its_bins_and_leaves_out_what_is_undefined() -> None:
    chart = draw(RELIABILITY, {})
    assert (
        chart.says
        == "Reliability curves: AD: 0.100 said, 0.200 seen, 0.500 said, undefined seen, 0.900 said, 0.800 seen."
    )
    assert chart.svg.count("stroke-width: 1.2") == 2  # the bars


def test_a_figure_that_was_never_logged_is_named() -> None:
    assert "koleo was not logged" in draw(Curves("Losses", ["loss", "koleo"], "loss, nats"), POINTS).says


def test_names_are_text_whatever_they_hold() -> None:
    name = "_<script>$x_1$ & Ω"
    for block in (
        Curves("a", [name, "loss"], "loss, nats"),
        Intervals("a", [IntervalRow(name, 1.0, 0.5, 2.0)], "b"),
        Roc("a", [RocCurve(name, [0.0, 1.0], [0.0, 1.0])]),
        Histogram("a", [1.0], name, "scans"),
    ):
        assert name in _texts(draw(block, POINTS | {name: [(0, 1.0)]}).svg)


def test_what_lies_above_the_flag_is_counted_and_hatched() -> None:
    chart = draw(HISTOGRAM, {})
    assert "1 above 5" in _texts(chart.svg)
    assert "fill: url(#h" in chart.svg
    assert "url(#h" not in draw(Histogram("Shift", [0.3, 0.4], "mm", "scans"), {}).svg


def test_a_histogram_counts_what_lies_below_the_one_flag_and_above_the_other() -> None:
    block = Histogram(
        "Age", [12.0, 40.0, 55.0, 70.0, 91.0, 99.0], "years", "sessions", flag_above=90.0, flag_below=18.0
    )
    assert "1 below 18, 2 above 90" in _texts(draw(block, {}).svg)


@pytest.mark.parametrize(
    "block",
    [
        Curves("a", ["nothing"], "loss, nats"),
        Curves("a", ["diverged"], "loss, nats"),
        Intervals("a", [], "AUROC, 1"),
        Intervals("a", [IntervalRow("b", 0.5, None, None, [None])], "AUROC, 1"),
        Roc("a", []),
        Reliability("a", []),
        Histogram("a", [], "mm", "scans", flag_above=5.0),
        Histogram("a", [2.0, 2.0], "mm", "scans"),
        Bars("a", ["all"], ["ours"], [[Bar(None, None, None)]], "AUROC, 1", base=0.5),
        Bars("a", [], [], [], "AUROC, 1", base=0.5),
        Trends("a", [], "subjects, 1", "AUROC, 1"),
        Scatter("a", [70.0], [70.0], "years", "years said"),
    ],
)
def test_a_chart_with_nothing_to_show_still_has_its_axes(
    block: Chartable,
) -> None:
    assert draw(block, {"diverged": [(0, math.nan), (1, math.inf)]}).svg.startswith("<svg")


def test_bars_and_trends_say_every_value_with_its_interval() -> None:
    assert "theirs, all: 0.60 [0.50, 0.70] ***" in draw(BARS, {}).says
    assert "ours, T1w only: undefined" in draw(BARS, {}).says
    assert "ours: at 20.0 0.70 [0.60, 0.80], at 80.0 undefined" in draw(TRENDS, {}).says
    assert "3 points: age, years from 50.0 to 80.0" in draw(SCATTER, {}).says


def test_a_roc_curve_with_intervals_has_a_band_and_says_some_of_them():
    curve = RocCurve("pretrained", [0.0, 0.1, 1.0], [0.0, 0.8, 1.0], [0.0, 0.1, 1.0], [0.0, 0.6, 1.0], [0.3, 0.9, 1.0])
    plain, banded = (draw(Roc("ROC", [own]), {}) for own in (curve._replace(rates=[], low=[], high=[]), curve))
    assert "fill-opacity: 0.18" in banded.svg
    assert "fill-opacity: 0.18" not in plain.svg
    assert banded.says == "ROC curves: pretrained, intervals 0.60 to 0.90 at 0.1."
