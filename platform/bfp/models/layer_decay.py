"""Layer-wise decay of the learning rate: the deeper below the head, the slower (Clark et al. 2020, arXiv 2003.10555).

As BEiT, MAE, DINOv2 and RETFound have it: block i of d has decay^(d - i), counted from 0; class, register and mask
tokens, positions and the patch embedding decay^(d + 1); the final norm 1, as whatever stands on the encoder.
"""

from __future__ import annotations


def depth_rate(name: str, *, depth: int, layer_decay: float) -> float:
    """The multiplier of one parameter's rate. name: of a timm ViT's parameter; depth: its number of blocks."""
    first, *below = name.split(".")
    if first in ("norm", "fc_norm"):
        return 1.0
    if first == "blocks":
        return layer_decay ** (depth - int(below[0]))
    return float(layer_decay ** (depth + 1))
