"""What of a volume is head: one definition, used for the grey-value window, the crop and the choice of slices.

Scans come with noise in the air around the head, with air set to zero, or as a brain in a sea of zeros; one rule serves
them all: brighter than a third of Otsu's threshold, without specks. Where values of both signs are meant (standardised
or statistical images), air is the most frequent value instead. A voxel every four millimetres is enough for
percentiles and a crop, and costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bfp.errors import Reason, Unusable
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import Volume
from bfp.imaging.resample import resample

# From the crown to the base of the cerebellum, with a margin; neck and shoulders lie below.
BRAIN_HEIGHT_MM = 130.0
STEP_MM = 4.0

_FEWEST_STEPS = 32  # along an axis, where it has as many voxels: the head of a small animal
# Otsu's threshold lies half way to tissue. A third of it is above Rician noise at a signal-to-noise ratio of 20, and
# below fluid on T1w.
_SHARE_OF_OTSU = 1 / 3
# Values below zero by more than this share of the largest are meant, not ringing of an earlier interpolation.
_MEANT_NEGATIVE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Foreground:
    """The head on a coarse grid.

    mask: bool (i, j, k) of grid, at least one voxel set. values: float32 (n,), scanner units, the voxels in the mask.
    crown_mm: the height (RAS z) of the top of the head.
    centre_ras: millimetres (3,), about the brain's centre, whether or not the neck is in the picture.
    """

    mask: np.ndarray
    grid: Grid
    values: np.ndarray
    crown_mm: float
    centre_ras: np.ndarray

    @property
    def share(self) -> float:
        """Of the volume."""
        return float(self.mask.mean())


def find_foreground(volume: Volume) -> Foreground:
    """The head in a volume.

    Raises Unusable (EMPTY) where nothing stands out.
    """
    values, grid = coarse(volume, step_mm=STEP_MM)
    if of_both_signs(values):
        bright = values != _most_frequent(values)
    else:
        bright = values > max(0.0, _SHARE_OF_OTSU * otsu(values))
    return _foreground(_without_specks(bright), values, grid)


def masked_foreground(volume: Volume, *, mask: Volume, mask_ras_from_volume_ras: np.ndarray) -> Foreground:
    """The same where a mask (non-zero: brain) says what is foreground.

    mask_ras_from_volume_ras: (4, 4), where in the mask's space a point of the volume's lies.
    Raises Unusable (NO_BRAIN_MASK) where the two do not overlap.
    """
    values, grid = coarse(volume, step_mm=STEP_MM)
    brain = resample(
        mask.stored,
        source=mask.grid,
        target=grid,
        source_ras_from_target_ras=mask_ras_from_volume_ras,
        interpolation="nearest",
        outside=0,
    )
    if not brain.any():
        raise Unusable(Reason.NO_BRAIN_MASK, "the brain mask and the scan have no place in common")
    return _foreground(brain != 0, values, grid)


def coarse(volume: Volume, *, step_mm: float) -> tuple[np.ndarray, Grid]:
    """Every n-th voxel along each axis, at most `step_mm` apart, in scanner units, and where they lie."""
    i, j, k = (
        max(1, min(int(step_mm / spacing + 1e-3), extent // _FEWEST_STEPS))
        for spacing, extent in zip(volume.grid.spacing_mm, volume.grid.shape, strict=True)
    )
    return volume.scaled(volume.stored[::i, ::j, ::k]), volume.grid.every((i, j, k))


def of_both_signs(values: np.ndarray) -> bool:
    """Whether values below zero (of some, any shape) are meant, as in standardised images and CT."""
    least = -_MEANT_NEGATIVE * float(values.max())
    return float(values.min()) < least and float(np.percentile(values, 1)) < least


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold (1979): the split of the histogram with the largest variance between its two classes.

    Values from the 99.5th percentile up count as one, so that a few bright vessels do not stretch the histogram.
    """
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        return low
    bins = 256
    edges = np.linspace(low, high, bins + 1)
    places = ((np.minimum(values, high).ravel() - low) * (bins / (high - low))).astype(np.intp)
    counts = np.bincount(np.minimum(places, bins - 1), minlength=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * difference**2
    # Any split of an empty gap between two peaks is as good; the middle of the gap keeps clear of both.
    return float(edges[1:-1][between == between.max()].mean())


def _most_frequent(values: np.ndarray) -> float:
    distinct, counts = np.unique(values, return_counts=True)
    return float(distinct[counts.argmax()])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Only the connected parts that have at least a tenth of the largest one's voxels."""
    parts = ndimage.label(mask.T)[0].T  # in memory's order
    sizes = np.bincount(parts.ravel(order="K"))
    sizes[0] = 0
    return np.take(sizes >= max(1, sizes.max() / 10), parts)


def _foreground(mask: np.ndarray, values: np.ndarray, grid: Grid) -> Foreground:
    if not mask.any():
        raise Unusable(Reason.EMPTY, "no voxel stands out from the background")
    voxels = np.argwhere(mask)
    height_mm = voxels @ grid.ras_from_voxel[2, :3] + grid.ras_from_voxel[2, 3]
    crown_mm = float(np.percentile(height_mm, 99.9))  # a speck above the head does not count
    brain = height_mm >= crown_mm - BRAIN_HEIGHT_MM
    centre_ras = grid.ras(brain @ voxels / np.count_nonzero(brain))
    return Foreground(mask, grid, values[mask], crown_mm, centre_ras)
