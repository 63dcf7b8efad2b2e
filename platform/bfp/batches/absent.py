"""What is shown in place of a modality that a stack lacks, or that is hidden from the encoder on purpose.

One function for all who need it: batches, modality dropout, the benchmark's missing modalities and inference. So an
encoder meets the same picture of "not there" wherever it is used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Fill = Literal["zero", "repeat"]


def present_in(pixels: Tensor) -> Tensor:
    """Which channels show anything: bool (B, C). The store holds zeros where there is no scan; pixels: (B, C, H, W)."""
    return pixels.flatten(2).amax(2) > 0


def fill_absent(pixels: Tensor, present: Tensor, how: Fill = "zero") -> Tensor:
    """The stacks with every channel that is not present replaced.

    pixels: (B, C, H, W) of any type; present: bool (B, C) on the same device. zero: by zeros. repeat: by the stack's
    first present channel, and by zeros where it has none.
    """
    shown = pixels * present[:, :, None, None]
    if how == "zero":
        return shown
    first = present.int().argmax(dim=1)  # (B,), 0 also where none is present
    repeated = shown[torch.arange(len(pixels), device=pixels.device), first].unsqueeze(1)  # (B, 1, H, W)
    return torch.where(present[:, :, None, None], shown, repeated)
