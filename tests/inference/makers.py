"""A cohort of small heads as real NIfTI files, and a small model that fits them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from bfp.imaging import IMAGING_VERSION
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import encode
from bfp.models.encoder import export, load
from bfp.models.linear import LinearHead
from bfp.models.outputs import Classes, Hazards, Margin, Numbers, Outputs
from bfp.models.pooling import Pooling
from bfp.models.recalibration import Platt, Threshold
from bfp.models.session_model import SessionModel, save_model
from bfp.models.tensor_files import SEAL, seal_of
from bfp.models.typical import Typical, fit_typical
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import Place, place

CLASSES = ("CN", "AD")
ALL = ("T1w", "T2w", "FLAIR")
WIDTH, BANDS = 16, 3


def preprocessing(**fields) -> dict:
    told = {"spacing_mm": 7.0, "slice_spacing_mm": 14.0, "size": 28, "register": "header", **fields}
    return Preprocessing.model_validate(told).model_dump(mode="json")


def write_head(file: Path, *, seed: int) -> None:
    """An ellipsoid with some texture, 5.5 × 6 × 5 mm voxels."""
    shape = (28, 32, 26)
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1.2, 1.2, extent) for extent in shape), indexing="ij")
    inside = x**2 + y**2 + z**2 < 1
    voxels = np.where(inside, random.uniform(200, 900, shape) * (1.5 + y), 0).astype(np.int16)
    ras_from_voxel = np.diag([5.5, 6.0, 5.0, 1.0])
    ras_from_voxel[:3, 3] = -75, -90, -60
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(voxels, grid=Grid(shape, ras_from_voxel)))


def write_subject(bids: Path, subject: str, *, modalities=ALL, seed: int = 0) -> None:
    for number, modality in enumerate(modalities):
        file = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_{modality}.nii.gz"
        write_head(file, seed=1000 * seed + 10 * int(subject) + number)


OF_CLASSES = Classes(CLASSES, Platt(0.5, 0.1), Threshold(0.7, 0.9, 0.5))
OF_NUMBERS = Numbers(trained_from=-0.07, trained_to=0.5, margin=Margin(0.9, 0.75))
OF_HAZARDS = Hazards(np.linspace(-1, 1, 41))
ENDS = {"": 0.8, "_low": 0.7, "_high": 0.9}


def make_model(folder: Path, *, shown=ALL, seed: int = 0, outputs: Outputs = OF_CLASSES, **fields) -> Place:
    """A model with random weights, as a finetune run leaves it."""
    model, random = place(str(folder)), np.random.default_rng(seed)
    shape = {"width": WIDTH, "depth": 1, "heads": 2}
    encoder = load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=28, **shape, seed=seed)
    export(encoder, model / "encoder", card="", provenance={})
    told = preprocessing(**fields)
    parts = shown if told["stacks"]["form"] == "neighbours" else ("",)
    length = len(parts) * BANDS * WIDTH
    facts = {
        "run": "ad-vs-cn",
        "bfp": "0.1",
        "imaging": IMAGING_VERSION,
        "encoder": "random",
        "weights": encoder.description["weights"],
        "figures": {f"{name}{end}": value for name in ("auroc", "mae", "c_index") for end, value in ENDS.items()},
    }
    classes = len(outputs.names) if isinstance(outputs, Classes) else 1
    learned = SessionModel(
        target="diagnosis" if isinstance(outputs, Classes) else "age",
        outputs=outputs,
        pooling=Pooling(BANDS, tuple(parts)),
        shown=tuple(shown),
        preprocessing=told,
        head=_a_head(random, classes, length),
        fold_heads=tuple(_a_head(random, classes, length) for _ in range(3)),
        typical=a_typical(random.normal(loc=5, size=(40, length))),
        facts=facts,
    )
    save_model(learned, model, card="")
    return model


def rewrite(model: Place, **change) -> None:
    """Its model.json with other values, and what seals it: as another bfp would have written them."""
    told = json.loads((model / "model.json").read()) | change
    weights = safetensors.numpy.load((model / "head.safetensors").read())
    data = safetensors.numpy.save(weights, metadata={SEAL: seal_of(told)})
    (model / "head.safetensors").write(data)
    (model / "model.json").write(json.dumps(told | {"head_sha256": hashlib.sha256(data).hexdigest()}).encode())


def make_encoder(
    folder: Path, *stores: dict, modalities: list[str] | None = None, imaging: tuple[int, ...] = (IMAGING_VERSION,)
) -> Place:
    """An encoder without a head, as a pretraining leaves it. stores: the preprocessing of each; none: one of ours."""
    shape = {"width": WIDTH, "depth": 1, "heads": 2}
    encoder = load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=28, **shape)
    told = [{"uri": "s", "snapshot": 1, "preprocessing": each} for each in stores or [preprocessing()]]
    provenance = {"run": "brains", "bfp": "0.1", "stores": told, "imaging": list(imaging), "modalities": modalities}
    export(encoder, place(str(folder)), card="", provenance=provenance)
    return place(str(folder))


def _a_head(random: np.random.Generator, outputs: int, length: int) -> LinearHead:
    weights = random.normal(size=(outputs, length)) / 9
    return LinearHead(np.zeros(length), np.ones(length), weights, np.zeros(outputs))


def a_typical(vectors: np.ndarray) -> Typical:
    return fit_typical(vectors, np.arange(len(vectors)) % 4, complete=np.ones(len(vectors), dtype=bool))
