"""An encoder without a head, as `infer` uses it: a pretraining's folder, whose config.json says how scans are prepared.

    <folder>/config.json    beside what timm reads, in `bfp`: the stores with their preprocessing, the imaging versions,
                            the modalities whose own stacks it saw (null: all), the hash of the weights' file
                            (`bfp.models.encoder.export`)

It makes the embeddings of a session, and predicts nothing. Light: no torch.
"""

from __future__ import annotations

from typing import Any

from bfp.errors import InputError
from bfp.models.folders import CONFIG, read_config
from bfp.storage import Place

TYPE = "embedding"
"""What stands in the place of a task's type."""


def encoder_alone(at: Place) -> Place | None:
    """The folder of an encoder without a head, for itself or a pretraining's run; None where there is a head, or no
    encoder."""
    folders = (at, at / "model")
    if any((folder / "model.json").exists() for folder in folders):
        return None
    return next((folder for folder in folders if (folder / CONFIG).exists()), None)


def read_encoder_alone(folder: Place) -> dict[str, Any]:
    """What model.json tells of a model, of an encoder without a head. Raises InputError where its config.json does not
    say how scans are prepared for it, or says it in several ways."""
    config, file = read_config(folder), folder / CONFIG
    told = config.get("bfp", {})
    if not told.get("stores"):
        raise InputError(
            f"{file}: tells no preprocessing, since bfp did not pretrain it: scans cannot be prepared for it; "
            "give a pretrain run, what `bfp export` made of one, or a finetune run"
        )
    if lacking := [name for name in ("run", "bfp", "imaging", "modalities", "weights_sha256") if name not in told]:
        raise InputError(
            f"{file}: written by an older bfp, which did not tell {', '.join(lacking)}; export the encoder again from "
            "a checkpoint (bfp export RUN FOLDER --step N), or pretrain again"
        )
    preprocessings = [store["preprocessing"] for store in told["stores"]]
    if any(each != preprocessings[0] for each in preprocessings):
        raise InputError(
            f"{file}: pretrained on {len(preprocessings)} stores of more than one preprocessing: which one new scans "
            "should have is not told; fine-tune it on one of them, and give that model"
        )
    if len(told["imaging"]) != 1:
        raise InputError(
            f"{file}: pretrained on stacks of imaging versions {', '.join(map(str, told['imaging']))}: which of them "
            "new scans should be is not told; fine-tune it on a store of one, and give that model"
        )
    stacks = preprocessings[0]["stacks"]
    if stacks["form"] == "modalities":
        shown = stacks["channels"]
    else:
        shown = [name for name in stacks["modalities"] if name in (told["modalities"] or [name])]
    return {
        "type": TYPE,
        "target": "embeddings",
        "shown": shown,
        "preprocessing": preprocessings[0],
        "facts": {
            "run": told["run"],
            "bfp": told["bfp"],
            "imaging": told["imaging"][0],
            "encoder": config["architecture"],
            "weights": told["weights_sha256"],
            "figures": {},
        },
    }
