"""Resampling: the same numbers as scipy's general affine, by the quick way and by the other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bfp.imaging.grid import Grid
from bfp.imaging.resample import Interpolation, planes, resample
from tests.imaging.makers import grid, motion

SOURCE = grid(axes="PSR", shape=(17, 13, 11), spacing_mm=(2.0, 2.5, 3.0), centre_ras=(3, -2, 1))
ARRAY = np.asfortranarray(np.random.default_rng(0).normal(100, 30, SOURCE.shape).astype(np.float32))

TARGETS = {
    "finer, other axes": grid(axes="LPS", shape=(31, 37, 29), spacing_mm=(1.1, 0.9, 1.3)),
    "coarser": grid(axes="RAS", shape=(9, 8, 7), spacing_mm=(3.3, 4.0, 5.0)),
    "its own, turned": SOURCE.closest_ras(),
    "a piece of its own": SOURCE.window((3, 2, 4), (20, 5, 3)),
    "every second": SOURCE.every((2, 2, 2)),
    "elsewhere": grid(axes="RAS", shape=(5, 6, 7), centre_ras=(300, 0, 0)),
    "tilted": grid(axes="LAS", shape=(25, 27, 23), spacing_mm=(1.5, 1.4, 1.6), tilt_deg=(9, -14, 21)),
}


def by_scipy(array: np.ndarray, target: Grid, source_ras_from_target_ras: np.ndarray, order: int) -> np.ndarray:
    points = target.ras(np.moveaxis(np.indices(target.shape), 0, -1))
    moved = points @ source_ras_from_target_ras[:3, :3].T + source_ras_from_target_ras[:3, 3]
    voxels = np.moveaxis(SOURCE.voxels(moved), -1, 0).round(7)
    return ndimage.map_coordinates(array, voxels, order=order, mode="constant", cval=-7, output=np.float64)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("moved", [False, True], ids=["by header", "registered"])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("cubic", 3)])
def test_grey_values_are_those_of_scipy(name: str, moved: bool, interpolation: Interpolation, order: int) -> None:
    between = motion(turn_deg=(4, -6, 3), shift_mm=(1.5, -2, 0.5)) if moved else np.eye(4)
    found = resample(
        ARRAY,
        source=SOURCE,
        target=TARGETS[name],
        source_ras_from_target_ras=between,
        interpolation=interpolation,
        outside=-7,
    )
    assert found.dtype == np.float32
    assert found.flags.f_contiguous
    np.testing.assert_allclose(found, by_scipy(ARRAY, TARGETS[name], between, order), atol=3e-3)


@pytest.mark.parametrize("name", ["finer, other axes", "its own, turned", "tilted"])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("cubic", 3)])
def test_single_planes_lie_at_any_height_and_beyond_the_scan(
    name: str, interpolation: Interpolation, order: int
) -> None:
    target = TARGETS[name]
    at = np.array([-9.0, 2.0, 3.0, 4.25, 6.25, 8.25, 8.5, 200.0])
    found = planes(
        ARRAY,
        source=SOURCE,
        target=target,
        source_ras_from_target_ras=np.eye(4),
        at=at,
        interpolation=interpolation,
        outside=-7,
    )
    count = 0
    for z, plane in zip(at, found, strict=True):
        there = target.window((0, 0, z), (*target.shape[:2], 1))
        np.testing.assert_allclose(plane, by_scipy(ARRAY, there, np.eye(4), order)[:, :, 0], atol=3e-3)
        count += 1
    assert count == at.size


@pytest.mark.parametrize("name", TARGETS)
def test_labels_keep_their_type_and_invent_no_label(name: str) -> None:
    labels = np.asfortranarray((ARRAY > 100).astype(np.uint16) * 700 + 11)
    found = resample(
        labels,
        source=SOURCE,
        target=TARGETS[name],
        source_ras_from_target_ras=np.eye(4),
        interpolation="nearest",
        outside=0,
    )
    assert found.dtype == np.uint16
    assert set(np.unique(found)) <= {0, 11, 711}
    expected = by_scipy(labels, TARGETS[name], np.eye(4), order=0)
    assert np.mean(found != np.where(expected == -7, 0, expected)) < 0.02  # half-way points round either way


def test_a_cubic_goes_through_the_voxels_and_lies_closer_to_a_smooth_curve_than_a_line() -> None:
    source = grid(axes="RAS", shape=(24, 3, 3), spacing_mm=(1, 1, 1))
    curve = np.asfortranarray(np.broadcast_to(np.sin(np.arange(24) / 2)[:, None, None], source.shape), np.float32)
    target = source.window((4.5, 0, 0), (16, 3, 3))
    off = {}
    interpolations: tuple[Interpolation, ...] = ("linear", "cubic")
    for interpolation in interpolations:
        found = resample(
            curve,
            source=source,
            target=target,
            source_ras_from_target_ras=np.eye(4),
            interpolation=interpolation,
            outside=0,
        )
        off[interpolation] = np.abs(found[:, 1, 1] - np.sin((np.arange(16) + 4.5) / 2)).max()
    assert off["cubic"] < 0.1 * off["linear"]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4"])
def test_integers_are_mixed_without_wrapping(dtype: str) -> None:
    ramp = np.zeros((4, 3, 3), dtype, order="F")
    ramp[::2] = 100
    source = grid(axes="RAS", shape=(4, 3, 3), spacing_mm=(1, 1, 1))
    target = source.window((0.25, 0, 0), (3, 3, 3))
    found = resample(
        ramp,
        source=source,
        target=target,
        source_ras_from_target_ras=np.eye(4),
        interpolation="linear",
        outside=0,
    )
    np.testing.assert_allclose(found[:, 1, 1], [75, 25, 75])


def test_there_and_back_on_its_own_grid_is_the_identity() -> None:
    turned = SOURCE.closest_ras()
    there = resample(
        ARRAY,
        source=SOURCE,
        target=turned,
        source_ras_from_target_ras=np.eye(4),
        interpolation="linear",
        outside=0,
    )
    back = resample(
        there,
        source=turned,
        target=SOURCE,
        source_ras_from_target_ras=np.eye(4),
        interpolation="linear",
        outside=0,
    )
    np.testing.assert_array_equal(back, ARRAY)
