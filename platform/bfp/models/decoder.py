"""The decoder of a segmentation: from patch tokens to a class for each pixel.

Patch tokens say what lies in each square of 14 or 16 pixels, not where in it an edge runs: so they are enlarged step by
step, each time twice as large, and at every step the stack's own pixels at that size stand beside them. It is light
(about 0.3 million parameters on a ViT-S), since it is learned from few subjects.

    tokens (b, N, F) -> 1 × 1 -> (b, W, n, n) -> [twice as large, pixels beside, two 3 × 3] … -> 1 × 1 -> (b, K, S, S)

Letters: `b` stacks, `N` = n · n patches, `F` width of the tokens of all layers, `W` width of the decoder, `K` classes
with the background, `S` size of a stack.

`layers: intermediate` takes the tokens after four blocks at even distances instead of the last one's alone (Ranftl et
al. 2021, arXiv 2103.13413; DINOv2's linear segmentation): edges and grey levels stand more in the lower ones.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layers = Literal["last", "intermediate"]

INTERMEDIATE = 4
GROUPS = 8
"""Of group normalisation, which knows nothing of the other stacks of a batch."""
NARROWEST = 16
DROPOUT = 0.1
"""Of whole channels of tokens: without it the decoder learns a few training subjects by heart."""
GREYS = 4  # the three channels of a stack, and its height
GREY_SCALE = 10.0
"""What these are multiplied with, or at first they are drowned by the W channels of tokens beside them. Regions on T1w
of eleven real heads, 400 steps, Dice of deep grey matter and ventricles: without 0.18 and 0.66, times 5 0.42 and 0.75,
times 10 0.48 and 0.82."""


def blocks_of(layers: Layers, *, depth: int) -> tuple[int, ...]:
    """The blocks, from 0, whose tokens the decoder takes."""
    if layers == "last":
        return (depth - 1,)
    count = min(INTERMEDIATE, depth)
    return tuple((number + 1) * depth // count - 1 for number in range(count))


class Decoder(nn.Module):
    """features: F; classes: K; patches: n, along a side of a stack; seed: of its first weights."""

    def __init__(self, *, features: int, classes: int, width: int, patches: int, size_px: int, seed: int = 0) -> None:
        super().__init__()
        self.sizes_px = _sizes_px(patches, size_px)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.LayerNorm(features)
            self.project = nn.Linear(features, width)
            self.drop = nn.Dropout2d(DROPOUT)
            widths = [max(NARROWEST, (width >> step) // GROUPS * GROUPS) for step in range(len(self.sizes_px))]
            incoming = [width, *widths[:-1]]
            self.steps = nn.ModuleList(
                _Step(before + GREYS, after) for before, after in zip(incoming, widths, strict=True)
            )
            self.classify = nn.Conv2d(widths[-1], classes, kernel_size=1)

    def forward(self, tokens: Tensor, pixels: Tensor, heights: Tensor) -> Tensor:
        """Logits (b, K, S, S).

        tokens: float (b, N, F); pixels: uint8 (b, 3, S, S), zeros in what is not shown; heights: float (b,), 0 at the
        lowest stack of a session, 1 at the top one.
        """
        rows = round(tokens.shape[1] ** 0.5)
        maps = self.project(self.norm(tokens)).transpose(1, 2).unflatten(2, (rows, rows))  # (b, W, n, n)
        maps = self.drop(maps)
        greys = torch.cat([pixels.float() / 255, heights[:, None, None, None].expand_as(pixels[:, :1])], dim=1)
        greys = GREY_SCALE * greys
        for size_px, step in zip(self.sizes_px, self.steps, strict=True):
            maps = F.interpolate(maps, size=(size_px, size_px), mode="bilinear", align_corners=False)
            beside = F.interpolate(greys, size=(size_px, size_px), mode="area")
            maps = step(torch.cat([maps, beside], dim=1))
        logits: Tensor = self.classify(maps)
        return logits


class _Step(nn.Sequential):
    """Two 3 × 3 convolutions."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, after),
            nn.GELU(),
            nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, after),
            nn.GELU(),
        )


def _sizes_px(patches: int, size_px: int) -> list[int]:
    """Of the maps at each step: twice the one before, until the next would be beyond the stack's, then that."""
    sizes, size = [], 2 * patches
    while size < size_px:
        sizes.append(size)
        size *= 2
    return [*sizes, size_px]
