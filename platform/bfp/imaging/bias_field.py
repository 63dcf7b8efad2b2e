"""The bias field of a scan: the smooth gain of the receiver's coil, which makes one tissue brighter here than there.

N4 (Tustison et al. 2010, IEEE TMI 29:1310), SimpleITK's. It takes a scan v for u · f, with f smooth, and finds log f as
the B-spline, fitted from coarse to fine, that makes the histogram of log v sharp. Only what is head counts, or what of
it the brain mask leaves: `foreground` finds both in the scan as it is. The gain is 1 in the geometric mean there, so
that grey values keep about their size. Grey values are divided by it plane by plane, on the planes that stacks are cut
from (`session`); of the field no more is kept than the coarse grid of the foreground.

It goes by N4's usual numbers (those of ANTs' brain extraction and of fMRIPrep: 200 mm, 4 levels of 50 iterations), and
departs in two. A voxel every 8 mm is looked at instead of every 4: planted into four scans of other scanners, a field
of ±30 % (0.10 in the standard deviation of its logarithm) came back to 0.002 to 0.028 at 8 mm and to 0.002 to 0.024 at
4, which took four to eight times as long. And a level ends once the field changes by a thousandth (ITK's default; ANTs'
1e-7 is never reached).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import SimpleITK

from bfp.imaging.foreground import Foreground, of_both_signs
from bfp.imaging.grid import Grid

_STEP_MM = 8.0
_FEWEST_STEPS = 16  # along an axis, where the foreground's grid has as many voxels
_FEWEST_VOXELS = 200  # a cube of 47 mm a side; less says nothing of what is smooth over a head
_ELEMENT_MM = 200.0  # of the coarsest level; each further one halves it, down to 25 mm
_LEVELS, _ITERATIONS = 4, 50
_THRESHOLD = 0.001
_DARKEST = 0.1  # of the median: logarithms of what is nearly zero would spread N4's 200 bins over nothing
# The coefficient of variation of the last iteration's change: one grey level of 255. Of sixteen real scans the
# largest was 0.0014, after all iterations.
_UNSETTLED = 0.004


@dataclass(frozen=True, slots=True, eq=False)
class BiasField:
    """correction: float32 (i, j, k) of grid, > 0; grey values times this are even. It reaches beyond the scan.

    ratio: how strong the field is, its 95th percentile within the foreground over its 5th; 1 is none.
    """

    correction: np.ndarray
    grid: Grid
    ratio: float


class Estimate(NamedTuple):
    """field: None where none was asked for, or found: then a warning (a sentence for a person) says why."""

    field: BiasField | None
    warnings: tuple[str, ...] = ()


def estimate_bias_field(head: Foreground, tissue: Foreground) -> Estimate:
    """The field of a scan, from its tissue: the head itself, or what of it the brain mask leaves.

    A gain has a meaning only for a signal that cannot be negative: standardised images and CT are left as they are.
    """
    if of_both_signs(head.values):
        found = f"its values go down to {head.values.min():.4g}, which no gain makes of a signal"
        return Estimate(None, (f"the bias field was not corrected: {found}; is it CT, or standardised already?",))
    values = np.zeros(tissue.mask.shape, np.float32)
    values[tissue.mask] = tissue.values
    region = values > max(0.0, _DARKEST * float(np.median(tissue.values)))
    steps = _steps(tissue.grid)
    few = tuple(slice(None, None, step) for step in steps)
    if (voxels := np.count_nonzero(region[few])) < _FEWEST_VOXELS:
        found = f"{voxels} voxels of its foreground, one every {_STEP_MM:g} mm, are too few to tell a field"
        return Estimate(None, (f"the bias field was not corrected: {found}",))

    try:
        fitted = _fitted(values[few], region[few], tissue.grid.every(steps), finer=steps)
    except RuntimeError as failure:
        return Estimate(None, (f"the bias field was not corrected: {str(failure).strip().splitlines()[-1]}",))
    log_gain = _held(fitted.log_gain, tissue.grid.shape)
    inside = log_gain[region]
    if not np.isfinite(inside).all():
        return Estimate(None, ("the bias field was not corrected: N4 found none that is finite",))
    warnings: tuple[str, ...] = ()
    if fitted.last_change > _UNSETTLED:
        after = f"still changed by {fitted.last_change:.1%} in the last of {_ITERATIONS} iterations"
        warnings = (f"the bias field {after}: it was corrected as far as it was known; look at the stacks",)
    # Beyond what it was fitted to, the spline may be anything.
    log_gain = np.clip(log_gain, inside.min(), inside.max()) - inside.mean(dtype=np.float64)
    low, high = np.percentile(inside, [5, 95])
    correction = np.pad(np.exp(-log_gain).astype(np.float32), 1, mode="edge")
    i, j, k = correction.shape
    grid = tissue.grid.window((-1, -1, -1), (i, j, k))
    return Estimate(BiasField(correction, grid, ratio=float(np.exp(high - low))), warnings)


def corrected(tissue: Foreground, field: BiasField) -> np.ndarray:
    """The values of the foreground, float32 (n,), without the field that was found in the same scan."""
    return np.asarray(tissue.values * field.correction[1:-1, 1:-1, 1:-1][tissue.mask])


def _steps(grid: Grid) -> tuple[int, int, int]:
    """Every how many voxels along each axis one is looked at."""
    i, j, k = (
        max(1, min(int(_STEP_MM / spacing + 1e-3), extent // _FEWEST_STEPS))
        for spacing, extent in zip(grid.spacing_mm, grid.shape, strict=True)
    )
    return i, j, k


class _Fitted(NamedTuple):
    """log_gain: float32 (i, j, k), at every place between the first and the last that were looked at."""

    log_gain: np.ndarray
    last_change: float


def _fitted(values: np.ndarray, region: np.ndarray, grid: Grid, *, finer: tuple[int, int, int]) -> _Fitted:
    """N4's spline through the voxels of the region, on a grid so many times as fine. Raises RuntimeError (ITK's)."""
    # For ITK's filters behind this one: sums of several threads would depend on their order.
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations([_ITERATIONS] * _LEVELS)
    n4.SetConvergenceThreshold(_THRESHOLD)
    extents_mm = np.array(grid.spacing_mm) * (np.array(grid.shape) - 1)
    n4.SetNumberOfControlPoints([max(1, round(extent / _ELEMENT_MM)) + 3 for extent in extents_mm])  # of cubic splines
    n4.Execute(_itk_image(values, grid.spacing_mm), _itk_image(region.astype(np.uint8), grid.spacing_mm))
    # The spline spans the image that it is asked for on, which therefore has the first one's ends.
    shape = [(extent - 1) * times + 1 for extent, times in zip(grid.shape, finer, strict=True)]
    asked = SimpleITK.Image(shape, SimpleITK.sitkFloat32)
    asked.SetSpacing([spacing / times for spacing, times in zip(grid.spacing_mm, finer, strict=True)])
    log_gain = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(asked)).T
    return _Fitted(log_gain, float(n4.GetCurrentConvergenceMeasurement()))


def _held(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The array made as large as this: what lies beyond its last voxels, less than a step, is like these."""
    beyond = [(0, extent - own) for extent, own in zip(shape, array.shape, strict=True)]
    return np.pad(array, beyond, mode="edge")


def _itk_image(array: np.ndarray, spacing_mm: tuple[float, float, float]) -> SimpleITK.Image:
    """An image in millimetres along the array's own axes: where it lies in the scanner makes no difference."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing_mm)
    return image
