"""Where the reference numbers of the published DINOv2 code lie, and how its weights are named in ours.

They stand beside the checkout (`../shared/golden`, or BFP_SHARED); tests that need them skip where they are absent.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(os.environ.get("BFP_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference numbers at {GOLDEN} (set BFP_SHARED)")


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def below(everything: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}


def backbone_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published backbone's state dict in the names of `Backbone`."""
    ours = {"mask_token" if key == "mask_token" else f"vit.{timm_name(key)}": value for key, value in published.items()}
    if "vit.reg_token" in ours:  # timm folds the class token's position into the token
        positions = ours["vit.pos_embed"]
        ours |= {"vit.cls_token": ours["vit.cls_token"] + positions[:, :1], "vit.pos_embed": positions[:, 1:]}
    return ours


def timm_name(key: str) -> str:
    key = re.sub(r"mlp\.w12", "mlp.fc1", re.sub(r"mlp\.w3", "mlp.fc2", key))
    return key.replace("register_tokens", "reg_token")


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal within `tolerance` of the reference's largest value."""
    assert ours.shape == theirs.shape
    worst = float((ours.detach() - theirs).abs().max())
    assert worst <= tolerance * float(theirs.abs().max()), (
        f"differs by {worst:.3g}, largest value {theirs.abs().max():.3g}"
    )
