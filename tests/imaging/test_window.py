"""Grey values to bytes."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.imaging.window import Window, from_uint8, intensity_window, to_uint8, zscore_window


def test_the_window_is_two_percentiles() -> None:
    window = intensity_window(np.arange(1001, dtype=np.float32), lower_percentile=1, upper_percentile=98)
    assert window == (10, 980)


def test_low_is_black_high_is_white_and_between_it_is_linear_and_rounded() -> None:
    values = np.array([-1e30, 0, 10, 10.3, 61, 112, 1e30], dtype=np.float32)
    np.testing.assert_array_equal(to_uint8(values, Window(10, 112)), [0, 0, 0, 1, 128, 255, 255])


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (1e6, 1e6 + 300), (0.0, 1e-6)])
def test_any_scale_uses_every_grey(low: float, high: float) -> None:
    grey = to_uint8(np.linspace(low, high, 3000, dtype=np.float32), Window(low, high))
    assert np.unique(grey).size > 250
    assert np.all(np.diff(grey.astype(int)) >= 0)


def test_a_constant_image_is_white_and_divides_by_nothing() -> None:
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(to_uint8(np.float32([0, 7, 7]), Window(7, 7)), [0, 255, 255])


def test_a_zscore_window_is_so_many_deviations_around_the_mean_and_heeds_no_outlier() -> None:
    values = np.random.default_rng(0).normal(300, 50, 20_000).astype(np.float32)
    window = zscore_window(values, lower_percentile=0, upper_percentile=100, limit=3.0)
    np.testing.assert_allclose(window, (150, 450), atol=2)
    np.testing.assert_array_equal(to_uint8(np.float32([150, 300, 450]), Window(150, 450)), [0, 128, 255])
    values[:100] = 1e5
    np.testing.assert_allclose(
        zscore_window(values, lower_percentile=1, upper_percentile=99, limit=3.0), (150, 450), atol=8
    )
    flat = zscore_window(np.full(9, 7, np.float32), lower_percentile=1, upper_percentile=99, limit=3.0)
    assert flat == (7, 7)


@pytest.mark.parametrize("window", [Window(-3.0, 5.0), Window(1e6, 1e6 + 300), Window(0.0, 1e-6)])
def test_the_way_back_from_bytes_is_half_a_grey_level_off_at_most(window: Window) -> None:
    values = np.linspace(window.low, window.high, 3000, dtype=np.float32)
    back = from_uint8(to_uint8(values, window), window)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=0.55 * (window.high - window.low) / 255, rtol=0)
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(grey, window), window), grey)
