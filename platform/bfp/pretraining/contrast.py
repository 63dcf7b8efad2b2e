"""What a scanner could have done to the same head: changes of grey values that are safe for MRI, on the device.

In the order of the physics: the sequence's contrast (gamma, contrast, brightness), the resolution (blur), the coil's
bias field, the receiver's noise. Each view draws its own strengths, for each channel by itself or for all alike. What
is exactly zero is background or an absent channel, and stays zero.

Pixels are float (n, 3, H, W) in [0, 1]; results are clipped to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bfp.pretraining.device import send

BIAS_WAVES = 3  # cosine waves of the bias field along each side
NOISE_MARGIN = 64  # pixels by which the noise tile is larger than a view
BLUR_SIGMA_PX = 1.5
DARKEST = 1e-4  # below a grey value's step; logarithms of 0 are slow, and the background is set to 0 at the end


@dataclass(frozen=True, slots=True)
class Contrast:
    """Strengths; 0 turns a change off. Grey values range over [0, 1].

    brightness: largest shift, 0 to 1. contrast: largest relative change of the distance from the head's mean, 0 to <1.
    gamma: largest change of log gamma, 0 to <1. bias_field: largest relative change by a smooth field, 0 to <1.
    noise: largest standard deviation, 0 to 1. blur: probability of a blur, 0 to 1.
    per_channel: draw for each channel (they are different modalities) or for the stack (neighbouring slices of one).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    bias_field: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    per_channel: bool = True


Draw = Callable[..., Tensor]  # draw("gamma", 3) -> uniform (n, 3) on the host


def altered(pixels: Tensor, draw: Draw, *, settings: Contrast, noise_seed: int) -> Tensor:
    """The pixels after all changes."""
    channels = 3 if settings.per_channel else 1

    def drawn(what: str, *shape: int) -> Tensor:
        return send(draw(what, *shape), pixels.device)

    head = pixels.sign()  # 1 in the head, 0 outside
    # What follows works in place on a copy: on a CPU most of its time would go into new memory.
    values = pixels.clone()
    if settings.gamma:
        exponent = torch.exp(settings.gamma * _signed(drawn("gamma", channels)))[:, :, None, None]
        values.clamp_(min=DARKEST).log_().mul_(exponent).exp_()  # a power, at a third of the cost
    if settings.contrast or settings.brightness:
        slope = 1 + settings.contrast * _signed(drawn("contrast", channels))[:, :, None, None]
        shift = settings.brightness * _signed(drawn("brightness", channels))[:, :, None, None]
        mean = values.sum((2, 3), keepdim=True) / head.sum((2, 3), keepdim=True).clamp(min=1)
        values.mul_(slope).add_(mean * (1 - slope) + shift)
    if settings.blur:
        chosen = (draw("blur", 1).squeeze(1) < settings.blur).nonzero().squeeze(1)  # known on the host: no waiting
        chosen = send(chosen, pixels.device)
        amount = drawn("blur amount", 1)[chosen][:, :, None, None]
        sharp = values[chosen]
        values[chosen] = torch.lerp(sharp, blurred(sharp), amount)
    if settings.bias_field:
        waves = drawn("bias", channels, BIAS_WAVES, BIAS_WAVES)
        values.mul_(bias_field(waves, values, strength=settings.bias_field).add_(1))
    if settings.noise:
        deviation = (settings.noise * drawn("noise", channels))[:, :, None, None]
        values.addcmul_(deviation, _noise(values, drawn("noise place", 3, 2), seed=noise_seed))
    return values.mul_(head).clamp_(0, 1)


def blurred(pixels: Tensor) -> Tensor:
    """The pixels after a Gaussian of BLUR_SIGMA_PX, cut off at the edges.

    As products with one matrix a side: on a CPU six times as fast as a convolution with one kernel a channel.
    """
    down, across = (_blur_matrix(size, pixels) for size in pixels.shape[-2:])
    return down @ (pixels @ across.T)


def _blur_matrix(size: int, like: Tensor) -> Tensor:
    """(size, size): row i holds the weights with which the pixels enter pixel i."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / BLUR_SIGMA_PX) ** 2)
    return weights / weights.sum(1, keepdim=True)


def bias_field(drawn: Tensor, like: Tensor, *, strength: float) -> Tensor:
    """A smooth field (n, channels, H, W) within ±strength. drawn: (n, channels, waves, waves), uniform."""
    weights = _signed(drawn)
    weights[..., 0, 0] = 0  # a constant is a change of contrast, not of place
    weights = weights / weights.abs().sum((2, 3), keepdim=True).clamp(min=1e-6) * strength
    down, across = (_waves(size, like) for size in like.shape[-2:])
    return down.T @ weights @ across


def _waves(size: int, like: Tensor) -> Tensor:
    """cos(π · k · x), k = 0 … BIAS_WAVES - 1, x from 0 to 1 over the pixels: (BIAS_WAVES, size)."""
    x = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size
    return torch.cos(torch.pi * torch.arange(BIAS_WAVES, device=like.device)[:, None] * x)


def _noise(pixels: Tensor, place: Tensor, *, seed: int) -> Tensor:
    """Standard normal noise like the pixels: each view and channel has its own part of a tile, new at each step.

    The tile is the same for all workers; a generator for each view, which could be drawn by place too, would be slow.
    """
    H, W = pixels.shape[-2:]
    generator = torch.Generator(pixels.device).manual_seed(seed)
    tile = torch.randn(H + NOISE_MARGIN, W + NOISE_MARGIN, generator=generator, device=pixels.device)
    parts = tile.unfold(0, H, 1).unfold(1, W, 1)  # (MARGIN + 1, MARGIN + 1, H, W), a view
    row, column = (place * (NOISE_MARGIN + 1)).long().unbind(-1)  # (n, 3)
    return parts[row, column]


def _signed(drawn: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1)."""
    return drawn * 2 - 1
