"""The way back: what is found on stacks comes to lie where it was in the scan."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.imaging.grid import Grid
from bfp.imaging.native import to_native
from bfp.imaging.session import Prepared, prepare_session
from bfp.imaging.stacks import EDGES, SliceAxis
from tests.imaging.makers import grid, motion, recipe, scan

SPHERE_RAS, RADIUS_MM = np.array([-22.0, 14.0, 9.0]), 16.0

GRIDS = {
    "LPS": grid(axes="LPS", shape=(84, 98, 74), spacing_mm=(2.0, 2.1, 2.3)),
    "oblique": grid(axes="PSR", shape=(98, 80, 84), spacing_mm=(2.0, 2.2, 2.1), tilt_deg=(12, -9, 17)),
    "thick slices": grid(axes="LAS", shape=(190, 210, 30), spacing_mm=(0.9, 0.9, 5.5), tilt_deg=(15, 0, 3)),
}


def sphere(at: Grid, centre_ras: np.ndarray) -> np.ndarray:
    """How much of each voxel is in a sphere, by its distance from the surface: float32 of the grid's shape."""
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    return np.clip(RADIUS_MM - np.linalg.norm(points - centre_ras, axis=-1) + 0.5, 0, 1).astype(np.float32)


def maps_of(prepared: Prepared) -> np.ndarray:
    """What a perfect model would predict on the stacks: background and sphere, (n, 2, size, size)."""
    inside = sphere(prepared.working, SPHERE_RAS)[:, :, prepared.slices].T[:, ::-1]
    return np.stack([1 - inside, inside], axis=1)


@pytest.mark.parametrize("axis", EDGES)
@pytest.mark.parametrize("name", GRIDS)
def test_a_planted_sphere_returns_to_within_half_a_voxel(name: str, axis: SliceAxis) -> None:
    native = GRIDS[name]
    (prepared,) = prepare_session({"T1w": scan(native)}, recipe=recipe(slice_axis=axis)).prepared
    facts = prepared.facts[0]
    found = to_native(
        maps_of(prepared),
        slices=prepared.slices,
        working=prepared.working,
        native=facts.native,
        reference_ras_from_scan_ras=facts.reference_ras_from_scan_ras,
    )
    assert found.shape == (2, *native.shape)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    mask = found.argmax(axis=0) == 1
    centre = np.argwhere(mask).mean(axis=0)
    assert np.abs(centre - native.voxels(SPHERE_RAS)).max() < 0.5
    truth = sphere(native, SPHERE_RAS) > 0.5
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.93


@pytest.mark.parametrize("axis", EDGES)
def test_the_way_back_goes_through_the_registration(axis: SliceAxis) -> None:
    off = motion(turn_deg=(3, -2, 5), shift_mm=(2, 11, -4))
    other = GRIDS["oblique"]
    scans = {"T1w": scan(GRIDS["LPS"]), "FLAIR": scan(other, contrast="FLAIR", moved=off)}
    (prepared,) = prepare_session(scans, recipe=recipe(register="rigid", slice_axis=axis)).prepared
    found = to_native(
        maps_of(prepared),
        slices=prepared.slices,
        working=prepared.working,
        native=prepared.facts[1].native,
        reference_ras_from_scan_ras=prepared.facts[1].reference_ras_from_scan_ras,
    )
    centre_ras = other.ras(np.argwhere(found[1] > 0.5).mean(axis=0))
    np.testing.assert_allclose(centre_ras, off[:3, :3] @ SPHERE_RAS + off[:3, 3], atol=1.0)


def test_outside_the_stacks_there_is_background() -> None:
    native = GRIDS["LPS"]
    (prepared,) = prepare_session({"T1w": scan(native)}, recipe=recipe(size_px=64)).prepared
    all_sphere = np.zeros((prepared.slices.size, 2, 64, 64), np.float32)
    all_sphere[:, 1] = 1
    found = to_native(
        all_sphere,
        slices=prepared.slices,
        working=prepared.working,
        native=native,
        reference_ras_from_scan_ras=np.eye(4),
    )
    assert found[0, 0, 0, 0] == 1
    assert found[1, 0].max() == 0
    assert found[1, 42, 49, 37] == 1


def test_outside_a_range_of_slices_there_is_background() -> None:
    native = GRIDS["LPS"]
    (prepared,) = prepare_session({"T1w": scan(native)}, recipe=recipe(slice_range_mm=(-20.0, 20.0))).prepared
    all_sphere = np.zeros((prepared.slices.size, 2, 112, 112), np.float32)
    all_sphere[:, 1] = 1
    found = to_native(
        all_sphere,
        slices=prepared.slices,
        working=prepared.working,
        native=native,
        reference_ras_from_scan_ras=np.eye(4),
    )
    heights_mm = native.ras(np.argwhere(found[1] > 0.5))[:, 2]
    assert -23 < heights_mm.min() < -17
    assert 17 < heights_mm.max() < 23
