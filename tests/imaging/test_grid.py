"""Grids: names, orders and places of axes, as a table and as properties of any affine."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from bfp.imaging.grid import Grid
from tests.imaging.makers import grid

ALL_AXES = [
    "".join(letters)
    for order in permutations(("RL", "AP", "SI"))
    for letters in product(*order)
]  # fmt: skip

grids = st.builds(
    grid,
    axes=st.sampled_from(ALL_AXES),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    tilt_deg=st.tuples(*[st.floats(-20, 20)] * 3),
    centre_ras=st.tuples(*[st.floats(-90, 90)] * 3),
)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_axis_codes_name_where_each_axis_points(axes: str) -> None:
    oblique = grid(axes=axes, tilt_deg=(11, -7, 17))
    assert oblique.axis_codes == axes == "".join(aff2axcodes(oblique.ras_from_voxel))


@given(grids)
@settings(max_examples=60, deadline=None)
def test_closest_ras_renames_axes_and_moves_no_voxel(native: Grid) -> None:
    turned = native.closest_ras()
    assert turned.axis_codes == "RAS"
    assert np.prod(turned.shape) == np.prod(native.shape)

    def centres(of: Grid) -> np.ndarray:
        points = of.ras(np.moveaxis(np.indices(of.shape), 0, -1).reshape(-1, 3)).round(6) + 0.0
        return points[np.lexsort(points.T)]

    np.testing.assert_allclose(centres(turned), centres(native), atol=1e-5)


@given(grids, st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_voxels_and_millimetres_are_each_others_way_back(
    native: Grid, points: list[tuple[float, float, float]]
) -> None:
    there = native.ras(np.array(points))
    np.testing.assert_allclose(native.voxels(there), points, atol=1e-6)


def test_every_and_window_are_the_grids_of_sliced_arrays() -> None:
    native = grid(shape=(11, 9, 8), tilt_deg=(5, 9, -12))
    points = native.ras(np.moveaxis(np.indices(native.shape), 0, -1))
    thinned, cut = native.every((2, 3, 4)), native.window((4, 1, 3), (5, 6, 2))
    assert thinned.shape == points[::2, ::3, ::4].shape[:3]
    np.testing.assert_allclose(thinned.ras(np.array([2, 1, 1])), points[4, 3, 4])
    np.testing.assert_allclose(cut.ras(np.array([4, 5, 1])), points[8, 6, 4])


def test_respaced_starts_on_the_same_centre_and_stays_inside() -> None:
    native = grid(shape=(20, 30, 12), spacing_mm=(0.9, 1.1, 5.0), tilt_deg=(3, 4, 5))
    fine = native.respaced((1.0, 1.0, 1.0))
    np.testing.assert_allclose(fine.spacing_mm, 1.0)
    np.testing.assert_allclose(fine.ras_from_voxel[:3, 3], native.ras_from_voxel[:3, 3])
    assert fine.shape == (18, 32, 56)  # 17.1, 31.9 and 55 mm from the first centre to the last


def test_the_same_spacing_keeps_every_voxel() -> None:
    native = grid(shape=(20, 30, 12), spacing_mm=(1.0, 1.2, np.float32(0.1)))
    assert native.respaced(native.spacing_mm).matches(native, tolerance_mm=1e-9)


def test_grids_match_by_shape_and_by_their_corners() -> None:
    native = grid()
    nudged = Grid(native.shape, native.window((0.01, 0, 0), native.shape).ras_from_voxel)
    assert native.matches(nudged, tolerance_mm=0.03)
    assert not native.matches(nudged, tolerance_mm=0.02)
    assert native.distance_mm(nudged) == pytest.approx(0.024)
    assert not native.matches(native.every((2, 1, 1)), tolerance_mm=1e3)
