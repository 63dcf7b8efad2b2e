"""The table of backbones as the installed timm gives it: what `backbones.json` must hold.

    python -m tests.specs.timm_table      writes platform/bfp/specs/backbones.json anew

A backbone is a ViT of timm's own family (`vit_…` of its module vision_transformer); its facts are those of its default
weights. The patch size stands in the name alone, and a model made on the meta device bears it out in the test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bfp.specs

FILE = Path(bfp.specs.__file__).with_name("backbones.json")


def rows_of_timm() -> dict[str, dict[str, Any]]:
    """One row a backbone, by name."""
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


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """The table as its file holds it: a line a backbone."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text_of(rows_of_timm()))
