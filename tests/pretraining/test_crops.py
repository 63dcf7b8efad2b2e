from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bfp.pretraining.contrast import Contrast, bias_field, blurred
from bfp.pretraining.crops import CropSettings, Normalisation, multi_crop
from bfp.pretraining.draws import Draws
from tests.pretraining.makers import make_recipe, make_stacks

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
STILL = CropSettings(
    large_px=56,
    small_px=28,
    small_count=3,
    large_scale=(1.0, 1.0),
    small_scale=(0.1, 0.3),
    aspect=(1.0, 1.0),
    contrast=Contrast(),
)


def crop(stacks, settings=STILL, *, step=0, first=0, total=None, normalisation=PLAIN):
    draws = Draws(2, step, first=first, count=len(stacks), total=total or len(stacks))
    return multi_crop(stacks, draws, settings=settings, normalisation=normalisation)


def test_views_come_crop_major_normalised_and_sized():
    stacks = make_stacks(3, shape=(56, 56))
    crops = crop(stacks, normalisation=Normalisation((0.1, 0.2, 0.3), (0.5, 0.25, 0.2)))
    assert crops.large.shape == (6, 3, 56, 56)
    assert crops.small.shape == (9, 3, 28, 28)
    expected = (stacks / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 0.2])[
        :, None, None
    ]
    assert torch.allclose(crops.large.unflatten(0, (2, 3)), expected.expand(2, -1, -1, -1, -1), atol=1e-3)


def test_the_teacher_s_own_views_show_the_same_places_in_another_contrast():
    stacks = make_stacks(3, shape=(56, 56))
    plain = crop(stacks, dataclasses.replace(STILL, large_scale=(0.3, 0.6), teacher_views="own"))
    assert torch.equal(plain.taught, plain.large)  # no contrast to change: the same windows
    assert torch.equal(plain.head, plain.large.amax(1) > 0)
    changed = crop(stacks, dataclasses.replace(STILL, contrast=Contrast(brightness=0.3), teacher_views="own"))
    assert not torch.allclose(changed.taught, changed.large, atol=0.01)


def test_what_the_student_sees_does_not_depend_on_the_teacher_s_views():
    stacks = make_stacks(3, shape=(56, 56))
    busy = dataclasses.replace(STILL, modality_views=0.8, contrast=Contrast(brightness=0.3, gamma=0.3, noise=0.1))
    same, own = crop(stacks, busy), crop(stacks, dataclasses.replace(busy, teacher_views="own"))
    assert same.taught is None
    assert torch.equal(same.large, own.large)
    assert torch.equal(same.small, own.small)


def test_no_local_crops_make_an_empty_stack():
    assert crop(make_stacks(2), dataclasses.replace(STILL, small_count=0)).small.shape == (0, 3, 28, 28)


@pytest.mark.parametrize("step", [0, 5])
def test_two_workers_make_the_crops_of_one_with_every_change_on(step):
    settings = make_recipe().crops
    stacks = make_stacks(7)
    whole = crop(stacks, settings, step=step)
    parts = [crop(stacks[:3], settings, step=step, total=7), crop(stacks[3:], settings, step=step, first=3, total=7)]
    for views, count in (("large", 2), ("small", 2)):
        joined = torch.cat([getattr(part, views).unflatten(0, (count, -1)) for part in parts], dim=1).flatten(0, 1)
        assert torch.allclose(joined, getattr(whole, views), atol=1e-5)


def test_a_flip_mirrors_left_and_right_only():
    stacks = make_stacks(2, shape=(56, 56))
    flipped = crop(stacks, dataclasses.replace(STILL, flip=1.0)).large
    assert torch.allclose(flipped, crop(stacks).large.flip(-1), atol=1e-5)


def test_a_window_keeps_its_direction():
    """A ramp across and another one down must still rise that way in every crop."""
    ramp = torch.linspace(10, 250, 72)
    stacks = torch.stack([ramp.expand(60, 72), ramp[:60, None].expand(60, 72), torch.full((60, 72), 9.0)])[None].byte()
    small = crop(stacks).small
    assert (small[:, 0].diff(dim=-1) >= -1e-6).all()
    assert (small[:, 1].diff(dim=-2) >= -1e-6).all()
    assert small[:, 0].diff(dim=-2).abs().max() < 1e-5


def test_small_windows_lie_where_the_head_is():
    stacks = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    stacks[:, :, 8:40, 70:104] = 200
    lit = [float((crop(stacks, step=step).small > 0).float().mean()) for step in range(30)]
    share_of_stack = 32 * 34 / 112**2
    assert np.mean(lit) > 4 * share_of_stack


def test_a_blank_stack_stays_blank_under_every_change():
    crops = crop(torch.zeros(2, 3, 60, 72, dtype=torch.uint8), make_recipe().crops)
    assert (crops.large == 0).all()
    assert (crops.small == 0).all()


def test_shrinking_averages_and_skips_nothing():
    """A chequerboard of single pixels is grey at a fifth of its size, not black or white."""
    board = (torch.arange(140)[:, None] + torch.arange(140)) % 2 * 254 + 1
    settings = dataclasses.replace(STILL, small_scale=(1.0, 1.0), small_count=1)
    small = crop(board.expand(1, 3, 140, 140).to(torch.uint8), settings).small
    assert (small - 0.5).abs().max() < 0.05


def test_modality_views_show_every_choice_of_the_present_channels_and_never_none():
    stacks = make_stacks(40, shape=(56, 56))
    stacks[:, 1] = 0  # absent everywhere
    shown = (crop(stacks, dataclasses.replace(STILL, modality_views=1.0)).large.amax((2, 3)) > 0).int()
    seen = {tuple(row) for row in shown.tolist()}
    assert seen == {(1, 0, 0), (0, 0, 1), (1, 0, 1)}
    first, second = shown.unflatten(0, (2, 40))
    assert (first != second).any()


@pytest.mark.parametrize("fill", ["zero", "repeat"])
def test_a_stack_of_one_modality_is_never_hidden(fill):
    stacks = make_stacks(20, shape=(56, 56))
    stacks[:, [0, 2]] = 0
    views = crop(stacks, dataclasses.replace(STILL, modality_views=1.0, fill=fill)).large
    assert torch.allclose(views[:, 1], (stacks[:, 1] / 255).repeat(2, 1, 1), atol=1e-3)


def test_repeat_shows_one_of_the_shown_channels_where_another_is_hidden():
    stacks = make_stacks(20, shape=(56, 56))
    settings = dataclasses.replace(STILL, modality_views=1.0, fill="repeat")
    views, whole = crop(stacks, settings).large, crop(stacks).large
    same_as = (views[:, :, None] - whole[:, None]).abs().amax((3, 4)) < 1e-5  # (views, channel, channel it shows)
    assert (same_as.sum(2) == 1).all()
    assert same_as.any(1).sum(1).unique().tolist() == [1, 2, 3]


def test_a_repeated_channel_is_repeated_as_it_is_under_every_change():
    stacks = make_stacks(20, shape=(56, 56))
    stacks[:, 1:] = 0
    views = crop(stacks, dataclasses.replace(make_recipe().crops, fill="repeat")).large
    assert views.std() > 0.1
    assert torch.allclose(views, views[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("change", ["brightness", "contrast", "gamma", "bias_field", "noise"])
def test_each_change_changes_the_head_and_leaves_the_background_at_zero(change):
    stacks = make_stacks(4, shape=(56, 56))
    settings = dataclasses.replace(STILL, contrast=Contrast(**{change: 0.3}))
    before, after = crop(stacks).large, crop(stacks, settings).large
    assert (after[before == 0] == 0).all()
    assert (after - before).abs().amax((2, 3)).median() > 0.01
    assert after.min() >= 0
    assert after.max() <= 1


def test_neighbouring_slices_are_changed_alike():
    stacks = make_stacks(3, shape=(56, 56))[:, :1].expand(-1, 3, -1, -1).contiguous()
    contrast = Contrast(brightness=0.2, contrast=0.3, gamma=0.3, bias_field=0.3)
    together = crop(stacks, dataclasses.replace(STILL, contrast=dataclasses.replace(contrast, per_channel=False))).large
    assert torch.equal(together[:, 0], together[:, 2])
    apart = crop(stacks, dataclasses.replace(STILL, contrast=contrast)).large
    assert not torch.allclose(apart[:, 0], apart[:, 2], atol=0.01)


def test_a_bias_field_is_smooth_and_within_its_strength():
    field = bias_field(torch.rand(5, 3, 3, 3), torch.zeros(5, 3, 40, 50), strength=0.3)
    assert field.shape == (5, 3, 40, 50)
    assert field.abs().amax((2, 3)).min() > 0.05
    assert field.abs().max() <= 0.3
    assert field.diff(dim=-1).abs().max() < 0.04


def test_a_blur_keeps_flat_parts_and_the_sum():
    assert torch.allclose(blurred(torch.full((1, 3, 20, 30), 0.7)), torch.tensor(0.7))
    spot = torch.zeros(1, 3, 31, 31)
    spot[..., 15, 15] = 1
    assert torch.allclose(blurred(spot).sum((2, 3)), torch.tensor(1.0), atol=1e-4)
    assert blurred(spot)[0, 0, 15, 15] == pytest.approx(1 / (2 * np.pi * 1.5**2), rel=0.01)
