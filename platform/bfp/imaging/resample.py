"""Voxels from one grid onto another, once, through everything that lies between: orientation, spacing, registration.

Linear for grey values, nearest for labels. Where the two grids are parallel (the usual case: only spacing, crop and
axis order differ) each axis is done by itself, and an axis whose centres coincide is only sliced; otherwise the general
affine is left to scipy. What lies outside the source's outermost centres gets one given value.

Arrays are (x, y, z) in Fortran order (x fastest), as NIfTI stores them. No smoothing comes first: a coarser grid
samples what is there, as `scipy.ndimage` and MONAI do.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from bfp.imaging.grid import Grid

Interpolation = Literal["linear", "nearest"]

# Positions are snapped to voxel centres within so many voxels: affines in headers are float32.
_SNAP_VOXELS = 1e-3


def resample(
    array: np.ndarray,
    *,
    source: Grid,
    target: Grid,
    source_ras_from_target_ras: np.ndarray,
    interpolation: Interpolation,
    outside: float,
) -> np.ndarray:
    """The array on the source grid, at the centres of the target grid.

    array: source.shape, any real dtype. Returns target.shape: float32 when linear, the array's dtype when nearest.
    source_ras_from_target_ras: (4, 4), where in the source's space a point of the target's lies; the identity when
    both headers agree.
    """
    assert array.shape == source.shape
    dtype = np.dtype(np.float32) if interpolation == "linear" else array.dtype
    source_from_target = source.voxel_from_ras @ source_ras_from_target_ras @ target.ras_from_voxel
    axes = _parallel_axes(source_from_target, target.shape)
    if axes is not None:
        scales = source_from_target[axes, range(3)]
        offsets = source_from_target[axes, 3]
        return _resample_parallel(array.transpose(axes), scales, offsets, target.shape, interpolation, outside, dtype)
    # Both sides are handed over transposed, so that scipy walks memory in order.
    flipped = source_from_target[:3, :3][::-1, ::-1]
    return ndimage.affine_transform(
        array.T,
        flipped,
        offset=source_from_target[:3, 3][::-1],
        output_shape=target.shape[::-1],
        output=dtype,
        order=1 if interpolation == "linear" else 0,
        mode="constant",
        cval=outside,
        prefilter=False,
    ).T


def _parallel_axes(source_from_target: np.ndarray, target_shape: tuple[int, int, int]) -> list[int] | None:
    """The source axis that each target axis runs along, or None where an axis runs along no single one.

    Parallel means that walking the whole target leaves each source axis by less than the snapping distance.
    """
    walked = np.abs(source_from_target[:3, :3]) * (np.array(target_shape) - 1)
    axes = [int(axis) for axis in np.abs(source_from_target[:3, :3]).argmax(axis=0)]
    along = np.zeros((3, 3), dtype=bool)
    along[axes, range(3)] = True
    return axes if sorted(axes) == [0, 1, 2] and walked[~along].max() < _SNAP_VOXELS else None


def _resample_parallel(
    array: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    shape: tuple[int, int, int],
    interpolation: Interpolation,
    outside: float,
    dtype: np.dtype,
) -> np.ndarray:
    """Axis by axis: index n lies at scales · n + offsets of the source, whose axes are in the target's order."""
    positions = [
        offset + scale * np.arange(extent) for scale, offset, extent in zip(scales, offsets, shape, strict=True)
    ]
    positions = [_snapped(along) for along in positions]
    inside: list[slice] = []
    for axis in (2, 1, 0):  # z first: it drops whole planes
        extent = array.shape[axis]
        within = np.flatnonzero((positions[axis] >= 0) & (positions[axis] <= extent - 1))
        inside.insert(0, slice(within[0], within[-1] + 1) if within.size else slice(0, 0))
        array = _along(array, axis, positions[axis][inside[0]], interpolation, dtype)
    target = np.full(shape, outside, dtype=dtype, order="F")
    target[tuple(inside)] = array
    return target


def _snapped(positions: np.ndarray) -> np.ndarray:
    nearest = np.rint(positions)
    return np.where(np.abs(positions - nearest) < _SNAP_VOXELS, nearest, positions)


def _along(
    array: np.ndarray, axis: int, positions: np.ndarray, interpolation: Interpolation, dtype: np.dtype
) -> np.ndarray:
    """The array at fractional positions of one axis, all of them inside it."""
    if interpolation == "nearest":
        positions = np.floor(positions + 0.5)
    below = np.floor(positions).astype(np.intp)
    weight = (positions - below).astype(np.float32)
    lower = _take(array, axis, below)
    if not weight.any():
        return lower
    upper = _take(array, axis, np.minimum(below + 1, array.shape[axis] - 1))
    along = [1, 1, 1]
    along[axis] = -1
    mixed = np.subtract(upper, lower, dtype=dtype)
    mixed *= weight.reshape(along)
    mixed += lower
    return mixed


def _take(array: np.ndarray, axis: int, indices: np.ndarray) -> np.ndarray:
    """array[indices] along one axis: a view where the indices are evenly spaced, else a copy in Fortran order."""
    steps = np.diff(indices)
    if indices.size and (steps.size == 0 or (steps[0] != 0 and np.all(steps == steps[0]))):
        step = int(steps[0]) if steps.size else 1
        stop = int(indices[-1]) + (1 if step > 0 else -1)
        index: list[slice] = [slice(None)] * 3
        index[axis] = slice(int(indices[0]), stop if stop >= 0 else None, step)
        return array[tuple(index)]
    return np.take(array.T, indices, axis=2 - axis).T
