"""Voxels from one grid onto another, once, through everything that lies between: orientation, spacing, registration.

Linear or cubic for grey values, nearest for labels. Where the two grids are parallel (the usual case: only spacing,
crop and axis order differ) each axis is done by itself, and an axis whose centres coincide is only sliced; otherwise
the general affine is left to ITK, or to scipy. What lies outside the source's outermost centres gets one given value.

Cubic is the cubic B-spline through the voxels (Unser 1999, IEEE Signal Processing Magazine 16:22), mirrored at the
ends, as scipy's order 3: it overshoots at edges.

The work goes plane by plane, z last among the axes to be walked: a plane stays in the processor's cache through all
its steps, and only the planes that are asked for are made. Arrays are (x, y, z) in Fortran order (x fastest), as NIfTI
stores them. No smoothing comes first: a coarser grid samples what is there, as `scipy.ndimage` and MONAI do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage, sparse

from bfp.imaging.grid import Grid

Interpolation = Literal["linear", "cubic", "nearest"]

# Positions are snapped to voxel centres within so many voxels: affines in headers are float32.
_SNAP_VOXELS = 1e-3
_ROUNDING_VOXELS = 1e-6


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

    array: source.shape, any real dtype. Returns target.shape: float32, or the array's dtype when nearest.
    source_ras_from_target_ras: (4, 4), where in the source's space a point of the target's lies; the identity when
    both headers agree.
    """
    resampled = np.empty(target.shape, _dtype(array, interpolation), order="F")
    made = planes(
        array,
        source=source,
        target=target,
        source_ras_from_target_ras=source_ras_from_target_ras,
        at=np.arange(target.shape[2]),
        interpolation=interpolation,
        outside=outside,
    )
    for z, plane in enumerate(made):
        resampled[:, :, z] = plane
    return resampled


def planes(
    array: np.ndarray,
    *,
    source: Grid,
    target: Grid,
    source_ras_from_target_ras: np.ndarray,
    at: np.ndarray,
    interpolation: Interpolation,
    outside: float,
) -> Iterator[np.ndarray]:
    """The same for single planes (x, y) of the target grid, in turn: each is overwritten by the next.

    at: (n,), where along the target's z, in its voxels; between two of its planes and beyond them, too.
    """
    assert array.shape == source.shape
    source_from_target = source.voxel_from_ras @ source_ras_from_target_ras @ target.ras_from_voxel
    dtype = _dtype(array, interpolation)
    axes = _parallel_axes(source_from_target, target.shape)
    if axes is None:
        yield from _oblique(array, source_from_target, target.shape, at, interpolation, outside, dtype)
        return
    scales, offsets = source_from_target[axes, range(3)], source_from_target[axes, 3]
    positions = [
        _snapped(offset + scale * along)
        for offset, scale, along in zip(
            offsets, scales, (np.arange(target.shape[0]), np.arange(target.shape[1]), at), strict=True
        )
    ]
    array = array.transpose(axes)
    taps = [_taps(along, extent, interpolation) for along, extent in zip(positions, array.shape, strict=True)]
    if interpolation == "cubic":
        array = _spline(array, along=[axis for axis in range(3) if taps[axis].at.shape[1] > 1])
    if array.strides[2] == array.itemsize:
        array = np.asfortranarray(array)  # else each plane would touch all of memory
    x, y = (_along(taps[axis], dtype) for axis in (0, 1))
    plane = np.full(target.shape[:2], outside, dtype, order="F")
    blank = plane.copy(order="F")
    if x is None or y is None:
        yield from (blank for _ in at)
        return
    needed = array[x.needed, y.needed].transpose(2, 1, 0)  # (z, y, x)
    between, share = (np.empty(needed.shape[1:], dtype) for _ in range(2))
    for several, weights, is_inside in zip(*taps[2], strict=True):
        if not is_inside:
            yield blank
            continue
        mixed = needed[several[0]]
        if np.any(weights[1:]):
            mixed = np.multiply(mixed, weights[0], out=between)
            for tap, weight in zip(several[1:], weights[1:], strict=True):
                mixed += np.multiply(needed[tap], weight, out=share)
        if y.mix is not None:
            mixed = y.mix @ mixed.astype(dtype, copy=False)
        mixed = mixed.T
        if x.mix is not None:
            mixed = x.mix @ mixed.astype(dtype, copy=False)
        plane[x.inside, y.inside] = mixed
        yield plane


def _dtype(array: np.ndarray, interpolation: Interpolation) -> np.dtype:
    return array.dtype if interpolation == "nearest" else np.dtype(np.float32)


def _spline(array: np.ndarray, *, along: Sequence[int]) -> np.ndarray:
    """The coefficients of the cubic B-spline through the voxels, along these axes: float32, Fortran order."""
    array = array.astype(np.float32, order="F", copy=bool(along))
    for axis in along:
        array = ndimage.spline_filter1d(array.T, 3, axis=2 - axis, output=np.float32, mode="mirror").T
    return array


class _Taps(NamedTuple):
    """Of what each position of one axis is made.

    at: (n, k) voxels of the source, and weights: float32 (n, k), those of one position adding up to 1; k is 1 where all
    are taken as they are. inside: bool (n,), whether the position lies between the source's outermost centres.
    """

    at: np.ndarray
    weights: np.ndarray
    inside: np.ndarray


def _taps(positions: np.ndarray, extent: int, interpolation: Interpolation) -> _Taps:
    inside = (positions >= 0) & (positions <= extent - 1)
    if interpolation == "nearest":
        positions = np.floor(positions + 0.5)
    below = np.floor(positions).astype(np.intp)
    share = (positions - below).astype(np.float32)
    if not share[inside].any():
        return _Taps(below[:, None], np.ones((below.size, 1), np.float32), inside)
    if interpolation == "linear":
        return _Taps(below[:, None] + (0, 1), np.stack([1 - share, share], axis=1), inside)
    rest = 1 - share
    weights = [rest**3, 3 * share**3 - 6 * share**2 + 4, 3 * rest**3 - 6 * rest**2 + 4, share**3]
    mirrored = np.abs(below[:, None] + (-1, 0, 1, 2))
    mirrored = np.where(mirrored > extent - 1, 2 * (extent - 1) - mirrored, mirrored)
    return _Taps(mirrored, np.stack(weights, axis=1) / np.float32(6), inside)


class _Along(NamedTuple):
    """One axis. inside: the target's indices that lie in the source. needed: the source's that they are made of.

    mix: (inside, needed), sparse, how; None where they are taken as they are.
    """

    inside: slice
    needed: slice
    mix: sparse.csr_array | None


def _along(taps: _Taps, dtype: np.dtype) -> _Along | None:
    """What is needed of one source axis; None where no position lies in it."""
    within = np.flatnonzero(taps.inside)
    if not within.size:
        return None
    inside = slice(int(within[0]), int(within[-1]) + 1)
    at, weights = taps.at[inside], taps.weights[inside]
    steps = np.diff(at[:, 0])
    if not weights[:, 1:].any() and (not steps.size or (steps[0] != 0 and np.all(steps == steps[0]))):
        step = int(steps[0]) if steps.size else 1
        stop = int(at[-1, 0]) + (1 if step > 0 else -1)
        return _Along(inside, slice(int(at[0, 0]), stop if stop >= 0 else None, step), None)
    rows, columns = np.nonzero(weights)
    voxels = at[rows, columns]
    first, last = int(voxels.min()), int(voxels.max())
    values = weights[rows, columns].astype(dtype)
    mix = sparse.csr_array((values, (rows, voxels - first)), shape=(len(at), last - first + 1))
    return _Along(inside, slice(first, last + 1), mix)


def _oblique(
    array: np.ndarray,
    source_from_target: np.ndarray,
    shape: tuple[int, int, int],
    at: np.ndarray,
    interpolation: Interpolation,
    outside: float,
    dtype: np.dtype,
) -> Iterator[np.ndarray]:
    """By the general affine: linear by ITK, which takes a quarter of scipy's time, the rest by scipy."""
    if interpolation != "linear":
        array = _spline(array, along=range(3)) if interpolation == "cubic" else array
        flipped = source_from_target[:3, :3][::-1, ::-1]  # handed over transposed, so that memory is walked in order
        for z in at:
            offset = source_from_target[:3, 3] + source_from_target[:3, 2] * z
            yield ndimage.affine_transform(
                array.T,
                flipped,
                offset=offset[::-1],
                output_shape=(1, shape[1], shape[0]),
                output=dtype,
                order=3 if interpolation == "cubic" else 0,
                prefilter=False,
                mode="constant",
                cval=outside,
            )[0].T
        return

    import SimpleITK

    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetOutputPixelType(SimpleITK.sitkFloat32)
    resampler.SetTransform(
        SimpleITK.AffineTransform(source_from_target[:3, :3].ravel().tolist(), source_from_target[:3, 3].tolist())
    )
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))  # in voxels: no origin, no spacing
    x = np.arange(shape[0], dtype=np.float32)
    for few in _evenly_spaced(at):  # since each call takes as long as a quarter of a plane
        resampler.SetSize((shape[0], shape[1], few.size))
        resampler.SetOutputOrigin((0.0, 0.0, float(few[0])))
        resampler.SetOutputSpacing((1.0, 1.0, float(few[1] - few[0]) if few.size > 1 else 1.0))
        made = SimpleITK.GetArrayFromImage(resampler.Execute(image))
        for z, plane in zip(few, made, strict=True):
            first, last = _inside(source_from_target, array.shape, shape, z)
            np.copyto(plane, outside, where=(x < first) | (x > last))
            yield plane.T


def _evenly_spaced(at: np.ndarray) -> list[np.ndarray]:
    """Rising heights in runs of up to 16 with the same distance from each to the next."""
    runs: list[list[float]] = []
    for z in at.tolist():
        run = runs[-1] if runs else []
        if not run or len(run) == 16 or (len(run) > 1 and abs((z - run[-1]) - (run[1] - run[0])) > 1e-9):
            runs.append([z])
        else:
            run.append(z)
    return [np.array(run) for run in runs]


def _inside(
    source_from_target: np.ndarray, source_shape: tuple[int, ...], shape: tuple[int, int, int], z: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a plane, float32 (y, 1), the first and the last x within the source's outermost centres.

    ITK goes half a voxel beyond them.
    """
    y = np.arange(shape[1])
    first, last = np.full(shape[1], -np.inf), np.full(shape[1], np.inf)
    for along, extent in zip(source_from_target[:3], source_shape, strict=True):
        rows = along[1] * y + along[2] * z + along[3]
        low, high = -_ROUNDING_VOXELS - rows, extent - 1 + _ROUNDING_VOXELS - rows
        if abs(along[0]) < 1e-9:
            last[(low > 0) | (high < 0)] = -np.inf
        else:
            ends = np.sort([low / along[0], high / along[0]], axis=0)
            first, last = np.maximum(first, ends[0]), np.minimum(last, ends[1])
    return first.astype(np.float32)[:, None], last.astype(np.float32)[:, None]


def _parallel_axes(source_from_target: np.ndarray, target_shape: tuple[int, int, int]) -> list[int] | None:
    """The source axis that each target axis runs along, or None where an axis runs along no single one.

    Parallel means that walking the whole target leaves each source axis by less than the snapping distance.
    """
    walked = np.abs(source_from_target[:3, :3]) * (np.array(target_shape) - 1)
    axes = [int(axis) for axis in np.abs(source_from_target[:3, :3]).argmax(axis=0)]
    along = np.zeros((3, 3), dtype=bool)
    along[axes, range(3)] = True
    return axes if sorted(axes) == [0, 1, 2] and walked[~along].max() < _SNAP_VOXELS else None


def _snapped(positions: np.ndarray) -> np.ndarray:
    nearest = np.rint(positions)
    return np.where(np.abs(positions - nearest) < _SNAP_VOXELS, nearest, positions)
