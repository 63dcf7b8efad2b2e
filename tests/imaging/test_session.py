"""A session's scans to stacks: which pixel shows which millimetre, whatever the grids of the files."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.errors import Reason
from bfp.imaging.foreground import find_foreground
from bfp.imaging.grid import Grid
from bfp.imaging.session import Prepared, PreparedSession, Segmentation, prepare_session
from bfp.imaging.stacks import EDGES, Recipe, SliceAxis
from tests.imaging.makers import MARK_ANTERIOR, MARK_LEFT, MARK_TOP, grid, head, motion, recipe, scan, volume

REFERENCE = grid(axes="LPS", shape=(84, 98, 74), spacing_mm=(2.0, 2.1, 2.3))
OTHER = grid(axes="AIR", shape=(96, 62, 80), spacing_mm=(2.1, 2.6, 2.2), tilt_deg=(5, -3, 8), centre_ras=(3, 4, -5))
OFF = motion(turn_deg=(3, -2, 5), shift_mm=(2, 11, -4))


def mark_at(prepared: Prepared, place_ras: np.ndarray) -> tuple[int, int, int]:
    """Stack, row and column that show a place, by the documented layout."""
    x, y, z = np.rint(prepared.working.voxels(place_ras)).astype(int)
    (stack,) = np.flatnonzero(prepared.slices == z)
    return int(stack), prepared.pixels.shape[2] - 1 - y, x


def only(session: PreparedSession) -> Prepared:
    assert session.rejected == {}
    (prepared,) = session.prepared
    return prepared


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "PSR", "AIL", "SRP"])
@pytest.mark.parametrize("tilt_deg", [(0, 0, 0), (8, -5, 12)], ids=["straight", "oblique"])
def test_every_orientation_shows_the_marks_where_the_layout_says(axes: str, tilt_deg: tuple) -> None:
    lengths = {"L": 90, "R": 90, "A": 100, "P": 100, "S": 84, "I": 84}
    native = grid(axes=axes, shape=tuple(lengths[a] for a in axes), spacing_mm=(2, 2.1, 1.9), tilt_deg=tilt_deg)
    prepared = only(prepare_session({"T1w": scan(native)}, recipe=recipe()))
    for place in (MARK_LEFT, MARK_ANTERIOR, MARK_TOP):
        stack, row, column = mark_at(prepared, place)
        near = prepared.pixels[stack, 0, row - 1 : row + 2, column - 1 : column + 2]
        assert near.min() > 235
    stack, row, column = mark_at(prepared, MARK_LEFT)
    assert column < 56  # the patient's left on the left
    assert mark_at(prepared, MARK_ANTERIOR)[1] < 40  # anterior up
    assert prepared.present == (True, False, False)
    assert prepared.modalities == ("T1w", "T2w", "FLAIR")
    assert not prepared.pixels[:, 1:].any()


@pytest.mark.parametrize("moved", [False, True], ids=["headers right", "header 12 mm off"])
def test_scans_on_other_grids_come_to_lie_on_the_reference(moved: bool) -> None:
    place = OFF if moved else np.eye(4)
    flair = scan(OTHER, contrast="FLAIR", moved=place)
    session = prepare_session({"FLAIR": flair, "T1w": scan(REFERENCE)}, recipe=recipe(register="rigid"))
    prepared = only(session)
    assert prepared.present == (True, False, True)
    assert [facts.modality for facts in prepared.facts] == ["T1w", "FLAIR"]
    truth = head(prepared.working, contrast="FLAIR")[:, :, prepared.slices]
    shown = prepared.pixels[:, 2, ::-1, :].transpose(2, 1, 0).astype(float)
    window = prepared.facts[1].window
    expected = np.clip((truth - window.low) / (window.high - window.low), 0, 1) * 255
    # Edges of the phantom are sharper than either grid; inside, half a millimetre more or less is a few grey levels.
    assert np.median(np.abs(shown - expected)[truth > 0]) < 8
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.95
    facts = prepared.facts[1]
    assert facts.shift_mm == pytest.approx(np.linalg.norm(OFF[:3, 3]) if moved else 0, abs=1.0)
    assert len(facts.warnings) == int(moved)
    assert prepared.facts[0].shift_mm is None
    np.testing.assert_array_equal(prepared.facts[0].reference_ras_from_scan_ras, np.eye(4))


def test_by_header_nothing_is_moved_and_what_is_off_is_said() -> None:
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(OTHER, contrast="FLAIR", moved=OFF)}
    facts = only(prepare_session(scans, recipe=recipe(register="header"))).facts[1]
    np.testing.assert_array_equal(facts.reference_ras_from_scan_ras, np.eye(4))
    assert facts.shift_mm == pytest.approx(np.linalg.norm(OFF[:3, 3]), abs=1.0)
    assert facts.warnings == (
        f"the header places the FLAIR {facts.shift_mm:.1f} mm from the T1w; `register: rigid` would move it",
    )
    assert facts.similarity_after > facts.similarity_before


def test_without_registration_a_scan_on_another_grid_is_rejected() -> None:
    near = Grid(REFERENCE.shape, REFERENCE.window((0.02, 0, 0), REFERENCE.shape).ras_from_voxel)
    scans = {"T1w": scan(REFERENCE), "T2w": scan(near, contrast="T2w"), "FLAIR": scan(OTHER, contrast="FLAIR")}
    session = prepare_session(scans, recipe=recipe(register="none"))
    assert session.prepared[0].present == (True, False, False)
    assert {name: unusable.reason for name, unusable in session.rejected.items()} == {
        "T2w": Reason.OFF_GRID,
        "FLAIR": Reason.OFF_GRID,
    }
    assert "0.04 mm" in session.rejected["T2w"].detail
    assert "(96, 62, 80)" in session.rejected["FLAIR"].detail
    scans["T2w"] = scan(REFERENCE, contrast="T2w")
    assert prepare_session(scans, recipe=recipe(register="none")).prepared[0].present == (True, True, False)


def test_the_next_modality_leads_when_the_first_cannot() -> None:
    small = grid(shape=(20, 20, 20), spacing_mm=(1, 1, 1))
    speck = volume(small, np.pad(np.full((6, 6, 6), 50, np.int16), 7))
    session = prepare_session({"T1w": speck, "T2w": scan(OTHER, contrast="T2w")}, recipe=recipe())
    assert session.rejected["T1w"].reason is Reason.NO_SLICES
    assert [facts.modality for facts in session.prepared[0].facts] == ["T2w"]
    assert session.prepared[0].present == (False, True, False)


def test_a_session_without_a_usable_scan_says_why() -> None:
    speck = volume(grid(shape=(20, 20, 20)), np.pad(np.full((2, 2, 2), 50, np.int16), 9))
    session = prepare_session({"T1w": speck, "PD": scan(OTHER)}, recipe=recipe())
    assert session.prepared == []
    assert session.rejected["T1w"].reason is Reason.NO_SLICES
    assert session.rejected["PD"].reason is Reason.UNWANTED
    assert "T1w, T2w, FLAIR" in session.rejected["PD"].detail


def neighbours(**changes: object) -> Recipe:
    return recipe(form="neighbours", **changes)


@pytest.mark.parametrize("gap_mm", [4.0, 3.1], ids=["two slices", "between slices"])
def test_neighbours_are_the_planes_below_at_and_above(gap_mm: float) -> None:
    native = grid(axes="LPS", shape=(84, 98, 92), spacing_mm=(2.0, 2.0, 2.0))
    session = prepare_session({"FLAIR": scan(native)}, recipe=neighbours(gap_mm=gap_mm))
    prepared = only(session)
    assert prepared.modalities == ("FLAIR", "FLAIR", "FLAIR")
    assert prepared.present == (True, True, True)
    if gap_mm == 4.0:
        np.testing.assert_array_equal(prepared.pixels[2:, 0], prepared.pixels[:-2, 1])
        np.testing.assert_array_equal(prepared.pixels[:-2, 2], prepared.pixels[2:, 1])
    else:
        below = 0.55 * prepared.pixels[:-2, 1].astype(float) + 0.45 * prepared.pixels[1:-1, 1]
        # What the window clips is clipped before it is mixed on the one side, and after on the other.
        assert np.mean(np.abs(prepared.pixels[2:, 0] - below) > 2) < 0.02


def test_each_scan_has_stacks_of_its_own_with_neighbours() -> None:
    scans = {"FLAIR": scan(OTHER, contrast="FLAIR"), "T1w": scan(REFERENCE)}
    session = prepare_session(scans, recipe=neighbours())
    assert [prepared.modalities[0] for prepared in session.prepared] == ["T1w", "FLAIR"]
    for prepared, native in zip(session.prepared, (REFERENCE, OTHER), strict=True):
        turned = native.closest_ras().ras_from_voxel[:3, 2]
        ours = prepared.working.ras_from_voxel[:3, 2]
        np.testing.assert_allclose(ours / np.linalg.norm(ours), turned / np.linalg.norm(turned), atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_labels_ride_along_with_the_scan_on_which_they_were_drawn(dtype: str) -> None:
    lesion_grid = grid(axes="RAS", shape=(75, 90, 66), spacing_mm=(2.2, 2.2, 2.4), centre_ras=(1, 2, 3))
    moved_mark = OFF[:3, :3] @ MARK_LEFT + OFF[:3, 3]  # where the FLAIR's header says the mark is
    points = lesion_grid.ras(np.moveaxis(np.indices(lesion_grid.shape), 0, -1))
    lesion = (np.linalg.norm(points - moved_mark, axis=-1) < 9).astype(dtype) * 3
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(OTHER, contrast="FLAIR", moved=OFF)}
    segmentations = {"lesion": Segmentation(volume(lesion_grid, lesion), "FLAIR")}
    prepared = only(prepare_session(scans, recipe=recipe(register="rigid"), segmentations=segmentations))
    labels = prepared.labels["lesion"]
    assert labels.dtype == np.uint16
    assert labels.shape == prepared.pixels[:, 0].shape
    assert set(np.unique(labels)) == {0, 3}
    stacks, rows, columns = np.nonzero(labels)
    size = labels.shape[1]
    voxels = np.stack([columns, size - 1 - rows, prepared.slices[stacks]], axis=-1)
    np.testing.assert_allclose(prepared.working.ras(voxels.mean(axis=0)), MARK_LEFT, atol=0.8)


def test_cubic_changes_grey_values_between_voxels_and_no_label() -> None:
    coarse = grid(axes="RAS", shape=(42, 50, 40), spacing_mm=(4.0, 4.0, 4.0))
    labels = np.asfortranarray(np.random.default_rng(0).integers(0, 3, coarse.shape, np.uint8))
    segmentations = {"lesion": Segmentation(volume(coarse, labels), "T1w")}
    linear, cubic = (
        only(prepare_session({"T1w": scan(coarse)}, recipe=recipe(interpolation=how), segmentations=segmentations))
        for how in ("linear", "cubic")
    )
    np.testing.assert_array_equal(cubic.labels["lesion"], linear.labels["lesion"])
    z, row, column = np.meshgrid(linear.slices, np.arange(112), np.arange(112), indexing="ij")
    at = coarse.voxels(linear.working.ras(np.stack([column, 111 - row, z], axis=-1)))
    on_voxels = (np.abs(at - np.rint(at)) < 1e-6).all(axis=-1)
    assert on_voxels.mean() == pytest.approx(1 / 8, rel=0.1)
    off = np.abs(cubic.pixels[:, 0].astype(int) - linear.pixels[:, 0])
    assert off[on_voxels].max() <= 1
    assert off[~on_voxels].max() > 10


def test_segmentations_that_cannot_be_used_are_rejected_by_name() -> None:
    half = volume(REFERENCE, np.full(REFERENCE.shape, 0.5, np.float32))
    whole = volume(REFERENCE, np.ones(REFERENCE.shape, np.uint8))
    segmentations = {"probability": Segmentation(half, "T1w"), "lost": Segmentation(whole, "FLAIR")}
    session = prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(), segmentations=segmentations)
    assert session.prepared[0].labels == {}
    assert session.rejected["probability"].reason is Reason.DATATYPE
    assert session.rejected["lost"].reason is Reason.MISSING


@pytest.mark.parametrize("form", ["modalities", "neighbours"])
def test_a_given_brain_mask_blackens_the_rest_and_sets_the_window(form: str) -> None:
    points = OTHER.ras(np.moveaxis(np.indices(OTHER.shape), 0, -1))
    brain = volume(OTHER, (np.linalg.norm(points, axis=-1) < 45).astype(np.uint8))
    scans = {"T1w": scan(REFERENCE)}
    masked = only(prepare_session(scans, recipe=recipe(brain="given", form=form, gap_mm=0.0), brain_mask=brain))
    places = masked.working.ras(np.moveaxis(np.indices(masked.working.shape), 0, -1))[:, :, masked.slices]
    distance_mm = np.linalg.norm(places, axis=-1).T[:, ::-1]  # (n, rows, columns)
    for channel in range(3 if form == "neighbours" else 1):
        assert not masked.pixels[:, channel][distance_mm > 47].any()
        assert (masked.pixels[:, channel][distance_mm < 43] > 0).mean() > 0.9  # fluid is black
    plain = only(prepare_session(scans, recipe=recipe()))
    assert masked.facts[0].window != plain.facts[0].window
    assert masked.slices.size < plain.slices.size


def test_a_brain_mask_that_is_asked_for_and_not_there_rejects_the_session() -> None:
    session = prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"))
    assert session.prepared == []
    assert session.rejected["T1w"].reason is Reason.NO_BRAIN_MASK


def test_pixels_do_not_depend_on_how_the_values_were_stored() -> None:
    values = np.rint(head(REFERENCE)).astype(np.int16)
    shown = [
        only(prepare_session({"T1w": volume(REFERENCE, array)}, recipe=recipe())).pixels
        for array in (values, values.astype(np.float32), values.astype(np.float64), values.astype(np.uint32))
    ]
    for other in shown[1:]:
        np.testing.assert_array_equal(other, shown[0])


def test_a_constant_volume_gives_pixels_and_no_crash() -> None:
    flat = volume(REFERENCE, np.full(REFERENCE.shape, 7, np.int16))
    session = prepare_session({"T1w": flat}, recipe=recipe())
    assert all(np.isfinite(prepared.pixels).all() for prepared in session.prepared)
    assert session.prepared or session.rejected


def test_a_volume_without_any_background_is_flagged() -> None:
    native = grid(shape=(80, 90, 70), spacing_mm=(2.0, 2.1, 2.3))
    texture = np.random.default_rng(0).integers(500, 600, native.shape).astype(np.int16)
    (facts,) = only(prepare_session({"T1w": volume(native, texture)}, recipe=recipe())).facts
    assert facts.warnings == ("100% of the volume is foreground: no background was found; is this a head?",)


@pytest.mark.parametrize("axis", EDGES)
def test_the_marks_and_labels_lie_where_each_slice_axis_says(axis: SliceAxis) -> None:
    lesion_grid = grid(axes="RAS", shape=(75, 90, 66), spacing_mm=(2.2, 2.2, 2.4), centre_ras=(1, 2, 3))
    points = lesion_grid.ras(np.moveaxis(np.indices(lesion_grid.shape), 0, -1))
    lesion = (np.linalg.norm(points - MARK_LEFT, axis=-1) < 9).astype(np.uint8)
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(OTHER, contrast="FLAIR")}
    segmentations = {"lesion": Segmentation(volume(lesion_grid, lesion), "T1w")}
    prepared = only(prepare_session(scans, recipe=recipe(slice_axis=axis), segmentations=segmentations))
    for place in (MARK_LEFT, MARK_ANTERIOR, MARK_TOP):
        stack, row, column = mark_at(prepared, place)
        assert prepared.pixels[stack, 0, row - 1 : row + 2, column - 1 : column + 2].min() > 235
    stacks, rows, columns = np.nonzero(prepared.labels["lesion"])
    voxels = np.stack([columns, 111 - rows, prepared.slices[stacks]], axis=-1)
    np.testing.assert_allclose(prepared.working.ras(voxels.mean(axis=0)), MARK_LEFT, atol=0.8)
    world = {"axial": 2, "coronal": 1, "sagittal": 0}[axis]
    middle = prepared.working.ras(np.array([[55.5, 55.5, float(z)] for z in prepared.slices]))
    np.testing.assert_allclose(prepared.position_mm, middle[:, world], atol=1e-3)


def test_a_zscore_window_shows_the_mean_of_the_foreground_as_middle_grey() -> None:
    facts = only(prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(intensity="zscore", zscore_limit=2.0))).facts
    wider = only(prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(intensity="zscore", zscore_limit=4.0))).facts
    low, high = facts[0].window
    tissue = find_foreground(scan(REFERENCE)).values
    assert (low + high) / 2 == pytest.approx(float(tissue.mean()), rel=0.02)
    np.testing.assert_allclose(np.diff(wider[0].window), 2 * (high - low))


def test_the_crop_and_the_slices_follow_the_brain_mask() -> None:
    points = REFERENCE.ras(np.moveaxis(np.indices(REFERENCE.shape), 0, -1))
    aside = np.array([20.0, -30.0, 10.0])
    brain = volume(REFERENCE, (np.linalg.norm(points - aside, axis=-1) < 30).astype(np.uint8))
    masked = only(prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"), brain_mask=brain))
    np.testing.assert_allclose(masked.working.voxels(aside)[:2], 55.5, atol=1.5)
    assert np.abs(masked.position_mm - aside[2]).max() < 32
    assert (masked.facts[0].brain, masked.facts[0].brain_ml) == ("given", pytest.approx(4 / 3 * np.pi * 27, rel=0.03))
    told = f"the brain mask holds {masked.facts[0].brain_ml:,.0f} ml, 300 to 2,100 are expected: is it a brain?"
    assert masked.facts[0].warnings == (told,)
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(OTHER, contrast="FLAIR")}
    both = only(prepare_session(scans, recipe=recipe(brain="given"), brain_mask=brain))
    assert [told in facts.warnings for facts in both.facts] == [True, False]  # with the reference, once


def test_a_scan_that_shares_nothing_with_its_reference_is_flagged() -> None:
    noise = np.random.default_rng(0).integers(100, 900, OTHER.shape).astype(np.int16)
    for other, flagged in ((volume(OTHER, noise), True), (scan(OTHER, contrast="FLAIR"), False)):
        facts = only(prepare_session({"T1w": scan(REFERENCE), "FLAIR": other}, recipe=recipe())).facts[1]
        assert any("has little in common with the T1w" in text for text in facts.warnings) is flagged
