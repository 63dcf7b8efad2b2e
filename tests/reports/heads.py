"""Slices that look like a head, cheap to draw: an ellipse with two dark ventricles, brighter on the patient's right."""

from __future__ import annotations

import numpy as np


def head(*, n: int, channels: int, size_px: int = 56) -> np.ndarray:
    """uint8 (n, channels, size_px, size_px), of n heights."""
    rows, columns = np.indices((size_px, size_px)) / size_px - 0.5
    slices = []
    for height in np.linspace(0.7, 1.0, n):
        inside = (rows / (0.45 * height)) ** 2 + (columns / (0.36 * height)) ** 2 < 1
        ventricles = (rows / 0.14) ** 2 + ((np.abs(columns) - 0.08) / 0.04) ** 2 < 1
        slices.append(inside * (120 + 100 * (columns > 0) - 90 * ventricles))
    return np.repeat(np.stack(slices)[:, None], channels, axis=1).astype(np.uint8)
