"""Multi-crop on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bfp.pretraining.crops import Crops, CropSettings, Normalisation, multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.natural import Colours
from tests.pretraining.makers import make_recipe, make_stacks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

MRI = dataclasses.replace(make_recipe().crops, flip=0.5, teacher_views="own")
NATURAL = dataclasses.replace(
    MRI,
    contrast=Colours(
        jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, greyscale=0.2, blur=(1, 0.9, 0.5), solarise=1
    ),
)


def views(stacks: torch.Tensor, settings: CropSettings) -> Crops:
    draws = Draws(1, 2, first=0, count=len(stacks), total=len(stacks))
    return multi_crop(stacks, draws, settings=settings, normalisation=Normalisation((0.4,) * 3, (0.2,) * 3))


@pytest.mark.parametrize("settings", [MRI, NATURAL])
def test_the_host_never_waits_for_the_gpu(settings):
    stacks = make_stacks(4).cuda()
    views(stacks, settings)  # the first use of a kernel may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        views(stacks, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
