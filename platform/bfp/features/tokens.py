"""Stacks to tokens: the one place where pixels are made ready for an encoder and sent through it.

A channel of zeros is absent, or hidden on purpose; it is filled as it was when the encoder was trained. uint8 becomes
0..1, then the encoder's own mean and standard deviation are applied; the class token is what the encoder's final norm
gives, patch tokens too, registers are dropped. float32 comes out whatever the encoder computes in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bfp.batches.absent import fill_absent, present_in
from bfp.models.encoder import LoadedEncoder


class Tokens(NamedTuple):
    """Of b stacks: class tokens float32 (b, D), patch tokens float32 (b, N, D), rows of patches from the top."""

    cls: Tensor
    patches: Tensor


@torch.inference_mode()
def tokens(encoder: LoadedEncoder, pixels: np.ndarray | Tensor) -> Tokens:
    """The tokens of a batch of stacks, on the encoder's device. pixels: uint8 (b, C, H, W) of the encoder's size."""
    model = encoder.model
    out = model.forward_features(images(encoder, torch.as_tensor(pixels))).float()  # (b, 1 + registers + N, D)
    return Tokens(cls=out[:, 0], patches=out[:, model.num_prefix_tokens :])


def images(encoder: LoadedEncoder, pixels: Tensor) -> Tensor:
    """What the encoder takes, on its device and in its type, of stacks uint8 (b, C, H, W)."""
    parameter = next(encoder.model.parameters())
    stacks = pixels.to(parameter.device)
    filled = fill_absent(stacks, present_in(stacks), encoder.fill)
    mean, std = (torch.tensor(of, device=stacks.device)[:, None, None] for of in (encoder.mean, encoder.std))
    return ((filled.float() / 255 - mean) / std).to(parameter.dtype)
