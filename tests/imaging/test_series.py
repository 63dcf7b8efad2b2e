"""4-D scans, volume by volume: the frame is the scan's, the window each volume's own."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

import bfp.imaging.session as session_module
from bfp.errors import Reason, Unusable
from bfp.imaging.label_maps import Segmentation
from bfp.imaging.nifti import Series, decode, decode_each
from bfp.imaging.session import Prepared, PreparedSession, prepare_series, prepare_session
from bfp.imaging.stacks import Recipe
from tests.imaging.makers import grid, head, motion, recipe, volume

NATIVE = grid(axes="LPS", shape=(70, 86, 62), tilt_deg=(0, 0, 0))
HEAD = np.rint(head(NATIVE)).astype(np.int16)
BRIGHT = np.where(HEAD > 0, HEAD + np.random.default_rng(0).integers(0, 200, HEAD.shape), 0).astype(np.int16)
WEIGHTED = np.where(HEAD > 0, 40 + BRIGHT // 9, 0).astype(np.int16)  # as diffusion weighting leaves it
EACH = recipe(form="neighbours", modalities=("dwi", "T1w"), gap_mm=3.0, volumes="each")


def file_of(*volumes: np.ndarray) -> bytes:
    """The bytes of a scan of these volumes (i, j, k), 4-D if there are several."""
    image = nibabel.Nifti1Image(np.stack(volumes, axis=3) if len(volumes) > 1 else volumes[0], NATIVE.ras_from_voxel)
    return bytes(image.to_bytes())


def series(*volumes: np.ndarray) -> Series:
    return decode_each(file_of(*volumes))


def prepared(*volumes: np.ndarray, recipe: Recipe = EACH, **others: object) -> list[PreparedSession]:
    return list(prepare_series("dwi", series(*volumes), recipe=recipe, **others))  # type: ignore[arg-type]


def alone(values: np.ndarray, *, recipe: Recipe = EACH, brain_mask: Segmentation | None = None) -> Prepared:
    (found,) = prepare_session({"dwi": decode(file_of(values))}, recipe=recipe, brain_mask=brain_mask).prepared
    return found


@pytest.mark.parametrize("dtype", ["i2", "f4"])
@pytest.mark.parametrize("intensity", ["percentiles", "zscore"])
def test_each_volume_gives_the_stacks_that_it_gives_as_a_scan_by_itself(dtype: str, intensity: str) -> None:
    how = recipe(form="neighbours", modalities=("dwi",), gap_mm=3.0, volumes="each", intensity=intensity)
    volumes = [values.astype(dtype) for values in (HEAD, BRIGHT, WEIGHTED)]
    found = prepared(*volumes, recipe=how)
    assert [each.prepared[0].volume for each in found] == [0, 1, 2]
    for each, values in zip(found, volumes, strict=True):
        (stacks,), expected = each.prepared, alone(values, recipe=how)
        np.testing.assert_array_equal(stacks.pixels, expected.pixels)
        np.testing.assert_array_equal(stacks.slices, expected.slices)
        np.testing.assert_array_equal(stacks.foreground, expected.foreground)
        assert stacks.facts[0].window == expected.facts[0].window
        assert (stacks.facts[0].volume, expected.volume) == (stacks.volume, None)
    first, _, weighted = (each.prepared[0] for each in found)
    assert weighted.facts[0].window.high < first.facts[0].window.high / 2
    assert weighted.pixels.max() == 255


def test_all_volumes_have_the_frame_of_the_first_whatever_moves_in_them() -> None:
    moved = np.rint(head(NATIVE, moved=motion(turn_deg=(0, 0, 0), shift_mm=(0, 12, 14)))).astype(np.int16)
    first, second = (each.prepared[0] for each in prepared(HEAD, moved))
    np.testing.assert_array_equal(second.working.ras_from_voxel, first.working.ras_from_voxel)
    np.testing.assert_array_equal(second.slices, first.slices)
    np.testing.assert_array_equal(second.foreground, first.foreground)
    assert not np.array_equal(alone(moved).slices, first.slices)


def test_the_first_volume_that_can_be_used_leads_and_the_others_are_told() -> None:
    blank = np.zeros_like(HEAD)
    first, second, third, fourth = prepared(blank, BRIGHT, blank, WEIGHTED)
    assert [each.rejected["dwi"].reason for each in (first, third)] == [Reason.EMPTY, Reason.EMPTY]
    assert (first.prepared, third.prepared) == ([], [])
    assert (second.prepared[0].volume, fourth.prepared[0].volume) == (1, 3)
    np.testing.assert_array_equal(second.prepared[0].pixels, alone(BRIGHT).pixels)


def test_a_brain_mask_is_that_of_all_volumes() -> None:
    points = NATIVE.ras(np.moveaxis(np.indices(NATIVE.shape), 0, -1))
    mask = Segmentation(volume(NATIVE, (np.linalg.norm(points, axis=-1) < 45).astype(np.uint8)), "dwi")
    how = recipe(form="neighbours", modalities=("dwi",), gap_mm=3.0, volumes="each", brain="given")
    for each, values in zip(prepared(HEAD, WEIGHTED, recipe=how, brain_mask=mask), (HEAD, WEIGHTED), strict=True):
        np.testing.assert_array_equal(each.prepared[0].pixels, alone(values, recipe=how, brain_mask=mask).pixels)


def test_labels_and_what_the_header_says_stand_with_the_first_volume_alone() -> None:
    data = bytearray(file_of(HEAD, BRIGHT))
    data[252:256] = bytes(4)  # qform_code and sform_code
    series = decode_each(bytes(data))
    core = volume(series.volume(0).grid, (HEAD > 300).astype(np.uint8))
    segmentations = {"core": Segmentation(core, "dwi"), "lost": Segmentation(core, "T1w")}
    found = list(prepare_series("dwi", series, recipe=EACH, segmentations=segmentations))
    first, second = (each.prepared[0] for each in found)
    assert (set(first.labels), set(second.labels)) == ({"core"}, set())
    assert "says nothing of orientation" in first.facts[0].warnings[0]
    assert second.facts[0].warnings == ()
    assert (set(found[0].rejected), set(found[1].rejected)) == ({"lost"}, set())


def test_more_stacks_than_may_be_held_reject_the_scan_before_the_second_volume(monkeypatch) -> None:
    size_bytes = prepared(HEAD)[0].prepared[0].pixels.nbytes
    monkeypatch.setattr(session_module, "MAX_SERIES_BYTES", 2 * size_bytes)
    assert len(prepared(HEAD, BRIGHT)) == 2
    with pytest.raises(Unusable) as caught:
        next(prepare_series("dwi", series(HEAD, BRIGHT, WEIGHTED), recipe=EACH))
    assert caught.value.reason is Reason.TOO_LARGE
    assert caught.value.detail.startswith("3 volumes of ")
    assert "slice_spacing_mm nearer to the scan's own" in caught.value.detail
