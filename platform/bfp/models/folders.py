"""Where the encoder stands in a folder that a spec may name, and what its config.json says. Light: no torch.

<run>/model/            of a pretraining            <run>/model/encoder/    of a fine-tuning
"""

from __future__ import annotations

import json
from typing import Any

from bfp.errors import InputError
from bfp.storage import Place

CONFIG, WEIGHTS, MASK_TOKEN, CARD = "config.json", "model.safetensors", "mask_token.safetensors", "README.md"


def encoder_folder(at: Place) -> Place:
    """The folder with config.json, for a run, a model or the encoder itself. Raises InputError where there is none."""
    for folder in (at, at / "encoder", at / "model", at / "model" / "encoder"):
        if (folder / CONFIG).exists():
            return folder
    if (at / "spec.yaml").exists():
        raise InputError(f"{at}: this run has no finished encoder; let its pretraining end, or name another")
    raise InputError(f"{at}: no encoder there; expected a run, a model's folder, or a folder with {CONFIG}")


def read_config(folder: Place) -> dict[str, Any]:
    """The encoder's config.json. Raises InputError where it is not one of a timm model."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read())
        for name in ("architecture", "model_args", "pretrained_cfg"):
            config[name]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / CONFIG}: not the config of a timm model ({error!r})") from error
    return config
