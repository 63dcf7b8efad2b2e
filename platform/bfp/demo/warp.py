"""Smooth invertible deformations: the exponential of a velocity field.

A velocity field v says where a point drifts, in mm; following it for one unit of time gives a displacement whose map
x -> x + u(x) folds nowhere (Arsigny et al. 2006, MICCAI: scaling and squaring). Fields live on coarse nodes, float32
(3, x, y, z), since they are smooth by construction; volumes are looked up through them: output(x) = input(x + u(x)).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SQUARINGS = 5


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], *, wavelength_mm: float, node_mm: float
) -> np.ndarray:
    """A random field, float32 (x, y, z), mean 0 and standard deviation 1 over the nodes, of that typical wavelength."""
    # A Gaussian kernel of width s leaves a root-mean-square wave number of sqrt(3 / 2) / s, in three dimensions.
    width_mm = wavelength_mm * np.sqrt(1.5) / (2 * np.pi)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), width_mm / node_mm, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def displacement(velocity_mm: np.ndarray, *, node_mm: float) -> np.ndarray:
    """Where each node ends up after following the velocity for one unit of time: mm, float32 (3, x, y, z)."""
    nodes = np.indices(velocity_mm.shape[1:], np.float32)
    drift = velocity_mm / np.float32(node_mm * 2**SQUARINGS)  # in nodes, short enough to be its own exponential
    for _ in range(SQUARINGS):
        drift = drift + np.stack([_look_up(component, nodes + drift) for component in drift])
    return drift * np.float32(node_mm)


def refine(field: np.ndarray, *, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """A node field (x, y, z) on the voxels, `step` to a node, linearly; beyond the last node it stays what it was."""
    for axis, extent in enumerate(shape):
        at = np.minimum(np.arange(extent) / step, field.shape[axis] - 1)
        below = at.astype(int)
        above = np.minimum(below + 1, field.shape[axis] - 1)
        share = np.float32(at - below).reshape([-1 if other == axis else 1 for other in range(3)])
        field = field.take(below, axis) * (1 - share) + field.take(above, axis) * share
    return field


def pull_back(
    volumes: list[np.ndarray], displacement_mm: np.ndarray, *, step: int, voxel_mm: float
) -> list[np.ndarray]:
    """The volumes (x, y, z) as seen through the displacement of their nodes, `step` voxels apart."""
    shape = volumes[0].shape
    coordinates = np.indices(shape, np.float32)
    for axis in range(3):
        coordinates[axis] += refine(displacement_mm[axis], step=step, shape=shape) / np.float32(voxel_mm)
    return [_look_up(volume, coordinates) for volume in volumes]


def _look_up(volume: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(volume, coordinates, order=1, mode="nearest", output=np.float32)
