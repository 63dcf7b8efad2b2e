"""What validation and plans must know of a backbone, from a generated table, so that they import no timm.

`backbones.json` holds one row a timm ViT: patch size, native image size, the mean and standard deviation that its
pixels are normalised with, and how large it is. `tests/specs/test_backbones.py` compares every row with the installed
timm, of a few their size too, and `make schemas` writes it anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """One timm ViT: patch and native image size in pixels, pixel mean and standard deviation (of values in 0..1).

    width: of a token; depth: blocks; prefix: tokens before the patches. block_products: multiply-adds of a block's
    linear maps for one token. parameters: of all of it but the positions and the classifier.
    """

    patch_px: int
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: int
    depth: int
    prefix: int
    block_products: int
    parameters: int


@cache
def backbones() -> dict[str, BackboneFacts]:
    """Every known backbone by its timm name, without the weights' tag ("vit_small_patch14_dinov2")."""
    rows = json.loads(Path(__file__).with_name("backbones.json").read_text())
    return {
        name: BackboneFacts(**{**row, "mean": tuple(row["mean"]), "std": tuple(row["std"])})
        for name, row in rows.items()
    }
