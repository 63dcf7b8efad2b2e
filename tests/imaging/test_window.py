"""Grey values to bytes."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.imaging.window import Window, intensity_window, to_uint8


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
