"""Stacks to tokens: the one place where pixels are normalised and sent through an encoder.

uint8 becomes 0..1, then the encoder's own mean and standard deviation are applied; the class token is what the
encoder's final norm gives, patch tokens too, registers are dropped. float32 comes out whatever the encoder computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


class Tokens(NamedTuple):
    """Of b stacks: class tokens float32 (b, D), patch tokens float32 (b, N, D), rows of patches from the top."""

    cls: Tensor
    patches: Tensor


@torch.inference_mode()
def tokens(
    model: VisionTransformer, pixels: np.ndarray | Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tokens:
    """The tokens of a batch of stacks, on the model's device.

    pixels: uint8 (b, C, H, W) of the model's size. mean, std: of each channel, for values in 0..1.
    The model is used as it is: call `model.eval()` before.
    """
    parameter = next(model.parameters())
    stacks = torch.as_tensor(pixels).to(parameter.device)
    mean_of, std_of = (torch.tensor(values, device=parameter.device).view(1, -1, 1, 1) for values in (mean, std))
    images = (stacks.float() / 255 - mean_of) / std_of
    out = model.forward_features(images.to(parameter.dtype)).float()  # (b, 1 + registers + N, D)
    return Tokens(cls=out[:, 0], patches=out[:, model.num_prefix_tokens :])
