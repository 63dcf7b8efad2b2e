"""The sites of the demo cohort: what the same brain becomes on four scanners.

Each site has its own grid, orientation, storage and noise for each modality, and within a site the modalities differ
too, so that a session has to be brought onto one grid. Axes are the directions in which the voxel indices (i, j, k)
grow, as in NIfTI: R, L, A, P, S, I. Sites are fixed; subjects are spread over them evenly (see `plan`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

MODALITIES = ("T1w", "T2w", "FLAIR")
FIELD_OF_VIEW_MM = {"R": 172.0, "A": 208.0, "S": 180.0}  # holds the brains of this cohort in every pose


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one modality is acquired and stored.

    tilt_deg: rotation of the grid about R, A, S. dtype: NumPy's letters, with the byte order. A stored number n means
    n · slope + intercept; background is exactly 0. white_level: white matter in these scaled units.
    """

    axes: str
    spacing_mm: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    dtype: str
    slope: float
    intercept: float
    white_level: float


@dataclass(frozen=True, slots=True)
class Site:
    """A scanner. noise and bias are shares of the white matter's signal (standard deviation; typical deviation)."""

    field_tesla: float
    noise: float
    bias: float
    protocols: dict[str, Protocol]


LEVEL = (0.0, 0.0, 0.0)
SITES = {
    "alder": Site(
        field_tesla=3.0,
        noise=0.025,
        bias=0.20,
        protocols={
            "T1w": Protocol("RAS", (1.5, 1.4, 1.6), LEVEL, "<i2", 1.0, 0.0, 700.0),
            "T2w": Protocol("LPS", (1.1, 1.1, 4.0), LEVEL, "<i2", 1.0, 0.0, 300.0),
            "FLAIR": Protocol("LPS", (1.3, 1.3, 5.0), (4.0, 0.0, 0.0), "<i2", 1.0, 0.0, 250.0),
        },
    ),
    "birch": Site(
        field_tesla=1.5,
        noise=0.045,
        bias=0.12,
        protocols={
            "T1w": Protocol("PSR", (1.4, 1.4, 1.7), LEVEL, ">u2", 0.5, -128.0, 450.0),
            "T2w": Protocol("LAS", (1.2, 1.0, 3.0), LEVEL, ">u2", 0.25, 0.0, 500.0),
            "FLAIR": Protocol("PSR", (1.5, 1.5, 1.9), LEVEL, ">u2", 0.5, -128.0, 400.0),
        },
    ),
    "cedar": Site(
        field_tesla=3.0,
        noise=0.03,
        bias=0.25,
        protocols={
            "T1w": Protocol("LPS", (1.3, 1.5, 1.8), (7.0, -3.0, 4.0), "<f4", 1.0, 0.0, 1.0),
            "T2w": Protocol("RAS", (1.5, 0.9, 3.5), (7.0, -3.0, 4.0), "<f4", 1.0, 0.0, 0.6),
            "FLAIR": Protocol("RSA", (1.4, 1.4, 2.2), LEVEL, "<f4", 1.0, 0.0, 0.5),
        },
    ),
    "dogwood": Site(
        field_tesla=1.5,
        noise=0.035,
        bias=0.16,
        protocols={
            "T1w": Protocol("ASL", (1.5, 1.5, 1.5), (0.0, 2.0, -2.0), "u1", 4.0, 0.0, 600.0),
            "T2w": Protocol("RAS", (1.6, 1.2, 2.5), LEVEL, "u1", 2.0, 0.0, 190.0),
            "FLAIR": Protocol("LPS", (1.0, 1.0, 3.0), (-5.0, 0.0, 0.0), "u1", 2.0, 0.0, 210.0),
        },
    ),
}


def scan_grid(protocol: Protocol, *, centre_mm: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (i, j, k) and affine float64 (4, 4), scanner mm (RAS+) from voxel, of a field of view about its centre."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    opposite = {"L": "R", "P": "A", "I": "S"}
    extent_mm = [FIELD_OF_VIEW_MM[opposite.get(letter, letter)] for letter in protocol.axes]
    i, j, k = (round(extent / spacing) for extent, spacing in zip(extent_mm, protocol.spacing_mm, strict=True))
    tilt = Rotation.from_euler("xyz", protocol.tilt_deg, degrees=True).as_matrix()
    scanner_from_voxel = np.eye(4)
    axes = np.array([directions[letter] for letter in protocol.axes], float).T
    scanner_from_voxel[:3, :3] = tilt @ axes * protocol.spacing_mm
    scanner_from_voxel[:3, 3] = centre_mm - scanner_from_voxel[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
    return (i, j, k), scanner_from_voxel
