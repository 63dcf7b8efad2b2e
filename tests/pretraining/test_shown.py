from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bfp.pretraining.contrast import Contrast
from bfp.pretraining.crops import CropSettings, multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.natural import Colours
from bfp.pretraining.shown import AS_THEY_ARE, changes, views
from tests.pretraining.makers import make_stacks

STACK = make_stacks(1, shape=(56, 56))[0]
MRI = CropSettings(
    large_px=56,
    small_px=28,
    small_count=12,
    large_scale=(0.32, 1.0),
    small_scale=(0.05, 0.32),
    modality_views=0.5,
    contrast=Contrast(brightness=0.2, contrast=0.3, gamma=0.3, bias_field=0.3, noise=0.05, blur=0.3),
)
NATURAL = dataclasses.replace(
    MRI,
    modality_views=0.0,
    flip=0.5,
    contrast=Colours(
        jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, greyscale=0.2, blur=(0, 0.9, 0.5), solarise=1
    ),
)


@pytest.mark.parametrize(
    ("settings", "titles"),
    [
        (MRI, ["one modality", "gamma", "contrast", "brightness", "blur", "bias field", "noise"]),
        (NATURAL, ["flip", "brightness", "contrast", "saturation", "hue", "greyscale", "blur", "solarise"]),
    ],
)
def test_every_change_that_is_made_is_shown_alone_and_can_be_told_from_the_stack(settings, titles):
    stored, *changed = changes(STACK, settings=settings, seed=0)
    assert np.array_equal(stored.pixels, STACK)
    for title, (named, pixels) in zip(titles, changed, strict=True):
        assert named.startswith(title)
        assert (np.abs(pixels.astype(int) - stored.pixels) > 3).any()


def test_what_is_turned_off_is_not_shown():
    off = dataclasses.replace(MRI, modality_views=0.0, contrast=Contrast(noise=0.1))
    assert [title for title, _ in changes(STACK, settings=off, seed=0)] == ["as stored", "noise, 0.1"]
    alone = STACK.clone()
    alone[1:] = 0
    assert "one modality" not in [title for title, _ in changes(alone, settings=MRI, seed=0)]


def test_views_are_those_of_the_first_step():
    own = dataclasses.replace(MRI, teacher_views="own")
    shown = dict(views(STACK, settings=own, seed=4))
    assert list(shown) == ["global 1", "global 2", "teacher 1", "teacher 2", *(f"local {n}" for n in range(1, 6))]
    crops = multi_crop(STACK[None], Draws(4, 0, first=0, count=1, total=1), settings=own, normalisation=AS_THEY_ARE)
    for name, view in {"global 2": crops.large[1], "teacher 1": crops.taught[0], "local 5": crops.small[4]}.items():
        assert np.abs(shown[name] - 255 * view.numpy()).max() <= 0.5 + 1e-3
    assert len(views(STACK, settings=dataclasses.replace(MRI, small_count=0), seed=4)) == 2
