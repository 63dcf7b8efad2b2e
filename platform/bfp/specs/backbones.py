"""What validation must know of a backbone, from a generated table, so that checking a spec imports no timm.

`backbones.json` holds one row a timm ViT: patch size, native image size, and the mean and standard deviation that its
pixels are normalised with. `tests/specs/test_backbones.py` compares every row with the installed timm and
`make schemas` writes it anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """One timm ViT: patch and native image size in pixels, pixel mean and standard deviation (of values in 0..1)."""

    patch_px: int
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@cache
def backbones() -> dict[str, BackboneFacts]:
    """Every known backbone by its timm name, without the weights' tag ("vit_small_patch14_dinov2")."""
    rows = json.loads(Path(__file__).with_name("backbones.json").read_text())
    return {
        name: BackboneFacts(row["patch_px"], row["size_px"], tuple(row["mean"]), tuple(row["std"]))
        for name, row in rows.items()
    }
