"""One subject's brain: shares of tissue on the template's grid, from which every scan of the session is made.

Three things make it this subject's. Everybody's folds and proportions differ (random velocities), and so does the
fluid that skull stripping left around the brain. Severity widens the ventricles, by a velocity away from them, and
thins the cortex, by turning its outer grey matter into fluid; both differ a little between subjects of one severity. A
tumour, where there is one, grows in white matter: an irregular core, and an oedema that follows the white matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bfp.demo.anatomy import SPACING_MM, VELOCITY_STEP, Template
from bfp.demo.warp import displacement, pull_back, refine, smooth_noise

NODE_MM = SPACING_MM * VELOCITY_STEP
FOLDS_MM, FOLDS_WAVELENGTH_MM = 2.0, 28.0  # standard deviation of the velocity, about one fold of the cortex wide
LOBES_MM, LOBES_WAVELENGTH_MM = 2.5, 100.0
WIDENING_MM, WIDENING_PER_SEVERITY_MM, WIDENING_SPREAD_MM = 5.0, 4.2, 0.8
THINNING, THINNING_PER_SEVERITY, THINNING_SPREAD = 0.35, 0.14, 0.06  # share of the outermost grey matter
RIM_LIMITS_MM = (1.5, 3.0)  # fluid around the brain that skull stripping left
CORE_RADIUS_MM = (9.0, 15.0)
OEDEMA_RADII = 1.8  # of the core


class Tumour(NamedTuple):
    """How far the tumour has replaced (core) or soaked (oedema) each voxel: 0 to 1, float32 (x, y, z)."""

    core: np.ndarray
    oedema: np.ndarray


@dataclass(frozen=True, slots=True)
class Brain:
    """Shares 0 to 1 of each voxel, float32 (x, y, z) on the template's grid; they add up to 1 inside the brain.

    grain is a smooth random field, mean 0 and standard deviation 1, for what varies within a tissue.
    """

    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    grain: np.ndarray
    tumour: Tumour | None


def grow_brain(template: Template, rng: np.random.Generator, *, severity: float, tumour: bool) -> Brain:
    """The brain of one subject."""
    moved_mm = displacement(draw_velocity(template, rng, severity=severity), node_mm=NODE_MM)
    lost = template.grey * template.outer * _thinning(template, rng, severity=severity)
    rim = np.clip(0.5 + (rng.uniform(*RIM_LIMITS_MM) - template.outside_mm) / SPACING_MM, 0, 1)
    grey, white, fluid = pull_back(
        [template.grey - lost, template.white, (template.fluid + lost) * rim],
        moved_mm,
        step=VELOCITY_STEP,
        voxel_mm=SPACING_MM,
    )
    return Brain(
        grey=grey,
        white=white,
        fluid=fluid,
        grain=_fine_noise(template, rng, wavelength_mm=30),
        tumour=_grow_tumour(template, rng, white=white, envelope=grey + white + fluid) if tumour else None,
    )


def draw_velocity(template: Template, rng: np.random.Generator, *, severity: float) -> np.ndarray:
    """mm, float32 (3, x, y, z) on the nodes."""
    nodes = template.ventricle_push.shape[1:]
    widening_mm = WIDENING_MM + WIDENING_PER_SEVERITY_MM * severity + WIDENING_SPREAD_MM * rng.standard_normal()
    folds = [smooth_noise(rng, nodes, wavelength_mm=FOLDS_WAVELENGTH_MM, node_mm=NODE_MM) for _ in range(3)]
    lobes = [smooth_noise(rng, nodes, wavelength_mm=LOBES_WAVELENGTH_MM, node_mm=NODE_MM) for _ in range(3)]
    own_mm = np.float32(FOLDS_MM) * np.stack(folds) + np.float32(LOBES_MM) * np.stack(lobes)
    return own_mm + np.float32(widening_mm) * template.ventricle_push


def _thinning(template: Template, rng: np.random.Generator, *, severity: float) -> np.ndarray:
    """The share of the outermost grey matter that is lost, float32 (x, y, z): more here and less there."""
    mean = THINNING + THINNING_PER_SEVERITY * severity + THINNING_SPREAD * rng.standard_normal()
    return np.clip(np.float32(mean) * (1 + 0.3 * _fine_noise(template, rng, wavelength_mm=60)), 0, 0.95)


def _grow_tumour(template: Template, rng: np.random.Generator, *, white: np.ndarray, envelope: np.ndarray) -> Tumour:
    """A tumour about a random place in the upper half of the white matter."""
    half = white.shape[2] // 2
    place = np.argwhere(white[:, :, half:] > 0.8)
    centre_mm = SPACING_MM * (place[rng.integers(len(place))] + (0, 0, half))
    radius_mm = rng.uniform(*CORE_RADIUS_MM)

    x, y, z = (SPACING_MM * index for index in np.ogrid[: white.shape[0], : white.shape[1], : white.shape[2]])
    away_mm = np.sqrt((x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2).astype(np.float32)
    away_mm /= 1 + 0.25 * np.clip(_fine_noise(template, rng, wavelength_mm=25), -2, 2)  # dents and bulges
    core = np.clip(0.5 + (radius_mm - away_mm) / 3, 0, 1)
    oedema = np.clip(0.5 + (OEDEMA_RADII * radius_mm - away_mm) / 6, 0, 1) * np.clip(0.2 + 1.2 * white, 0, 1)
    return Tumour(core=core * envelope, oedema=oedema * envelope)


def _fine_noise(template: Template, rng: np.random.Generator, *, wavelength_mm: float) -> np.ndarray:
    """Smooth noise on the voxels, float32 (x, y, z)."""
    nodes = smooth_noise(rng, template.ventricle_push.shape[1:], wavelength_mm=wavelength_mm, node_mm=NODE_MM)
    return refine(nodes, step=VELOCITY_STEP, shape=template.grey.shape)
