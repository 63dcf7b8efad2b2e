"""A session's scans to stacks: which pixel shows which millimetre, whatever the grids of the files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bfp.errors import Reason
from bfp.imaging.foreground import find_foreground
from bfp.imaging.grid import Grid, apply
from bfp.imaging.label_maps import Segmentation
from bfp.imaging.nifti import NO_ORIENTATION, Volume, decode, encode
from bfp.imaging.session import Prepared, PreparedSession, prepare_session
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
    assert session.rejected["probability"].reason is Reason.NOT_LABELS
    assert str(session.rejected["lost"]) == (
        "cannot be laid on the scan that it was drawn on: the FLAIR, which gave no stacks"
    )


def lesion_on(at: Grid, place_ras: np.ndarray = MARK_LEFT, *, radius_mm: float = 9.0) -> np.ndarray:
    """uint8 of the grid's shape: a ball of ones."""
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    return (np.linalg.norm(points - place_ras, axis=-1) < radius_mm).astype(np.uint8)


def without_orientation(at: Grid, values: np.ndarray) -> Volume:
    """The volume of a file with qform_code and sform_code 0."""
    data = bytearray(encode(values, grid=at, compress=False))
    data[252:256] = bytes(4)
    return decode(bytes(data), may_be_blank=True)


FINER = grid(axes="LPS", shape=(90, 104, 80), spacing_mm=(1.9, 2.0, 2.1))
AWAY = grid(axes="LPS", shape=(84, 98, 74), spacing_mm=(2.0, 2.1, 2.3), centre_ras=(0, 0, 1000))
CUT = grid(axes="LPS", shape=(20, 20, 20), spacing_mm=(2.0, 2.1, 2.3), centre_ras=(-40, 5, 10))


@pytest.mark.parametrize(
    ("drawn", "told"),
    [
        (without_orientation(REFERENCE, lesion_on(REFERENCE)), "corners lie up to"),
        (without_orientation(FINER, lesion_on(FINER)), NO_ORIENTATION),
        (volume(AWAY, lesion_on(REFERENCE)), "corners lie up to 1,000 mm from those"),
        (volume(AWAY.every((2, 2, 2)), lesion_on(REFERENCE)[::2, ::2, ::2]), "covers 0% of the head in the T1w"),
        (volume(CUT, lesion_on(CUT)), r"% of the head in the T1w, 75% are expected; if it was cut"),
    ],
    ids=["no orientation", "no orientation, another shape", "1 m away", "1 m away, another shape", "cut out"],
)
@pytest.mark.parametrize("is_mask", [False, True], ids=["labels", "brain mask"])
def test_a_map_that_does_not_lie_on_its_scan_is_refused_and_not_taken_for_an_empty_one(
    drawn: Volume, told: str, is_mask: bool
) -> None:
    if is_mask:
        session = prepare_session(
            {"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"), brain_mask=Segmentation(drawn, "T1w")
        )
        assert session.prepared == []
        why = session.rejected["T1w"]
        assert why.reason is Reason.NO_BRAIN_MASK
        assert str(Reason.UNPLACED) in why.detail
    else:
        segmentations = {"lesion": Segmentation(drawn, "T1w")}
        session = prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(), segmentations=segmentations)
        assert session.prepared[0].labels == {}
        why = session.rejected["lesion"]
        assert why.reason is Reason.UNPLACED
    assert told.replace("%", "") in why.detail.replace("%", "")


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["the same shape", "another shape"])
def test_a_map_saved_with_its_axes_turned_round_is_the_same_map(axes: tuple[int, int, int]) -> None:
    lesion = lesion_on(REFERENCE)
    flips = (slice(None, None, -1), slice(None), slice(None, None, -1))
    turned = REFERENCE.reordered(axes)
    for axis in (0, 2):
        backwards = np.eye(4)
        backwards[axis, axis], backwards[axis, 3] = -1, turned.shape[axis] - 1
        turned = Grid(turned.shape, turned.ras_from_voxel @ backwards)
    plain, other = (
        only(
            prepare_session(
                {"T1w": scan(REFERENCE)},
                recipe=recipe(),
                segmentations={"lesion": Segmentation(volume(at, np.asfortranarray(values)), "T1w")},
            )
        ).labels["lesion"]
        for at, values in ((REFERENCE, lesion), (turned, lesion.transpose(axes)[flips]))
    )
    assert plain.any()
    np.testing.assert_array_equal(plain, other)


def test_a_map_without_orientation_lies_on_a_scan_without_one_and_says_so() -> None:
    guessed = Grid(REFERENCE.shape, np.diag([*REFERENCE.spacing_mm, 1.0]))
    scans = {"T1w": without_orientation(guessed, np.rint(head(REFERENCE)).astype(np.int16))}
    lesion = without_orientation(guessed, lesion_on(REFERENCE))
    session = prepare_session(scans, recipe=recipe(), segmentations={"lesion": Segmentation(lesion, "T1w")})
    assert only(session).labels["lesion"].any()
    assert session.doubts == {"lesion": (NO_ORIENTATION,)}


def test_labels_that_lie_on_no_stack_are_told_and_an_empty_map_is_an_answer() -> None:
    below = lesion_on(REFERENCE, np.array([0.0, 0.0, -80.0]), radius_mm=4.0)
    segmentations = {
        "lost": Segmentation(volume(REFERENCE, below), "T1w"),
        "none": Segmentation(volume(REFERENCE, below * 0), "T1w"),
    }
    session = prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(), segmentations=segmentations)
    assert session.doubts == {"lost": (f"none of its {below.sum()} labelled voxels lies on a stack",), "none": ()}
    assert not only(session).labels["none"].any()


@pytest.mark.parametrize("form", ["modalities", "neighbours"])
def test_a_given_brain_mask_blackens_the_rest_and_sets_the_window(form: str) -> None:
    points = OTHER.ras(np.moveaxis(np.indices(OTHER.shape), 0, -1))
    brain = Segmentation(volume(OTHER, (np.linalg.norm(points, axis=-1) < 45).astype(np.uint8)), "T1w")
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


def brain_of(at: Grid, *, moved: np.ndarray | None = None) -> np.ndarray:
    """bool of the grid's shape: the phantom's brain."""
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    points = points if moved is None else apply(np.linalg.inv(moved), points)
    return ((points / np.array([60.0, 77.0, 60.0])) ** 2).sum(axis=-1) < 1


def shares_wrong(prepared: Prepared, channel: int, *, moved: np.ndarray | None = None) -> tuple[float, float]:
    """How much of the brain is black, and how much of what is not black is no brain."""
    brain = brain_of(prepared.working, moved=moved)[:, :, prepared.slices].T[:, ::-1]
    shown = prepared.pixels[:, channel] > 0
    return float((brain & ~shown).sum() / brain.sum()), float((shown & ~brain).sum() / shown.sum())


AHEAD = motion(turn_deg=(0, 0, 0), shift_mm=(0, 12, 0))


def mask_on_the_flair() -> Segmentation:
    return Segmentation(volume(REFERENCE, brain_of(REFERENCE, moved=AHEAD).astype(np.uint8)), "FLAIR")


def test_a_brain_mask_moves_with_the_scan_on_which_it_was_drawn() -> None:
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(REFERENCE, contrast="FLAIR", moved=AHEAD)}
    mask = mask_on_the_flair()
    rigid = only(prepare_session(scans, recipe=recipe(register="rigid", brain="given"), brain_mask=mask))
    for channel in (0, 2):
        blackened, foreign = shares_wrong(rigid, channel)
        assert blackened < 0.04  # dark fluid is 0.03
        assert foreign < 0.02
    t1w, flair = rigid.facts
    assert t1w.brain_ml == pytest.approx(4 / 3 * np.pi * 60 * 77 * 60 / 1000, rel=0.01)
    (told,) = t1w.warnings
    assert told == (
        f"brain mask, drawn on the FLAIR: the header places the FLAIR {flair.shift_mm:.1f} mm from the T1w; "
        "`register: rigid` moved it"
    )
    header = only(prepare_session(scans, recipe=recipe(register="header", brain="given"), brain_mask=mask))
    assert min(shares_wrong(header, 0)) > 0.08  # what the headers say, and the warning with it
    assert "`register: rigid` would move it" in header.facts[0].warnings[0]


def test_by_itself_a_scan_gets_the_brain_mask_of_another_by_way_of_that_one() -> None:
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(REFERENCE, contrast="FLAIR", moved=AHEAD)}
    mask = mask_on_the_flair()
    rigid = neighbours(gap_mm=0.0, register="rigid", brain="given")
    t1w, flair = prepare_session(scans, recipe=rigid, brain_mask=mask).prepared
    for prepared, moved in ((t1w, None), (flair, AHEAD)):
        blackened, foreign = shares_wrong(prepared, 1, moved=moved)
        assert blackened < 0.04
        assert foreign < 0.02
    assert "brain mask, drawn on the FLAIR: the header places" in t1w.facts[0].warnings[0]
    assert flair.facts[0].warnings == ()
    header = neighbours(gap_mm=0.0, register="header", brain="given")
    t1w, flair = prepare_session(scans, recipe=header, brain_mask=mask).prepared
    assert "`register: rigid` would move it" in t1w.facts[0].warnings[0]
    assert shares_wrong(flair, 1, moved=AHEAD)[1] < 0.02
    scans["T1w"] = scan(OTHER)
    none = prepare_session(scans, recipe=neighbours(register="none", brain="given"), brain_mask=mask)
    assert [stacks.modalities[0] for stacks in none.prepared] == ["FLAIR"]
    assert "not on the grid of its session's reference" in none.rejected["T1w"].detail


def test_a_brain_mask_whose_scan_is_not_there_is_none() -> None:
    session = prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"), brain_mask=mask_on_the_flair())
    assert session.prepared == []
    why = session.rejected["T1w"]
    assert (why.reason, why.detail) == (
        Reason.NO_BRAIN_MASK,
        "cannot be laid on the scan that it was drawn on: the FLAIR, which is not there or cannot be used",
    )


def test_the_labels_inside_decide_what_of_a_mask_is_brain() -> None:
    points = REFERENCE.ras(np.moveaxis(np.indices(REFERENCE.shape), 0, -1))
    distance_mm = np.linalg.norm(points, axis=-1)
    labels = volume(REFERENCE, np.where(distance_mm < 45, 1, np.where(distance_mm < 65, 2, 0)).astype(np.uint8))
    for inside, radius_mm in (((1,), 45), ((1, 2), 65), ((), 65)):
        mask = Segmentation(labels, "T1w", inside)
        (facts,) = only(prepare_session({"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"), brain_mask=mask)).facts
        assert facts.brain_ml == pytest.approx(4 / 3 * np.pi * radius_mm**3 / 1000, rel=0.01)
    session = prepare_session(
        {"T1w": scan(REFERENCE)}, recipe=recipe(brain="given"), brain_mask=Segmentation(labels, "T1w", (3,))
    )
    assert str(session.rejected["T1w"]) == "no brain mask: the mask is blank: no voxel is 3"


def test_a_scan_outside_of_the_brain_mask_is_said_to_be_so() -> None:
    flair = replace(scan(REFERENCE, contrast="FLAIR"), grid=AWAY)
    mask = Segmentation(volume(REFERENCE, brain_of(REFERENCE).astype(np.uint8)), "T1w")
    session = prepare_session(
        {"T1w": scan(REFERENCE), "FLAIR": flair}, recipe=recipe(register="header", brain="given"), brain_mask=mask
    )
    assert session.prepared[0].present == (True, False, False)
    assert str(session.rejected["FLAIR"]) == "no brain mask: the brain mask and the scan have no place in common"


def test_what_was_done_to_bring_a_scan_onto_its_reference_is_told() -> None:
    scans = {"T1w": scan(REFERENCE), "FLAIR": scan(REFERENCE, contrast="FLAIR")}
    for register in ("none", "header", "rigid"):
        t1w, flair = only(prepare_session(scans, recipe=recipe(register=register))).facts
        assert (t1w.register, flair.register) == ("none", register)
        alone = prepare_session(scans, recipe=neighbours(register=register)).prepared
        assert [facts.register for stacks in alone for facts in stacks.facts] == ["none", "none"]


def test_pixels_do_not_depend_on_how_the_values_were_stored() -> None:
    values = np.rint(head(REFERENCE)).astype(np.int16)
    shown = [
        only(prepare_session({"T1w": volume(REFERENCE, array)}, recipe=recipe())).pixels
        for array in (values, values.astype(np.float32), values.astype(np.float64), values.astype(np.uint32))
    ]
    for other in shown[1:]:
        np.testing.assert_array_equal(other, shown[0])


def test_a_constant_volume_is_flagged_and_nothing_is_divided_by_its_windows_width() -> None:
    """`decode` refuses such a scan."""
    flat = only(prepare_session({"T1w": volume(REFERENCE, np.full(REFERENCE.shape, 7, np.int16))}, recipe=recipe()))
    assert flat.facts[0].window == (7, 7)
    assert set(np.unique(flat.pixels[:, 0])) <= {0, 255}
    assert [text.partition(":")[0] for text in flat.facts[0].warnings] == ["100% of the volume is foreground"]
    nothing = prepare_session({"T1w": volume(REFERENCE, np.zeros(REFERENCE.shape, np.int16))}, recipe=recipe())
    assert (nothing.prepared, nothing.rejected["T1w"].reason) == ([], Reason.EMPTY)


def test_a_volume_in_which_no_head_has_room_is_flagged() -> None:
    slab = grid(shape=(84, 98, 9), spacing_mm=(2.0, 2.1, 5.0))
    (facts,) = only(prepare_session({"T1w": scan(slab)}, recipe=recipe(min_foreground=0.0))).facts
    assert facts.warnings == ("the volume is 45 mm thick: a localiser, or a part of a scan?",)


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
    brain = Segmentation(volume(REFERENCE, (np.linalg.norm(points - aside, axis=-1) < 30).astype(np.uint8)), "T1w")
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
