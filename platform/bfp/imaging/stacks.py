"""How a session becomes stacks: the recipe, the working grid that the slices lie on, and how pixels lie in a stack.

The working grid has the reference scan's own axes, renamed and turned to lie closest to RAS and not de-obliqued, at
the recipe's spacings. It starts on a voxel centre of the scan, so that a scan that has the spacing already is cropped
and not resampled. In plane it is a square centred on the head, and may reach beyond the scan; along z it is the whole
scan, of which the slices with enough foreground are kept.

A slice is shown as on a neurological display: anterior up, the patient's left on the left. Row 0 is the most anterior,
column 0 the leftmost: volumes (x, y, z) of the working grid become pixels (slice, row, column) with row = size - 1 - y,
column = x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.foreground import STEP_MM, Foreground
from bfp.imaging.grid import Grid
from bfp.imaging.resample import resample

CHANNELS = 3
# What lies at the edges of a slice, for lettering pictures.
EDGES = {"top": "A", "bottom": "P", "left": "L", "right": "R"}

Form = Literal["modalities", "neighbours"]
Registration = Literal["none", "header", "rigid"]
BrainMask = Literal["none", "given", "deepbet"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what pixels come out of a session's volumes.

    form "modalities": the channels of a stack are one slice of the scans in `channels`, of which the first that is
    there is the session's reference. form "neighbours": each scan in `modalities` gives stacks of its own, whose
    channels are the planes `gap_mm` below the slice, at it and above it.
    slice_spacing_mm: from one slice to the next. min_foreground: the share of a slice's square that must be head.
    window_percentiles: of the foreground, what becomes black and white.
    """

    form: Form
    channels: tuple[str, str, str]
    modalities: tuple[str, ...]
    gap_mm: float
    spacing_mm: float
    slice_spacing_mm: float
    size_px: int
    register: Registration
    brain: BrainMask
    window_percentiles: tuple[float, float]
    min_foreground: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Where the stacks of a session lie.

    working: the grid, (size, size, all slices). slices: int32 (n,), indices of the kept slices along z, rising.
    foreground: float32 (n,), the share of each that is head.
    """

    working: Grid
    slices: np.ndarray
    foreground: np.ndarray

    @property
    def position_mm(self) -> np.ndarray:
        """float32 (n,): the height (RAS z) of each slice's centre."""
        x, y, _ = self.working.shape
        centres = [((x - 1) / 2, (y - 1) / 2, float(z)) for z in self.slices]
        return self.working.ras(np.array(centres))[:, 2].astype(np.float32)

    @property
    def height(self) -> np.ndarray:
        """float32 (n,): 0 at the lowest kept slice, 1 at the highest; 0.5 where there is but one."""
        lowest, highest = int(self.slices[0]), int(self.slices[-1])
        if lowest == highest:
            return np.full(1, 0.5, dtype=np.float32)
        return ((self.slices - lowest) / (highest - lowest)).astype(np.float32)


def frame_stacks(scan: Grid, foreground: Foreground, *, recipe: Recipe) -> Frame:
    """The frame of a reference scan, or of a scan by itself.

    Raises Unusable (NO_SLICES) when no slice has enough foreground.
    """
    lattice = scan.closest_ras().respaced((recipe.spacing_mm, recipe.spacing_mm, recipe.slice_spacing_mm))
    size = recipe.size_px
    x, y, _ = np.rint(lattice.voxels(foreground.centre_ras) - (size - 1) / 2)
    working = lattice.window((x, y, 0), (size, size, lattice.shape[2]))
    shares = _foreground_shares(working, foreground)
    kept = np.flatnonzero((shares >= recipe.min_foreground) & (shares > 0))
    if kept.size == 0:
        raise Unusable(
            Reason.NO_SLICES,
            f"at most {shares.max():.1%} of a {size} × {size} slice at {recipe.spacing_mm:g} mm is head; "
            f"{recipe.min_foreground:.1%} is asked for",
        )
    return Frame(working, kept.astype(np.int32), shares[kept].astype(np.float32))


def to_pixels(volume: np.ndarray) -> np.ndarray:
    """(x, y) or (x, y, z) of a working grid to pixels (row, column) or (z, row, column): a view."""
    return volume.T[..., ::-1, :]


def from_pixels(pixels: np.ndarray) -> np.ndarray:
    """Pixels (z, row, column) to (x, y, z) of a working grid: a view."""
    return pixels[:, ::-1, :].T


def _foreground_shares(working: Grid, foreground: Foreground) -> np.ndarray:
    """The share of each slice's square that is foreground, (slices,), from a pixel every few millimetres."""
    step = max(1, int(STEP_MM / working.spacing_mm[0]))
    mask = resample(
        foreground.mask,
        source=foreground.grid,
        target=working.every((step, step, 1)),
        source_ras_from_target_ras=np.eye(4),
        interpolation="nearest",
        outside=0,
    )
    return mask.mean(axis=(0, 1))
