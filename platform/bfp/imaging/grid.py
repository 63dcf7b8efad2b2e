"""Voxel grids: where the voxels of a volume lie in the scanner's space, and the way back.

A grid is a shape and an affine that takes voxel indices (i, j, k) to millimetres, RAS+ (x grows to the patient's
right, y to anterior, z to superior; NIfTI-1). Index 0 is the centre of the first voxel, so a voxel reaches half an
index to each side. Grids in, grids out: `nifti` reads them from files, `resample` moves voxels between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The voxel centres of one volume.

    shape: voxels along (i, j, k). ras_from_voxel: float64 (4, 4), invertible, read-only.
    """

    shape: tuple[int, int, int]
    ras_from_voxel: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.ras_from_voxel, dtype=np.float64)
        assert len(self.shape) == 3
        assert affine.shape == (4, 4)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        object.__setattr__(self, "ras_from_voxel", affine)

    @property
    def voxel_from_ras(self) -> np.ndarray:
        return np.linalg.inv(self.ras_from_voxel)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis."""
        i, j, k = np.linalg.norm(self.ras_from_voxel[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def axis_codes(self) -> str:
        """Where each axis points, by the nearest of R, L, A, P, S, I: "LPS", "PSR", …"""
        codes = [""] * 3
        for world, voxel in enumerate(self._axes_along_ras()):
            codes[voxel] = ("RL", "AP", "SI")[world][int(self.ras_from_voxel[world, voxel] < 0)]
        return "".join(codes)

    def ras(self, voxels: np.ndarray) -> np.ndarray:
        """Voxel indices (…, 3) to millimetres (…, 3)."""
        return apply(self.ras_from_voxel, voxels)

    def voxels(self, ras: np.ndarray) -> np.ndarray:
        """Millimetres (…, 3) to fractional voxel indices (…, 3)."""
        return apply(self.voxel_from_ras, ras)

    def corners_ras(self) -> np.ndarray:
        """The centres of the eight corner voxels in millimetres, (8, 3)."""
        ends = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
        return self.ras(ends * (np.array(self.shape) - 1))

    def matches(self, other: Grid, *, tolerance_mm: float) -> bool:
        """Whether both grids have the same shape and the same corners within the tolerance."""
        return self.shape == other.shape and self.distance_mm(other) <= tolerance_mm

    def distance_mm(self, other: Grid) -> float:
        """How far apart the corners of two grids of one shape lie at most."""
        return float(np.linalg.norm(self.corners_ras() - other.corners_ras(), axis=1).max())

    def closest_ras(self) -> Grid:
        """The same voxel centres with axes renamed and turned round so that they point closest to R, A, S.

        Nothing is rotated: an oblique grid stays oblique.
        """
        voxel_from_turned = np.zeros((4, 4))
        voxel_from_turned[3, 3] = 1
        axes = self._axes_along_ras()
        for world, voxel in enumerate(axes):
            backwards = self.ras_from_voxel[world, voxel] < 0
            voxel_from_turned[voxel, world] = -1 if backwards else 1
            voxel_from_turned[voxel, 3] = self.shape[voxel] - 1 if backwards else 0
        i, j, k = (self.shape[axis] for axis in axes)
        return Grid((i, j, k), self.ras_from_voxel @ voxel_from_turned)

    def respaced(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """The grid of another spacing that starts at the same first centre and ends at or before the same last."""
        steps = np.array(spacing_mm) / self.spacing_mm
        # A thousandth of a voxel of slack: spacings in headers are float32.
        i, j, k = np.floor((np.array(self.shape) - 1) / steps + 1e-3).astype(int) + 1
        return Grid((i, j, k), self.ras_from_voxel @ np.diag([*steps, 1]))

    def every(self, steps: tuple[int, int, int]) -> Grid:
        """The grid of `array[::a, ::b, ::c]`."""
        i, j, k = (-(-extent // step) for extent, step in zip(self.shape, steps, strict=True))
        return Grid((i, j, k), self.ras_from_voxel @ np.diag([*steps, 1]))

    def reordered(self, axes: tuple[int, int, int]) -> Grid:
        """The grid of `array.transpose(axes)`."""
        i, j, k = (self.shape[axis] for axis in axes)
        return Grid((i, j, k), self.ras_from_voxel @ np.eye(4)[:, [*axes, 3]])

    def mirrored(self) -> Grid:
        """The grid of `array[::-1]`."""
        backwards = np.diag([-1.0, 1.0, 1.0, 1.0])
        backwards[0, 3] = self.shape[0] - 1
        return Grid(self.shape, self.ras_from_voxel @ backwards)

    def window(self, start: tuple[float, float, float], shape: tuple[int, int, int]) -> Grid:
        """The grid of the given shape whose voxel (0, 0, 0) lies at `start` of this one; it may reach beyond it."""
        shift = np.eye(4)
        shift[:3, 3] = start
        return Grid(shape, self.ras_from_voxel @ shift)

    def _axes_along_ras(self) -> tuple[int, int, int]:
        """The voxel axis that lies closest to x, to y and to z: the assignment with the largest sum of cosines."""
        cosines = np.abs(self.ras_from_voxel[:3, :3]) / self.spacing_mm
        i, j, k = max(permutations(range(3)), key=lambda axes: sum(cosines[world, axes[world]] for world in range(3)))
        return i, j, k


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (…, 3) through an affine (4, 4)."""
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
