"""Multi-crop of MRI stacks on the training device: two large and some small views of each, a whole batch at a time.

What comes in is `uint8 (B, 3, H, W)`, as the store holds it; what goes out is normalised float. For each view:

1. channels: with some probability a view keeps only a random part of the modalities that the stack has, so that two
   views of a slice may show it in different contrasts (a channel of zeros is absent);
2. place: a window of random area and aspect, centred on a random point of the head, resized bilinearly;
3. flip; 4. grey values (see `contrast`); 5. the encoder's own normalisation.

Every draw belongs to a place in the global batch (see `draws`), and no step waits for the device.

Departures from DINOv2 (random resized crops anywhere, bicubic with antialiasing; arXiv 2304.07193): windows are
centred where there is head, since half of a slice is air; bilinear, from a grid fine enough that nothing is skipped
(`_oversampling`). No hue, saturation, greyscale, solarise: they mix contrasts or slices. Where `Colours` are set
instead of `Contrast`, windows and colours are DINOv2's own (see `natural`). With `teacher_views` "own", the teacher is
shown the large views' windows in a choice of channels and a contrast of its own: what two contrasts of one place share
is its anatomy, and patches of the same place can then be compared (see `masks.head_patches`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bfp.batches.absent import Fill, fill_absent, present_in
from bfp.pretraining import natural
from bfp.pretraining.contrast import Contrast, altered
from bfp.pretraining.device import send
from bfp.pretraining.draws import Draws

LARGE_CROPS = 2
CELL = 8  # pixels; the head is looked for on a grid of such cells
# Every non-empty choice among three channels.
CHOICES = tuple(tuple(bool(number >> channel & 1) for channel in range(3)) for number in range(1, 8))


class Crops(NamedTuple):
    """Normalised views, crop-major (all stacks' first view, then all stacks' second, …).

    large (2·B, 3, large_px, large_px), small (L·B, 3, small_px, small_px).
    taught: as large, the same windows as the teacher sees them; None where it sees what the student sees.
    head: bool (2·B, large_px, large_px), where a large view shows head; None with taught.
    """

    large: Tensor
    small: Tensor
    taught: Tensor | None = None
    head: Tensor | None = None


@dataclass(frozen=True, slots=True)
class CropSettings:
    """The views' geometry and channels.

    large_px, small_px: side of a view; small_count: small views of a stack, 0 or more.
    large_scale, small_scale: smallest and largest share of the stack's area that a view covers, in (0, 1].
    aspect: smallest and largest width over height of a window, drawn log-uniformly.
    flip: probability of a left-right flip, in [0, 1]. Brains are not symmetric, so 0 unless sides do not matter.
    modality_views: probability that a view shows only some of the stack's modalities, in [0, 1].
    fill: what stands in a channel that is not shown, or absent from the stack (see `batches.absent`).
    teacher_views: "same", the teacher sees the student's large views; "own", their windows in a contrast of its own.
    contrast: the changes of grey values; with `Colours`, windows lie anywhere, and are resized as DINOv2 does.
    """

    large_px: int
    small_px: int
    small_count: int
    large_scale: tuple[float, float]
    small_scale: tuple[float, float]
    contrast: Contrast | natural.Colours
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    modality_views: float = 0.0
    fill: Fill = "zero"
    teacher_views: Literal["same", "own"] = "same"


class Normalisation(NamedTuple):
    """The encoder's own: mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def multi_crop(stacks: Tensor, draws: Draws, *, settings: CropSettings, normalisation: Normalisation) -> Crops:
    """The views of a batch. stacks: uint8 (B, 3, H, W) on the training device, at the places of `draws`."""
    device = stacks.device
    contrast = settings.contrast
    head = None if isinstance(contrast, natural.Colours) else _head_cells(stacks)  # (B, rows · columns)
    pixels = stacks.float() / 255
    present = present_in(stacks)  # (B, 3)

    def windows(kind: str, count: int, size_px: int, scale: tuple[float, float]) -> Tensor:
        """(count · B, 3, size_px, size_px), before any change of channels or grey values."""
        if head is None:
            drawn = _crop_major(draws.uniform(f"{kind} window", count, natural.WINDOW_DRAWS)).numpy()
            return natural.windowed(
                pixels, drawn, size_px=size_px, scale=scale, aspect=settings.aspect, flip=settings.flip
            )
        window = _windows(
            head,
            torch.arange(len(stacks), device=device).repeat(count),  # the stack of each view
            send(_crop_major(draws.uniform(f"{kind} window", count, 6)), device),
            shape=stacks.shape[-2:],
            scale=scale,
            aspect=settings.aspect,
            flip=settings.flip,
        )
        return _resized(pixels, window, count=count, size_px=size_px, scale=scale)

    def seen(resized: Tensor, kind: str, count: int) -> Tensor:
        """The views as a network sees them: channels chosen, grey values changed, normalised."""

        def draw(what: str, *shape: int) -> Tensor:
            return _crop_major(draws.uniform(f"{kind} {what}", count, *shape))

        chosen = send(draw("channels", len(CHOICES) + 1), device)
        shown = _shown(present.repeat(count, 1), chosen, probability=settings.modality_views)
        if isinstance(contrast, natural.Colours):
            filled = fill_absent(resized, shown, settings.fill)
            changed = natural.altered(filled, draw, settings=contrast, large=kind != "small")
        else:  # filled at the end: who uses the encoder will repeat a channel as it is
            noise = draws.torch_seed(f"{kind} noise")
            changed = altered(fill_absent(resized, shown), draw, settings=contrast, noise_seed=noise)
            changed = changed if settings.fill == "zero" else fill_absent(changed, shown, settings.fill)
        mean, std = send(torch.tensor(normalisation), device)[..., None, None]  # (3, 1, 1) each
        return changed.sub_(mean).div_(std)

    large = windows("large", LARGE_CROPS, settings.large_px, settings.large_scale)
    small = pixels.new_zeros(0, 3, settings.small_px, settings.small_px)
    if settings.small_count:
        resized = windows("small", settings.small_count, settings.small_px, settings.small_scale)
        small = seen(resized, "small", settings.small_count)
    if settings.teacher_views == "same":
        return Crops(seen(large, "large", LARGE_CROPS), small)
    lit = large.amax(1) > 0
    taught = seen(large, "taught", LARGE_CROPS)
    return Crops(seen(large, "large", LARGE_CROPS), small, taught, lit)


def _crop_major(drawn: np.ndarray) -> Tensor:
    """(B, count, …) -> (count · B, …)."""
    return torch.from_numpy(drawn.swapaxes(0, 1).reshape(-1, *drawn.shape[2:]))


class Windows(NamedTuple):
    """Windows in a stack, in pixels, each (n,). flipped is -1 where the window is mirrored, else 1."""

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    flipped: Tensor


def _head_cells(stacks: Tensor) -> Tensor:
    """The cumulated share of the head in each cell of CELL × CELL pixels, row by row: (B, cells), last column 1."""
    lit = (stacks.amax(1, keepdim=True) > 0).float()  # (B, 1, H, W)
    share = F.avg_pool2d(lit, CELL, ceil_mode=True, count_include_pad=False).flatten(1)
    # A blank stack has its windows anywhere.
    cumulated = (share + 1e-6).cumsum(1)
    return cumulated / cumulated[:, -1:]


def _windows(
    head: Tensor,
    source: Tensor,
    drawn: Tensor,
    *,
    shape: torch.Size,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
) -> Windows:
    """Windows centred on random points of the head, moved to lie inside the stack. drawn: (n, 6), uniform."""
    H, W = shape
    area = (scale[0] + drawn[:, 0] * (scale[1] - scale[0])) * (H * W)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = torch.exp(low + drawn[:, 1] * (high - low))  # width over height
    width = torch.sqrt(area * ratio).clamp(max=W)
    height = torch.sqrt(area / ratio).clamp(max=H)
    columns = -(-W // CELL)
    cell = torch.searchsorted(head[source], drawn[:, 2:3].contiguous()).squeeze(1).clamp(max=head.shape[1] - 1)
    centre_y = (cell // columns + drawn[:, 3]) * CELL
    centre_x = (cell % columns + drawn[:, 4]) * CELL
    return Windows(
        left=torch.minimum((centre_x - width / 2).clamp(min=0), W - width),
        top=torch.minimum((centre_y - height / 2).clamp(min=0), H - height),
        width=width,
        height=height,
        flipped=torch.where(drawn[:, 5] < flip, -1.0, 1.0),
    )


def _resized(pixels: Tensor, windows: Windows, *, count: int, size_px: int, scale: tuple[float, float]) -> Tensor:
    """The windows' pixels, resized to (n, 3, size_px, size_px); windows are crop-major, n = count · B."""
    H, W = pixels.shape[-2:]
    finer = _oversampling(H, W, size_px=size_px, largest=scale[1])
    size = size_px * finer
    # Centres of the output's pixels, from -1 to 1 across the window; grid_sample wants them across the stack.
    across = (torch.arange(size, device=pixels.device) + 0.5) * (2 / size) - 1
    x = (windows.left + windows.width / 2) * (2 / W) - 1 + across[:, None] * windows.flipped * windows.width / W
    y = (windows.top + windows.height / 2) * (2 / H) - 1 + across[:, None] * windows.height / H
    grid = torch.stack([x.T[:, None, :].expand(-1, size, -1), y.T[:, :, None].expand(-1, -1, size)], dim=-1)
    sampled = torch.cat(
        [
            F.grid_sample(pixels, own, mode="bilinear", padding_mode="border", align_corners=False)
            for own in grid.chunk(count)
        ]
    )
    return F.avg_pool2d(sampled, finer) if finer > 1 else sampled


def _oversampling(height: int, width: int, *, size_px: int, largest: float) -> int:
    """How many times finer to sample than the view, so that no pixel of the largest window is skipped.

    Bilinear interpolation looks at two pixels a side, so up to a shrinking of 1.5 it sees all of them well enough.
    """
    shrink = math.sqrt(height * width * largest) / size_px
    return max(1, math.ceil(shrink / 1.5))


def _shown(present: Tensor, drawn: Tensor, *, probability: float) -> Tensor:
    """Which channels a view shows: bool (n, 3). present: bool (n, 3); drawn: (n, 8), uniform.

    With the given probability a random non-empty choice of those present, all choices alike; else all of them.
    """
    choices = send(torch.tensor(CHOICES), present.device)  # (7, 3)
    possible = (choices[None] <= present[:, None]).all(2)  # (n, 7)
    chosen = choices[(drawn[:, :-1] + possible).argmax(1)]  # the largest draw among the possible
    return torch.where(drawn[:, -1:] < probability, chosen & present, present)
