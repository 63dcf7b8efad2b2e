"""The working grid and the layout of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.foreground import find_foreground
from bfp.imaging.stacks import EDGES, SliceAxis, frame_stacks, from_pixels, to_pixels
from tests.imaging.makers import grid, recipe, scan

NATIVE = grid(axes="PIR", shape=(90, 64, 70), spacing_mm=(2.1, 2.6, 2.3), tilt_deg=(6, -4, 9), centre_ras=(5, 8, -3))


def test_row_0_is_anterior_and_column_0_is_left() -> None:
    volume = np.zeros((4, 5, 3), np.uint8)
    volume[0, -1, 2] = 1  # leftmost, most anterior
    pixels = to_pixels(volume)
    assert pixels.shape == (3, 5, 4)
    assert pixels[2, 0, 0] == 1
    assert EDGES["axial"] == {"top": "A", "bottom": "P", "left": "L", "right": "R"}
    np.testing.assert_array_equal(from_pixels(pixels), volume)


def test_the_working_grid_keeps_the_scans_axes_and_takes_the_recipes_spacing() -> None:
    frame = frame_stacks(NATIVE, find_foreground(scan(NATIVE)), recipe=recipe(slice_spacing_mm=3.0))
    turned = NATIVE.closest_ras()
    np.testing.assert_allclose(frame.working.spacing_mm, (2, 2, 3))
    for axis in range(3):
        ours, theirs = frame.working.ras_from_voxel[:3, axis], turned.ras_from_voxel[:3, axis]
        np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), atol=1e-9)
    assert frame.working.shape == (112, 112, frame.working.shape[2])


def test_the_crop_is_centred_on_the_head() -> None:
    frame = frame_stacks(NATIVE, find_foreground(scan(NATIVE)), recipe=recipe())
    middle = frame.working.voxels(np.zeros(3))  # the phantom stands at the origin
    np.testing.assert_allclose(middle[:2], 55.5, atol=2)


def test_a_scan_that_has_the_spacing_is_cropped_on_its_own_voxels() -> None:
    native = grid(axes="LAS", shape=(90, 110, 70), spacing_mm=(2.0, 2.0, 2.0), tilt_deg=(5, 6, 7))
    frame = frame_stacks(native, find_foreground(scan(native)), recipe=recipe())
    voxels = native.voxels(frame.working.ras(np.array([[3, 4, 5], [50, 60, 20]])))
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-6)


def test_slices_are_kept_by_their_share_of_head() -> None:
    head = find_foreground(scan(NATIVE))
    some = frame_stacks(NATIVE, head, recipe=recipe(min_foreground=0.2))
    all_of_it = frame_stacks(NATIVE, head, recipe=recipe(min_foreground=0.0))
    assert some.foreground.min() >= 0.2
    assert 0 < some.slices.size < all_of_it.slices.size
    assert all_of_it.foreground.min() > 0
    widest = np.pi * 68 * 85 / 224**2
    assert some.foreground.max() == pytest.approx(widest, rel=0.06)
    assert np.all(np.diff(some.slices) > 0)
    with pytest.raises(Unusable) as caught:
        frame_stacks(NATIVE, head, recipe=recipe(min_foreground=0.6))
    assert caught.value.reason is Reason.NO_SLICES
    assert "60.0% is asked for" in caught.value.detail


def test_slices_know_their_height() -> None:
    frame = frame_stacks(NATIVE, find_foreground(scan(NATIVE)), recipe=recipe())
    assert (frame.height[0], frame.height[-1]) == (0, 1)
    middle = np.array([[55.5, 55.5, float(frame.slices[7])]])
    assert frame.position_mm[7] == pytest.approx(frame.working.ras(middle)[0, 2], abs=1e-3)
    assert frame.position_mm[0] < -50 < 50 < frame.position_mm[-1]


WORLD = "RAS"
"""Where x, y and z of the scanner's space point."""


@pytest.mark.parametrize("axis", EDGES)
@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SRA"])
def test_each_edge_of_a_slice_is_what_its_letter_says(axis: SliceAxis, axes: str) -> None:
    lengths = dict(zip("LPSRAI", (90, 104, 84, 90, 104, 84), strict=True))
    native = grid(axes=axes, shape=tuple(lengths[a] for a in axes), spacing_mm=(2.0, 2.1, 1.9), tilt_deg=(8, -5, 12))
    frame = frame_stacks(native, find_foreground(scan(native)), recipe=recipe(slice_axis=axis))
    size, _, depth = frame.working.shape
    # The places in space that the pixels show: (slice, row, column, xyz).
    ras = frame.working.ras(np.moveaxis(np.indices(frame.working.shape), 0, -1))
    shown = np.stack([to_pixels(ras[..., world]) for world in range(3)], axis=-1)
    assert shown.shape == (depth, size, size, 3)
    middle = shown[depth // 2]
    for edge, place in (
        ("top", middle[0, size // 2]),
        ("bottom", middle[-1, size // 2]),
        ("left", middle[size // 2, 0]),
        ("right", middle[size // 2, -1]),
    ):
        outwards = place - middle[size // 2, size // 2]
        world = int(np.abs(outwards).argmax())
        assert (WORLD if outwards[world] > 0 else "LPI")[world] == EDGES[axis][edge]
    assert np.all(np.diff(frame.position_mm) > 0)
    onwards = shown[-1, size // 2, size // 2] - shown[0, size // 2, size // 2]
    assert onwards[int(np.abs(onwards).argmax())] > 0  # slices go to superior, anterior, right
    turned = np.linalg.norm(frame.working.ras_from_voxel[:3, :3], axis=0)
    np.testing.assert_allclose(turned, 2.0)


@pytest.mark.parametrize("axis", EDGES)
def test_a_range_keeps_the_slices_between_its_ends(axis: SliceAxis) -> None:
    head = find_foreground(scan(NATIVE))
    every = frame_stacks(NATIVE, head, recipe=recipe(slice_axis=axis))
    some = frame_stacks(NATIVE, head, recipe=recipe(slice_axis=axis, slice_range_mm=(-10.0, 25.0)))
    centre = some.working.voxels(head.centre_ras)[2]
    from_centre_mm = (some.slices - centre) * 2.0
    assert -10 <= from_centre_mm.min() < -7
    assert 22 < from_centre_mm.max() <= 25
    inside = np.isin(every.slices, some.slices)
    np.testing.assert_array_equal(some.foreground, every.foreground[inside])
    assert (some.height[0], some.height[-1]) == (0, 1)
    with pytest.raises(Unusable, match="from 100 to 200 mm is head"):
        frame_stacks(NATIVE, head, recipe=recipe(slice_axis=axis, slice_range_mm=(100.0, 200.0)))
