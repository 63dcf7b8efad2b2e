"""What the networks see, to be looked at: each change of a stack alone at its strongest, and some of its views whole.

By the functions that make the views of training. Pixels come back as they are before the encoder's normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bfp.batches.absent import fill_absent, present_in
from bfp.pretraining import contrast, natural
from bfp.pretraining.contrast import BLUR_SIGMA_PX, Contrast
from bfp.pretraining.crops import LARGE_CROPS, CropSettings, Normalisation, multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.natural import Colours

AS_THEY_ARE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LARGEST = 1 - 2**-24  # of what `Draws` gives
VIEWS = 9


class Shown(NamedTuple):
    """A name with its value, and what it looks like: uint8 (3, H, W)."""

    title: str
    pixels: np.ndarray


def changes(stack: Tensor, *, settings: CropSettings, seed: int) -> list[Shown]:
    """The stack as it is, then after each change alone that the settings make. stack: uint8 (3, H, W) on the CPU."""
    pixels = stack[None] / 255
    made = settings.contrast
    found = _in_colours(pixels, made) if isinstance(made, Colours) else _in_contrast(pixels, made, seed)
    present = present_in(pixels)
    hidden = []
    if settings.modality_views and present.sum() > 1:
        first = present & (present.cumsum(1) == 1)
        hidden = [("one modality", fill_absent(pixels, first, settings.fill))]
    flipped = [("flip", pixels.flip(-1))] if settings.flip else []
    return [_shown(title, changed) for title, changed in [("as stored", pixels), *hidden, *flipped, *found]]


def views(stack: Tensor, *, settings: CropSettings, seed: int) -> list[Shown]:
    """Views of the stack as the first step would draw them: global ones, the teacher's own if any, some local ones."""
    draws = Draws(seed, 0, first=0, count=1, total=1)
    crops = multi_crop(stack[None], draws, settings=settings, normalisation=AS_THEY_ARE)
    named = [(f"global {number + 1}", crops.large[number]) for number in range(LARGE_CROPS)]
    if crops.taught is not None:
        named += [(f"teacher {number + 1}", crops.taught[number]) for number in range(LARGE_CROPS)]
    named += [(f"local {number + 1}", view) for number, view in enumerate(crops.small[: VIEWS - len(named)])]
    return [_shown(title, view[None]) for title, view in named]


def _in_contrast(pixels: Tensor, settings: Contrast, seed: int) -> Iterator[tuple[str, Tensor]]:
    field = torch.from_numpy(Draws(seed, 0, first=0, count=1, total=1).uniform("bias", 3 * contrast.BIAS_WAVES**2))

    def strongest(what: str, *shape: int) -> Tensor:
        if what == "bias":  # which scales any field to its strength
            return field[:, : int(np.prod(shape))].reshape(1, *shape)
        return torch.full((1, *shape), 0.0 if what == "blur" else LARGEST)  # a blur comes where the draw is small

    words = {
        "gamma": f"gamma {np.exp(settings.gamma):.2f}",
        "contrast": f"contrast × {1 + settings.contrast:g}",
        "brightness": f"brightness + {settings.brightness:g}",
        "blur": f"blur, {BLUR_SIGMA_PX:g} px",
        "bias_field": f"bias field ± {settings.bias_field:g}",
        "noise": f"noise, {settings.noise:g}",
    }
    for name, title in words.items():
        if value := getattr(settings, name):
            alone = Contrast(**{name: value}, per_channel=settings.per_channel)
            yield title, contrast.altered(pixels, strongest, settings=alone, noise_seed=seed)


def _in_colours(pixels: Tensor, settings: Colours) -> Iterator[tuple[str, Tensor]]:
    named = ("brightness", "contrast", "saturation", "hue")
    for name, change in zip(named, natural.JITTER, strict=True):
        value = getattr(settings, name)
        if settings.jitter and value:
            title, factor = (
                (f"hue + {value:g} turns", value) if name == "hue" else (f"{name} × {1 + value:g}", 1 + value)
            )
            yield title, change(pixels, torch.tensor(factor))
    if settings.greyscale:
        yield "greyscale", natural.greyscale(pixels).expand(-1, 3, -1, -1)
    if any(settings.blur):
        sigma = natural.BLUR_SIGMA_PX[1]
        yield f"blur, {sigma:g} px", natural.blurred(pixels, torch.tensor([sigma]))
    if settings.solarise:
        yield "solarise", natural.solarised(pixels)


def _shown(title: str, pixels: Tensor) -> Shown:
    return Shown(title, (pixels[0] * 255).round().clamp(0, 255).to(torch.uint8).numpy())
