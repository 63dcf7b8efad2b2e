"""How a session becomes stacks: the recipe, the working grid that the slices lie on, and how pixels lie in a stack.

The working grid has the reference scan's own axes, turned to lie closest to RAS and not de-obliqued, at the recipe's
spacings. They are named by how slices lie: x runs along a slice's columns, y up its rows, z from slice to slice.

    axial      x to the right, y to anterior, z to superior
    coronal    x to the right, y to superior, z to anterior
    sagittal   x to anterior, y to superior, z to the right

It starts on a voxel centre of the scan, so that a scan that has the spacing already is cropped and not resampled. In
plane it is a square centred on the head, and may reach beyond the scan; along z it is the whole scan, of which the
slices with enough foreground are kept.

Row 0 is the uppermost, column 0 the leftmost: volumes (x, y, z) of the working grid become pixels (slice, row, column)
with row = size - 1 - y, column = x. So the patient's left is on the left, as on a neurological display, and of a
sagittal slice posterior. EDGES has the letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.foreground import STEP_MM, Foreground
from bfp.imaging.grid import Grid
from bfp.imaging.mask_program import MaskProgram
from bfp.imaging.nifti import Volumes
from bfp.imaging.resample import Interpolation, resample

CHANNELS = 3

Form = Literal["modalities", "neighbours"]
Registration = Literal["none", "header", "rigid"]
BrainMask = Literal["none", "given", "image", "deepbet", "program"]
BiasCorrection = Literal["none", "n4"]
Intensity = Literal["percentiles", "zscore"]
SliceAxis = Literal["axial", "coronal", "sagittal"]

EDGES: dict[SliceAxis, dict[str, str]] = {
    "axial": {"top": "A", "bottom": "P", "left": "L", "right": "R"},
    "coronal": {"top": "S", "bottom": "I", "left": "L", "right": "R"},
    "sagittal": {"top": "S", "bottom": "I", "left": "P", "right": "A"},
}
"""What lies at the edges of a slice, for lettering pictures."""

# Which of (R, A, S) are x, y and z of the working grid.
_RAS_OF_XYZ: dict[SliceAxis, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what pixels come out of a session's volumes.

    form "modalities": the channels of a stack are one slice of the scans in `channels`, of which the first that is
    there is the session's reference. form "neighbours": each scan in `modalities` gives stacks of its own, whose
    channels are the planes `gap_mm` below the slice, at it and above it.
    bias_field: whether grey values are taken without it (`bias_field`), before the window.
    slice_axis: see the head of this module. slice_spacing_mm: from one slice to the next. slice_range_mm: the ends
    between which slices are kept, from the centre of the foreground along z; None for all. min_foreground: the share of
    a slice's square that must be head.
    intensity "percentiles": window_percentiles of the foreground become black and white. "zscore": zscore_limit
    standard deviations below and above its mean do, which are taken between the percentiles (`window`).
    volumes: what becomes of 4-D files; "each" with form "neighbours" alone. interpolation: of grey values.
    brain_program: of `brain` "program".
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
    bias_field: BiasCorrection
    window_percentiles: tuple[float, float]
    min_foreground: float
    intensity: Intensity
    zscore_limit: float
    slice_axis: SliceAxis
    slice_range_mm: tuple[float, float] | None
    volumes: Volumes
    interpolation: Interpolation
    brain_program: MaskProgram | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The modalities that stacks are made of."""
        return self.channels if self.form == "modalities" else self.modalities

    def rank(self, modality: str) -> int:
        """The place of a modality among those that are wanted, for sorting; the others come last."""
        return self.wanted.index(modality) if modality in self.wanted else len(self.wanted)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Where the stacks of a session lie.

    working: the grid, (size, size, all slices). axis: across which it is cut. slices: int32 (n,), indices of the kept
    slices along z, rising. foreground: float32 (n,), the share of each that is head.
    """

    working: Grid
    axis: SliceAxis
    slices: np.ndarray
    foreground: np.ndarray

    @property
    def position_mm(self) -> np.ndarray:
        """float32 (n,): where each slice's centre lies along RAS z; of a coronal one y, of a sagittal one x."""
        x, y, _ = self.working.shape
        centres = [((x - 1) / 2, (y - 1) / 2, float(z)) for z in self.slices]
        return self.working.ras(np.array(centres))[:, _RAS_OF_XYZ[self.axis][2]].astype(np.float32)

    @property
    def height(self) -> np.ndarray:
        """float32 (n,): along z, 0 at the first kept slice, 1 at the last; 0.5 where there is but one."""
        lowest, highest = int(self.slices[0]), int(self.slices[-1])
        if lowest == highest:
            return np.full(1, 0.5, dtype=np.float32)
        return ((self.slices - lowest) / (highest - lowest)).astype(np.float32)


def frame_stacks(scan: Grid, foreground: Foreground, *, recipe: Recipe) -> Frame:
    """The frame of a reference scan, or of a scan by itself.

    Raises Unusable (NO_SLICES) when no slice has enough foreground.
    """
    turned = scan.closest_ras().reordered(_RAS_OF_XYZ[recipe.slice_axis])
    lattice = turned.respaced((recipe.spacing_mm, recipe.spacing_mm, recipe.slice_spacing_mm))
    size = recipe.size_px
    centre = lattice.voxels(foreground.centre_ras)
    x, y, _ = np.rint(centre - (size - 1) / 2)
    working = lattice.window((x, y, 0), (size, size, lattice.shape[2]))
    shares = _foreground_shares(working, foreground)
    if recipe.slice_range_mm is not None:
        lowest_mm, highest_mm = recipe.slice_range_mm
        from_centre_mm = (np.arange(shares.size) - centre[2]) * recipe.slice_spacing_mm
        shares[(from_centre_mm < lowest_mm) | (from_centre_mm > highest_mm)] = 0
    kept = np.flatnonzero((shares >= recipe.min_foreground) & (shares > 0))
    if kept.size == 0:
        between = ""
        if recipe.slice_range_mm is not None:
            between = f" from {recipe.slice_range_mm[0]:g} to {recipe.slice_range_mm[1]:g} mm"
        raise Unusable(
            Reason.NO_SLICES,
            f"at most {shares.max():.1%} of a {size} × {size} slice at {recipe.spacing_mm:g} mm{between} is head; "
            f"{recipe.min_foreground:.1%} is asked for",
        )
    return Frame(working, recipe.slice_axis, kept.astype(np.int32), shares[kept].astype(np.float32))


def to_pixels(volume: np.ndarray) -> np.ndarray:
    """(x, y) or (x, y, z) of a working grid to pixels (row, column) or (z, row, column): a view."""
    return volume.T[..., ::-1, :]


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """Pixels (row, column) uint8 with the columns in reverse; eight at once, where that goes, in half the time."""
    if pixels.shape[1] % 8:
        return pixels[:, ::-1]
    return pixels.view(np.uint64)[:, ::-1].byteswap().view(np.uint8)


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
