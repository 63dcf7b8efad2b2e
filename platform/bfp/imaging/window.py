"""Grey values to bytes: the window of a scan and what it makes of the voxels.

MRI has no absolute units, so each scan gets a window of its own: two percentiles of its foreground. Below is black,
above white, linear in between.
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


def to_uint8(values: np.ndarray, window: Window) -> np.ndarray:
    """Values (float, any shape) as uint8, rounded. A window without width makes what reaches it white."""
    if window.high <= window.low:
        return np.where(values >= window.high, np.uint8(255), np.uint8(0))
    greys = 255.0 / (window.high - window.low)  # in a unit of the values
    grey = values - np.float32(window.low - 0.5 / greys)  # half a grey more: the cast below cuts off
    grey *= np.float32(greys)
    np.clip(grey, 0, 255, out=grey)
    return grey.astype(np.uint8)
