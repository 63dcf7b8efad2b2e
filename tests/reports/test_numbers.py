from __future__ import annotations

import math

import pytest

from bfp.reports.numbers import cell_text, duration_text, interval_text, number_text, signed_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.83142, "0.831"),
        (12.5, "12.5"),
        (-12.5, "-12.5"),
        (1234.6, "1,235"),
        (1932, "1,932"),
        (0.0, "0"),
        (0.00012345, "0.000123"),
        (1.5e-6, "1.50e-06"),
        (None, "undefined"),
        (math.nan, "undefined"),
    ],
)
def test_a_figure_has_three_significant_digits(value: float | None, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0213, "+0.021"), (-1.25, "-1.2"), (99.4, "+99"), (99.7, "+100"), (-1234.5, "-1,234"), (0.0, "+0")],
)
def test_a_part_of_a_sum_has_its_sign(value: float, text: str) -> None:
    assert signed_text(value) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.831, 0.762, 0.899, "0.83 [0.76, 0.90]"),
        (0.7, 0.5, 0.9, "0.70 [0.50, 0.90]"),
        (0.2634, 0.2512, 0.2735, "0.263 [0.251, 0.274]"),
        (62.4, 58.1, 71.3, "62 [58, 71]"),
        (1.0, 1.0, 1.0, "1.00 [1.00, 1.00]"),
        (0.12, -0.001, 0.26, "0.120 [-0.001, 0.260]"),
        (0.12, 0.003, 0.26, "0.120 [0.003, 0.260]"),
        (-0.12, -0.26, 0.0001, "-0.120 [-0.260, 0.000]"),
        (-0.12, -0.26, -0.0001, "-0.120 [-0.260, 0.000]"),
        (0.12, 0.0, 0.26, "0.12 [0.00, 0.26]"),
        (0.831, None, None, "0.831, interval undefined"),
        (None, None, None, "undefined"),
    ],
)
def test_an_interval_has_as_many_decimals_as_its_width_makes_sense_of(
    value: float | None, low: float | None, high: float | None, text: str
) -> None:
    assert interval_text(value, low, high) == text


def test_words_in_a_cell_stay_as_they_are() -> None:
    assert cell_text("0.50000") == "0.50000"
    assert cell_text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.6, "1 min"), (252, "4 min 12 s"), (7500, "2 h 5 min"), (270_000, "3 d 3 h")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
