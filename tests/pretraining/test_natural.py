"""DINOv2's own augmentation, each change against torchvision's with the same parameters, view by view."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from bfp.pretraining import natural
from bfp.pretraining.crops import CropSettings, Normalisation, multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.natural import Colours
from tests.pretraining.makers import make_stacks

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OFF = Colours(jitter=0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, greyscale=0, blur=(0, 0, 0), solarise=0)
ALWAYS = dataclasses.replace(OFF, jitter=1, greyscale=0.2, blur=(1, 1, 1), solarise=0.5)
SETTINGS = CropSettings(
    large_px=56,
    small_px=28,
    small_count=3,
    large_scale=(0.32, 1.0),
    small_scale=(0.05, 0.32),
    contrast=OFF,
    flip=0.5,
)
ONE_GREY_VALUE = 1 / 255


def colourful(count: int, *, shape: tuple[int, int] = (40, 52)) -> torch.Tensor:
    """uint8 (count, 3, H, W) with every hue, pure grey, black and white in it."""
    stacks = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, *shape), dtype=np.uint8))
    stacks[:, :, :4] = stacks[:, :1, :4]
    stacks[:, :, 4, :8], stacks[:, :, 4, 8:16] = 0, 255
    return stacks


def crop(stacks, settings=SETTINGS, *, step=0, first=0, total=None):
    draws = Draws(2, step, first=first, count=len(stacks), total=total or len(stacks))
    return multi_crop(stacks, draws, settings=settings, normalisation=PLAIN)


@pytest.mark.parametrize("shape", [(224, 224), (60, 72), (30, 300)])
def test_windows_are_drawn_as_torchvision_draws_them(shape):
    """By the share of their area, their aspect and their place; where none fits, the central one."""
    scale, aspect, count = (0.32, 1.0), (3 / 4, 4 / 3), 4000
    drawn = np.random.default_rng(0).random((count, natural.WINDOW_DRAWS), dtype=np.float32)
    left, top, width, height = natural.windows(drawn, shape=shape, scale=scale, aspect=aspect)
    torch.manual_seed(0)
    blank = torch.zeros(1, *shape)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(aspect)) for _ in range(count)]).T
    for ours, their in zip((top, left, height, width), theirs, strict=True):
        assert ours.mean() == pytest.approx(their.mean(), abs=0.02 * max(shape))
        assert ours.std() == pytest.approx(their.std(), abs=0.02 * max(shape))
        assert (ours.min(), ours.max()) == pytest.approx((their.min(), their.max()), abs=0.06 * max(shape))
    assert ((left >= 0) & (left + width <= shape[1]) & (top >= 0) & (top + height <= shape[0])).all()


@pytest.mark.parametrize("size_px", [28, 98])
def test_a_window_is_resized_as_torchvision_resizes_it(size_px):
    """To 1e-5 on floats that do not overshoot, and within rounding, twice, of what it makes of bytes."""
    stacks, scale, aspect = colourful(6, shape=(90, 112)), (0.05, 1.0), (3 / 4, 4 / 3)
    drawn = np.random.default_rng(3).random((12, natural.WINDOW_DRAWS), dtype=np.float32)
    placed = natural.windows(drawn, shape=(90, 112), scale=scale, aspect=aspect).T.tolist()

    def furthest(pixels: torch.Tensor, source: torch.Tensor) -> float:
        ours = natural.windowed(pixels, drawn, size_px=size_px, scale=scale, aspect=aspect, flip=0.5)
        expected = torch.stack(
            [
                reference.resized_crop(
                    source[number % 6],
                    top,
                    left,
                    height,
                    width,
                    [size_px] * 2,
                    InterpolationMode.BICUBIC,
                    antialias=True,
                )
                for number, (left, top, width, height) in enumerate(placed)
            ]
        )
        expected[drawn[:, -1] < 0.5] = expected[drawn[:, -1] < 0.5].flip(-1)
        return float((ours - (expected / 255 if expected.dtype == torch.uint8 else expected)).abs().max())

    soft = 0.4 + 0.2 * stacks / 255
    assert furthest(soft, soft) < 1e-5
    assert furthest(stacks / 255, stacks) < 1.5 * ONE_GREY_VALUE


@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"),
    [
        (natural.brightened, reference.adjust_brightness, [0.6, 1.0, 1.4]),
        (natural.contrasted, reference.adjust_contrast, [0.6, 1.0, 1.4]),
        (natural.saturated, reference.adjust_saturation, [0.8, 1.0, 1.2]),
        (natural.hue_shifted, reference.adjust_hue, [-0.1, 0.0, 0.1]),
        (
            lambda pixels, sigma: natural.blurred(pixels, sigma[:, 0, 0, 0]),
            lambda image, sigma: reference.gaussian_blur(image, [natural.BLUR_PX] * 2, [sigma] * 2),
            [0.1, 0.9, 2.0],
        ),
        (lambda pixels, _: natural.greyscale(pixels), lambda image, _: reference.rgb_to_grayscale(image), [0, 0, 0]),
        (
            lambda pixels, _: natural.solarised(pixels),
            lambda image, _: reference.solarize(image, 128 / (255 if image.is_floating_point() else 1)),
            [0, 0, 0],
        ),
    ],
)
def test_each_change_is_torchvision_s(ours, theirs, parameters):
    """To 2e-6 on floats; on bytes, where it rounds and, of luma, cuts off, to a grey value and a half."""
    stacks = colourful(3)
    changed = ours(stacks / 255, torch.tensor(parameters, dtype=torch.float32)[:, None, None, None])
    for view, stack, parameter in zip(changed, stacks, parameters, strict=True):
        assert (view - theirs(stack / 255, parameter)).abs().max() < 2e-6
        assert (view - theirs(stack, parameter) / 255).abs().max() < 1.5 * ONE_GREY_VALUE


def test_jitter_is_in_the_order_that_was_drawn():
    """With two changes that do not commute, each view equals torchvision in one of the two orders; both occur."""
    stacks = colourful(24)
    colours = dataclasses.replace(OFF, jitter=1, saturation=0, hue=0)
    draws = Draws(2, 0, first=0, count=24, total=24)
    changed = natural.altered(
        stacks / 255, lambda what, *shape: torch.from_numpy(draws.uniform(what, *shape)), settings=colours, large=False
    )
    signed = draws.uniform("jitter factors", 4) * 2 - 1
    orders = []
    for view, stack, (brightness, contrast) in zip(changed, stacks / 255, 1 + 0.4 * signed[:, :2], strict=True):
        first = reference.adjust_contrast(reference.adjust_brightness(stack, brightness), contrast)
        other = reference.adjust_brightness(reference.adjust_contrast(stack, contrast), brightness)
        near = [bool((view - expected).abs().max() < 5e-6) for expected in (first, other)]
        assert any(near)
        orders.append(tuple(near))
    assert {(True, False), (False, True)} <= set(orders)


def test_each_change_strikes_as_often_as_it_is_told_to():
    stacks = make_stacks(1, shape=(28, 28)).expand(600, -1, -1, -1)
    still = dataclasses.replace(SETTINGS, large_scale=(1, 1), aspect=(1, 1), flip=0, small_count=0, large_px=28)
    shares = {}
    for name, value in {"jitter": 0.8, "greyscale": 0.2, "blur": (0.0, 0.9, 0.5), "solarise": 0.2}.items():
        views = crop(stacks, dataclasses.replace(still, contrast=dataclasses.replace(OFF, **{name: value}))).large
        changed = ((views - stacks[:1] / 255).abs() > 1e-4).flatten(1).any(1)
        shares[name] = changed.unflatten(0, (2, 600)).float().mean(1).tolist()
    assert shares["jitter"] == pytest.approx([0.8, 0.8], abs=0.05)
    assert shares["greyscale"] == pytest.approx([0.2, 0.2], abs=0.05)
    assert shares["blur"] == pytest.approx([0.0, 0.9 * 0.95], abs=0.07)  # the smallest sigmas change nothing
    assert shares["solarise"] == pytest.approx([0.0, 0.2], abs=0.05)


def test_two_workers_make_the_crops_of_one_and_views_differ():
    settings = dataclasses.replace(SETTINGS, contrast=ALWAYS)
    stacks = colourful(7)
    whole = crop(stacks, settings, step=5)
    parts = [crop(stacks[:3], settings, step=5, total=7), crop(stacks[3:], settings, step=5, first=3, total=7)]
    for views, count in (("large", 2), ("small", 3)):
        joined = torch.cat([getattr(part, views).unflatten(0, (count, -1)) for part in parts], dim=1).flatten(0, 1)
        assert torch.allclose(joined, getattr(whole, views), atol=1e-5)
    first, second = whole.large.unflatten(0, (2, 7))
    assert ((first - second).abs().amax((1, 2, 3)) > 0.1).all()


def test_nothing_is_asked_of_the_device():
    """On `meta` there are shapes and no values: whatever would wait for one fails."""
    crops = crop(
        torch.empty(4, 3, 56, 56, dtype=torch.uint8, device="meta"), dataclasses.replace(SETTINGS, contrast=ALWAYS)
    )
    assert crops.large.shape == (8, 3, 56, 56)
    assert crops.small.shape == (12, 3, 28, 28)
