"""Heads to measure on: a phantom that is a function of the point in space, so that any grid can sample it exactly."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from bfp.imaging.grid import Grid, apply
from bfp.imaging.nifti import Volume, decode, encode
from bfp.imaging.stacks import Recipe

# Where the marks of the phantom lie, in millimetres: one in each half of each axis that must not be swapped.
MARK_LEFT = np.array([-40.0, 5.0, 10.0])
MARK_ANTERIOR = np.array([10.0, 60.0, 5.0])
MARK_TOP = np.array([5.0, -10.0, 55.0])

_GREY = {"T1w": (180.0, 60.0, 320.0), "FLAIR": (220.0, 330.0, 20.0), "T2w": (150.0, 420.0, 300.0)}


def grid(
    *,
    axes: str = "LPS",
    shape: tuple[int, int, int] = (70, 86, 62),
    spacing_mm: tuple[float, float, float] = (2.4, 2.2, 2.6),
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    centre_ras: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid around a centre whose axes point to the letters, then tilted."""
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(axes):
        world = next(index for index, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        directions[world, axis] = 1.0 if letter in "RAS" else -1.0
    rotation = Rotation.from_euler("xyz", tilt_deg, degrees=True).as_matrix()
    ras_from_voxel = np.eye(4)
    ras_from_voxel[:3, :3] = rotation @ directions @ np.diag(spacing_mm)
    middle = (np.array(shape) - 1) / 2
    ras_from_voxel[:3, 3] = np.array(centre_ras) - ras_from_voxel[:3, :3] @ middle
    return Grid(shape, ras_from_voxel)


def head(at: Grid, *, contrast: str = "T1w", moved: np.ndarray | None = None, noise: float = 0.0) -> np.ndarray:
    """float32 of the grid's shape: skull, brain, ventricles off the middle, three marks, folds; 0 around it.

    moved: (4, 4), a rigid motion of the head in the scanner.
    """
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    x, y, z = np.moveaxis(points if moved is None else apply(np.linalg.inv(moved), points), -1, 0)
    tissue, fluid, mark = _GREY[contrast]
    inside = (x / 68) ** 2 + (y / 85) ** 2 + (z / 68) ** 2
    brain = (x / 60) ** 2 + (y / 77) ** 2 + (z / 60) ** 2 < 1
    values = np.where(inside < 1, 100.0, 0.0)
    values = np.where(brain, tissue + 40 * np.sin(x / 7 + y / 11) * np.cos(z / 9 - x / 13), values)
    ventricle = ((x - 6) / 14) ** 2 + ((y + 8) / 34) ** 2 + ((z - 6) / 16) ** 2 < 1
    values = np.where(ventricle, fluid, values)
    for place, radius in ((MARK_LEFT, 9.0), (MARK_ANTERIOR, 8.0), (MARK_TOP, 7.0)):
        values = np.where((x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2 < radius**2, mark, values)
    if noise:
        random = np.random.default_rng(0)
        values = np.hypot(values + random.normal(0, noise, at.shape), random.normal(0, noise, at.shape))
    return values.astype(np.float32)


def volume(at: Grid, values: np.ndarray) -> Volume:
    """Through the bytes of a file, as every volume comes."""
    return decode(encode(values, grid=at, compress=False), may_be_blank=True)


def scan(at: Grid, *, contrast: str = "T1w", moved: np.ndarray | None = None, noise: float = 0.0) -> Volume:
    return volume(at, np.rint(head(at, contrast=contrast, moved=moved, noise=noise)).astype(np.int16))


def motion(*, turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> np.ndarray:
    """A rigid motion (4, 4) about the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def recipe(**changes: object) -> Recipe:
    plain: dict[str, object] = {
        "form": "modalities",
        "channels": ("T1w", "T2w", "FLAIR"),
        "modalities": ("T1w", "FLAIR"),
        "gap_mm": 4.0,
        "spacing_mm": 2.0,
        "slice_spacing_mm": 2.0,
        "size_px": 112,
        "register": "header",
        "brain": "none",
        "bias_field": "none",
        "window_percentiles": (0.5, 99.5),
        "min_foreground": 0.05,
        "intensity": "percentiles",
        "zscore_limit": 3.0,
        "slice_axis": "axial",
        "slice_range_mm": None,
        "volumes": "refuse",
        "interpolation": "linear",
    }
    return Recipe(**{**plain, **changes})  # type: ignore[arg-type]
