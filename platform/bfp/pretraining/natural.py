"""DINOv2's own augmentation, which was made for photographs: windows anywhere, colours, blur, solarise, on the device.

The released training code's (Oquab et al. 2023, arXiv 2304.07193, section 4), a whole batch at a time. In its order:
window, flip, jitter of brightness, contrast, saturation and hue, greyscale, blur, solarise. It takes channels for red,
green and blue. In a stack they are modalities or neighbouring slices, which it mixes: `contrast` is what is meant for
MRI, this is what to compare it with.

The original works on pictures of 8 bits and rounds after each change; here pixels are float in [0, 1] throughout. Apart
from that, changes are torchvision's with the same parameters (`tests/pretraining/test_natural.py` says how close).

Letters: `n` views, crop-major.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bfp.pretraining.device import send

ATTEMPTS = 10  # windows drawn until one lies inside of the stack
WINDOW_DRAWS = 2 * ATTEMPTS + 3
CUBIC = -0.5  # Keys' cubic (1981), as Pillow has it
GREY = (0.2989, 0.587, 0.114)  # shares of red, green and blue
BLUR_PX = 9
BLUR_SIGMA_PX = (0.1, 2.0)
SOLARISE_FROM = 128 / 255


@dataclass(frozen=True, slots=True)
class Colours:
    """Strengths and probabilities, 0 to 1; 0 turns a change off.

    jitter: probability of the four changes that follow, in random order. brightness, contrast, saturation: largest
    change of a factor of 1. hue: largest shift, in turns, up to 0.5. greyscale: probability. blur: probability in the
    first large view, the second, and small ones. solarise: probability in the second large view.
    """

    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    greyscale: float
    blur: tuple[float, float, float]
    solarise: float


# windows --------------------------------------------------------------------------------------------------------------


def windows(
    drawn: np.ndarray, *, shape: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]
) -> np.ndarray:
    """Whole pixels: int (4, n), left, top, width and height of a window in each stack. drawn: (n, WINDOW_DRAWS).

    Area uniform, aspect log-uniform, the first of ATTEMPTS that fits, at any place; else the largest central window
    of an allowed aspect.
    """
    H, W = shape
    tried = drawn[:, : 2 * ATTEMPTS].reshape(len(drawn), ATTEMPTS, 2).astype(np.float64)
    area = (scale[0] + tried[..., 0] * (scale[1] - scale[0])) * (H * W)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + tried[..., 1] * (high - low))  # width over height
    width, height = (np.rint(np.sqrt(square)).astype(int) for square in (area * ratio, area / ratio))  # (n, ATTEMPTS)
    fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
    first = np.arange(len(drawn)), fits.argmax(1)
    width, height, none = width[first], height[first], ~fits[first]
    left, top = (drawn[:, 2 * ATTEMPTS + number] * (room + 1) for number, room in enumerate((W - width, H - height)))
    central_width, central_height = min(W, round(H * aspect[1])), min(H, round(W / aspect[0]))
    return np.stack(
        [
            np.where(none, (W - central_width) // 2, left.astype(int)),
            np.where(none, (H - central_height) // 2, top.astype(int)),
            np.where(none, central_width, width),
            np.where(none, central_height, height),
        ]
    )


def windowed(
    pixels: Tensor,
    drawn: np.ndarray,
    *,
    size_px: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
) -> Tensor:
    """Windows of the stacks, resized and some of them mirrored: (count · B, 3, size_px, size_px).

    pixels: (B, 3, H, W); drawn: (count · B, WINDOW_DRAWS), crop-major. Bicubic with antialiasing.
    """
    B, _, H, W = pixels.shape
    found = np.concatenate([windows(drawn, shape=(H, W), scale=scale, aspect=aspect), [drawn[:, -1] < flip]])
    left, top, width, height, mirrored = send(torch.from_numpy(found), pixels.device)
    across, down = _resampling(left, width, W, size_px), _resampling(top, height, H, size_px)
    across = torch.where(mirrored[:, None, None] > 0, across.flip(1), across)
    views = []
    for own_across, own_down in zip(across.split(B), down.split(B), strict=True):
        rows = (pixels.flatten(1, 2) @ own_across.mT).clamp_(0, 1)  # (B, 3 · H, size_px); bytes cannot overshoot
        rows = rows.unflatten(1, (3, H)).transpose(1, 2).flatten(2)  # (B, H, 3 · size_px)
        views.append((own_down @ rows).unflatten(2, (3, size_px)).transpose(1, 2))
    return torch.cat(views).clamp_(0, 1)


def _resampling(begin: Tensor, length: Tensor, size: int, size_px: int) -> Tensor:
    """(n, size_px, size): row i holds the weights with which the pixels of a side enter pixel i of the view.

    begin, length: int (n,), the window. What lies outside of it is not there, as if it had been cut out first.
    """
    begin, length = begin[:, None, None], length[:, None, None]
    shrink = length / size_px
    place = torch.arange(size, device=begin.device) - begin + 0.5  # in the window, of the pixels' centres
    centre = (torch.arange(size_px, device=begin.device)[:, None] + 0.5) * shrink
    away = ((place - centre) / shrink.clamp(min=1)).abs()
    near = ((CUBIC + 2) * away - (CUBIC + 3)) * away * away + 1
    far = CUBIC * (((away - 5) * away + 8) * away - 4)
    weights = torch.where(away < 1, near, torch.where(away < 2, far, 0))
    weights = weights * ((place > 0) & (place < length))
    return weights / weights.sum(2, keepdim=True)


# colours --------------------------------------------------------------------------------------------------------------


def altered(pixels: Tensor, draw: Callable[..., Tensor], *, settings: Colours, large: bool) -> Tensor:
    """The views after all changes. pixels: float (n, 3, H, W) in [0, 1]; draw as for `contrast.altered`.

    large: whether they are the large views, all first ones before all second ones.
    """
    n, device = len(pixels), pixels.device
    first, second, small = settings.blur
    blurring, solarising = ((first, second), (0.0, settings.solarise)) if large else ((small,), (0.0,))
    jittered = draw("jitter", 1) < settings.jitter
    turns = draw("jitter order", len(JITTER)).argsort(1)  # (n, 4): which change comes at each turn
    signed = draw("jitter factors", len(JITTER)) * 2 - 1
    strengths = torch.tensor([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    factors = send(torch.tensor([1.0, 1.0, 1.0, 0.0]) + signed * strengths, device)
    low, high = BLUR_SIGMA_PX
    sigma = send(low + draw("blur sigma", 1).squeeze(1) * (high - low), device)
    *jitter, grey, soft, solar = _rows(
        [
            *((jittered & (turns == change))[:, turn] for turn in range(len(JITTER)) for change in range(len(JITTER))),
            draw("greyscale", 1)[:, 0] < settings.greyscale,
            draw("blur", 1)[:, 0] < _per_view(blurring, n),
            draw("solarise", 1)[:, 0] < _per_view(solarising, n),
        ],
        device,
    )
    values = pixels.clone()
    for number, rows in enumerate(jitter):
        change = number % len(JITTER)
        if len(rows):
            values[rows] = JITTER[change](values[rows], factors[rows, change, None, None, None])
    if len(grey):
        values[grey] = greyscale(values[grey]).expand(-1, 3, -1, -1)
    if len(soft):
        values[soft] = blurred(values[soft], sigma[soft])
    if len(solar):
        values[solar] = solarised(values[solar])
    return values


def brightened(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor).clamp_(0, 1)


def contrasted(pixels: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(greyscale(pixels).mean((2, 3), keepdim=True), pixels, factor).clamp_(0, 1)


def saturated(pixels: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(greyscale(pixels), pixels, factor).clamp_(0, 1)


def hue_shifted(pixels: Tensor, turns: Tensor) -> Tensor:
    """Hue by so many turns of the colour circle; turns: (n, 1, 1, 1)."""
    red, green, blue = pixels.split(1, 1)
    low, high = pixels.aminmax(dim=1, keepdim=True)
    span = high - low
    safe = torch.where(span > 0, span, 1)  # grey has no hue
    behind = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(high == red, (green - blue) / safe, behind) + 6 * turns  # in sixths of a turn
    # Each colour is lowest through two of six sixths, and rises and falls through one each.
    away = [(number + hue).remainder(6) for number in (5, 3, 1)]
    return torch.cat([high - span * torch.minimum(sixth, 4 - sixth).clamp(0, 1) for sixth in away], dim=1)


JITTER = (brightened, contrasted, saturated, hue_shifted)


def greyscale(pixels: Tensor) -> Tensor:
    """(n, 1, H, W): luma."""
    red, green, blue = pixels.split(1, 1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """After a Gaussian over BLUR_PX pixels, mirrored at the edges; sigma: (n,), each view's own, in pixels."""
    offset = torch.arange(BLUR_PX, device=pixels.device) - BLUR_PX // 2
    taps = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)  # (n, BLUR_PX)
    down, across = (_convolution(taps, size) for size in pixels.shape[-2:])
    return down[:, None] @ pixels @ across[:, None].mT


def _convolution(taps: Tensor, size: int) -> Tensor:
    """(n, size, size): row i holds the weights with which the pixels enter pixel i."""
    place = torch.arange(size, device=taps.device)
    source = (place[:, None] + torch.arange(BLUR_PX, device=taps.device) - BLUR_PX // 2).abs()  # (size, BLUR_PX)
    source = (size - 1) - (size - 1 - source).abs()
    shifts = (source.T[:, :, None] == place).to(taps.dtype)  # (BLUR_PX, size, size)
    return (taps @ shifts.flatten(1)).unflatten(1, (size, size))


def solarised(pixels: Tensor) -> Tensor:
    return torch.where(pixels >= SOLARISE_FROM, 1 - pixels, pixels)


def _per_view(probabilities: Sequence[float], n: int) -> Tensor:
    return torch.tensor(probabilities).repeat_interleave(n // len(probabilities))


def _rows(chosen: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Which views each of the masks (n,) chooses, on the device. They are known on the host: nothing waits."""
    found = [mask.nonzero().squeeze(1) for mask in chosen]
    return send(torch.cat(found), device).split([len(rows) for rows in found])
