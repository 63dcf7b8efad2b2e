"""A plane of a scan to look at: upright, its pixels square, with what was drawn on the scan's voxels.

The plane is one of the scan's own: axes are renamed and turned round so that they lie closest to RAS, not de-obliqued,
so a label is shown where its voxel is. What lies to the left, right and top is as of an axial slice (`stacks.EDGES`).
"""

from __future__ import annotations

import numpy as np

from bfp.imaging.grid import Grid
from bfp.imaging.resample import Interpolation, planes
from bfp.imaging.stacks import to_pixels


def axial_plane(array: np.ndarray, *, of: Grid, on: Grid, height: int, interpolation: Interpolation) -> np.ndarray:
    """A plane (row, column), square, of an array on the grid `of`, across the voxels of `on` at that height.

    height: index along the axis of `on` that lies closest to z, from below. Outside the array there is 0.
    """
    turned = on.closest_ras()
    spacing_mm = min(turned.spacing_mm[:2])
    flat = turned.respaced((spacing_mm, spacing_mm, turned.spacing_mm[2]))
    side = max(flat.shape[:2])
    start = tuple(-((side - extent) // 2) for extent in flat.shape[:2])
    square = flat.window((start[0], start[1], 0), (side, side, flat.shape[2]))
    (plane,) = (
        made.copy()
        for made in planes(
            array,
            source=of,
            target=square,
            source_ras_from_target_ras=np.eye(4),
            at=np.array([height]),
            interpolation=interpolation,
            outside=0,
        )
    )
    return to_pixels(plane)


def most_at(labels: np.ndarray, *, on: Grid) -> int:
    """The height, as of `axial_plane`, at which most voxels have a label; the middle where none has."""
    axes = on.closest_ras()
    own = int(np.argmax(np.abs(on.ras_from_voxel[:3, :3].T @ axes.ras_from_voxel[:3, 2])))
    counts = np.count_nonzero(np.moveaxis(labels, own, -1).reshape(-1, labels.shape[own]), axis=0)
    if not counts.any():
        return labels.shape[own] // 2
    at = int(counts.argmax())
    backwards = on.ras_from_voxel[:3, own] @ axes.ras_from_voxel[:3, 2] < 0
    return labels.shape[own] - 1 - at if backwards else at
