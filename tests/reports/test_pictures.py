from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bfp.imaging.stacks import EDGES
from bfp.reports.pictures import (
    ABSENT,
    AGAINST,
    EDGE,
    FOR,
    Pair,
    SessionSlices,
    TellingSlice,
    Told,
    View,
    edges,
    mosaic,
    orientation,
    overlays,
    patch_foreground,
    pca_maps,
    principal_components,
    telling,
    views,
)
from tests.reports.heads import head


def _opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _session(present: tuple[bool, ...] = (True, True, True)) -> SessionSlices:
    return SessionSlices("sub-01", head(n=4, channels=3), ("T1w", "T2w", "FLAIR"), present)


def test_a_mosaic_shows_slices_as_they_lie_the_patients_left_on_the_left() -> None:
    picture = _opened(mosaic([_session()], axis="axial", cell_px=56))
    last = picture[22:78, -56:, 0].astype(float)  # the first channel's last slice carries no letters
    np.testing.assert_array_equal(last, head(n=4, channels=1)[3, 0])
    assert last[:, 28:].mean() > 1.5 * last[:, :28].mean()  # the head is brighter on the patient's right


def test_every_axis_has_its_letters_and_its_words() -> None:
    pictures = {axis: mosaic([_session()], axis=axis) for axis in EDGES}
    assert len(set(pictures.values())) == 3
    assert orientation("axial") == "Anterior is up, the patient's left on the left."
    assert orientation("sagittal") == "Superior is up, posterior on the left."


def test_an_absent_channel_is_marked_and_not_shown_as_black_brain() -> None:
    picture = _opened(mosaic([_session((True, False, True))], axis="axial", cell_px=56))
    assert (picture[22 + 60 + 3, -10] == ABSENT).all()
    assert not (picture[22:78, -10] == ABSENT).all(axis=1).any()


def test_a_title_that_does_not_fit_is_shortened_and_any_letters_can_stand_in_it() -> None:
    long = SessionSlices("ds-a · " + "müller_Ω_" * 40, head(n=2, channels=1), ("T1w",), (True,))
    short = SessionSlices("ds-a", head(n=2, channels=1), ("T1w",), (True,))
    assert _opened(mosaic([long], axis="axial")).shape == _opened(mosaic([short], axis="axial")).shape
    one, other = (mosaic([replace(long, title=long.title + end)], axis="axial") for end in "12")
    assert one != other  # the end is kept: it tells neighbours apart


def test_pictures_repeat_to_the_byte_and_grey_ones_are_stored_as_grey() -> None:
    png = mosaic([_session()] * 3, axis="axial")
    assert png == mosaic([_session()] * 3, axis="axial")
    assert Image.open(io.BytesIO(png)).mode == "L"


def test_the_overlay_draws_the_moving_scans_edges_where_they_lie() -> None:
    reference = head(n=1, channels=1, size_px=128)[0, 0]
    moving = np.roll(reference, 9, axis=1)
    picture = _opened(overlays([Pair("FLAIR on T1w", reference, moving)], axis="axial", cell_px=128))
    drawn = (picture[22:, :128] == EDGE).all(axis=2)
    expected = edges(moving)
    assert expected.sum() > 100
    assert drawn[expected].mean() > 0.9  # the letters hide a few
    assert drawn.sum() <= expected.sum()


def test_edges_lie_on_the_outline_of_the_head() -> None:
    slice_ = head(n=1, channels=1, size_px=128)[0, 0]
    found = edges(slice_)
    inside = slice_ > 0
    border = inside & ~(np.roll(inside, 2, 0) & np.roll(inside, -2, 0) & np.roll(inside, 2, 1) & np.roll(inside, -2, 1))
    near = border | np.roll(border, 2, 0) | np.roll(border, -2, 0) | np.roll(border, 2, 1) | np.roll(border, -2, 1)
    assert (found & near).sum() > 0.5 * found.sum()
    assert not edges(np.zeros((64, 48), np.uint8)).any()


def test_bright_scalp_leaves_the_borders_inside_the_head_their_edges() -> None:
    rows, columns = np.indices((128, 128)) / 128 - 0.5
    from_centre = (rows / 0.45) ** 2 + (columns / 0.36) ** 2
    cortex = 60 * (np.cos(60 * rows) > 0)
    slice_ = np.where(from_centre > 0.9, 255 * (from_centre < 1.1), 90 + cortex).astype(np.uint8)
    assert edges(slice_)[from_centre < 0.7].sum() > 200


@pytest.mark.parametrize("seed", range(8))
def test_the_first_component_is_what_the_chosen_tokens_vary_in_its_largest_loading_positive(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=(3, 20)).astype(np.float32)
    direction = rng.normal(size=5).astype(np.float32)
    tokens = strength[..., None] * direction + 0.01 * rng.normal(size=(3, 20, 5)).astype(np.float32)
    chosen = rng.random((3, 20)) < 0.7
    tokens[~chosen] += 100 * rng.random(5)  # what is not head must not decide
    components, explained = principal_components(tokens, chosen)
    assert explained[0] > 0.99
    correlation = np.corrcoef(components[chosen][:, 0], strength[chosen])[0, 1]
    assert correlation * direction[np.abs(direction).argmax()] > 0
    assert abs(correlation) > 0.95


def test_patches_without_head_are_black_in_the_maps() -> None:
    images = head(n=2, channels=1)[:, 0]
    tokens = np.random.default_rng(0).normal(size=(2, 64, 16)).astype(np.float32)
    assert not patch_foreground(images, 8)[:, 0].any()
    picture = _opened(pca_maps(images, tokens, axis="axial", cell_px=64))
    second_map = picture[64 + 22 + 12 + 22 :][:64, 68:132]
    assert (second_map[:8, :8] == 0).all()
    assert (second_map[32, 32] > 0).any()


def test_tokens_of_fewer_than_three_dimensions_or_without_any_head_still_make_a_picture() -> None:
    images = np.zeros((1, 56, 56), np.uint8)
    assert pca_maps(images, np.zeros((1, 16, 8), np.float32), axis="axial").startswith(b"\x89PNG")


def test_views_stand_in_lines_under_their_titles_with_their_channels_as_they_are() -> None:
    slices = head(n=11, channels=2, size_px=56)
    rows = [[View(f"view {number}", slice_) for number, slice_ in enumerate(part)] for part in (slices[:2], slices[2:])]
    picture = _opened(views(rows, channels=["T1w", "FLAIR"], cell_px=56))[..., 0]
    step, line = 56 + 16, 22 + 60 + 56 + 12
    assert picture.shape == (2 * line - 12, 9 * step - 16)
    for number, (x, y) in {1: (1, 0), 3: (1, 1), 10: (8, 1)}.items():  # the first of a line carries the channels' names
        cells = picture[y * line + 22 :, x * step : x * step + 56]
        np.testing.assert_array_equal(cells[:56], slices[number, 0])
        np.testing.assert_array_equal(cells[60:116], slices[number, 1])
    assert not np.array_equal(picture[line + 22 : line + 78, :56], slices[2, 0])
    assert (picture[:line, 3 * step :] == 0).all()


def test_what_tells_is_coloured_and_signed_where_it_lies_for_and_against() -> None:
    effects = np.zeros(16)
    effects[5], effects[14] = 0.4, -0.2  # the second patch of the second row, the third of the last
    black = np.zeros((1, 64, 64), np.uint8)
    slices = (TellingSlice("at 30%", black, 1.0, effects, place=0),)
    told = Told("sub-01", ("T1w",), slices, np.array([1.0, -0.5, 0.0]))
    picture = _opened(telling([told], axis="axial", most_of_slice=1.0, most_of_patch=0.2, cell_px=128)).astype(int)
    bars, patches = picture[22:74], picture[22 + 52 + 128 + 4 :][:128, :128]
    assert (bars == FOR).all(axis=2).sum() > 1.5 * (bars == AGAINST).all(axis=2).sum() > 0
    for (row, column), colour in {(1, 1): FOR, (3, 2): AGAINST}.items():
        patch = patches[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_allclose(patch[28, 28], 0.8 * np.array(colour), atol=1)  # 0.4 is more than a full colour
        assert (patch[16, 10:22] == 255).all()  # the level stroke of both signs
        assert (patch[10:22, 16] == 255).all() == (colour == FOR)
    assert not patches[40:90, 70:110].any()  # no effect, no colour
