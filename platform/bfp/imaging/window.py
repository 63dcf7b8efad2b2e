"""Grey values to bytes and back: the window of a scan and what it makes of the voxels.

MRI has no absolute units, so each scan gets a window of its own: two percentiles of its foreground, or so many standard
deviations around its mean. Below is black, above white, linear in between; `from_uint8` is the way back, but for what
was clipped and rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """The values that become 0 and 255, in scanner units."""

    low: float
    high: float


def intensity_window(values: np.ndarray, *, lower_percentile: float, upper_percentile: float) -> Window:
    """The window of the foreground's values: float32 (n,), n > 0."""
    low, high = np.percentile(values, [lower_percentile, upper_percentile])
    return Window(low=float(low), high=float(high))


def zscore_window(values: np.ndarray, *, lower_percentile: float, upper_percentile: float, limit: float) -> Window:
    """The window from `limit` standard deviations below the mean of the foreground's values to as many above it.

    values: float32 (n,), n > 0. Those beyond the percentiles count as these, so that a few bright vessels do not
    stretch it. A grey value g stands for (g / 127.5 - 1) · limit standard deviations from the mean.
    """
    low, high = np.percentile(values, [lower_percentile, upper_percentile])
    within = np.clip(values, low, high)
    mean, deviation = float(within.mean(dtype=np.float64)), float(within.std(dtype=np.float64))
    return Window(low=mean - limit * deviation, high=mean + limit * deviation)


def to_uint8(values: np.ndarray, window: Window) -> np.ndarray:
    """Values (float, any shape) as uint8, rounded. A window without width makes what reaches it white."""
    if window.high <= window.low:
        return np.where(values >= window.high, np.uint8(255), np.uint8(0))
    greys = 255.0 / (window.high - window.low)  # in a unit of the values
    grey = values - np.float32(window.low - 0.5 / greys)  # half a grey more: the cast below cuts off
    grey *= np.float32(greys)
    np.clip(grey, 0, 255, out=grey)
    return grey.astype(np.uint8)


def from_uint8(grey: np.ndarray, window: Window) -> np.ndarray:
    """The values in scanner units that grey values (uint8, any shape) stand for: float32 of the same shape."""
    return np.float32(window.low) + grey.astype(np.float32) * np.float32((window.high - window.low) / 255)
