"""The table of backbones as the installed timm gives it: what `backbones.json` must hold.

    python -m tests.specs.timm_table      writes platform/bfp/specs/backbones.json anew

A backbone is a ViT of timm's own family (`vit_…` of its module vision_transformer); its facts are those of its default
weights, and of a model made on the meta device, without weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bfp.specs

FILE = Path(bfp.specs.__file__).with_name("backbones.json")


def rows_of_timm() -> dict[str, dict[str, Any]]:
    """One row a backbone, by name: what its configuration tells."""
    from timm.models import get_pretrained_cfg, list_models

    rows = {}
    for name in sorted(list_models("vit_*", module="vision_transformer")):
        config = get_pretrained_cfg(name)
        rows[name] = {
            "patch_px": int(re.search(r"_patch(\d+)", name)[1]),
            "size_px": config.input_size[-1],
            "mean": list(config.mean),
            "std": list(config.std),
        }
    return rows


def sizes_of_timm(name: str) -> dict[str, int]:
    """How large a backbone is; of all of them that takes a minute and a half."""
    import torch
    from timm.models import create_model

    with torch.device("meta"):
        vit = create_model(name, num_classes=0)
    positions = vit.pos_embed.numel() if vit.pos_embed is not None else 0
    linear = [layer for layer in vit.blocks[0].modules() if isinstance(layer, torch.nn.Linear)]
    return {
        "width": vit.embed_dim,
        "depth": len(vit.blocks),
        "prefix": vit.num_prefix_tokens,
        "block_products": sum(layer.in_features * layer.out_features for layer in linear),
        "parameters": sum(each.numel() for each in vit.parameters()) - positions,
    }


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """The table as its file holds it: a line a backbone."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text_of({name: {**row, **sizes_of_timm(name)} for name, row in rows_of_timm().items()}))
