"""The model folder of a fine-tuning on sessions: an encoder, a head, and all that is needed to use them on raw scans.

    <folder>/encoder/            the encoder as plain timm loads it (`bfp.models.encoder`)
    <folder>/head.safetensors    the head, one head for each fold of its cross-validation, and where training sessions
                                 lie (`bfp.models.typical`)
    <folder>/model.json          classes, pooling, modalities, preprocessing, recalibration, threshold, figures, hash of
                                 the head; written last
    <folder>/README.md           the model card

The head names its classes too, so neither of the two files can be exchanged without the other. `infer` needs nothing
else. A session's vector is made of the spread of each stack's patch tokens (`bfp.features.describe`), pooled. Where the
encoder was tuned, that of each fold was another one, which is not kept: there are no heads of folds then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bfp.errors import InputError
from bfp.models.attention import AttentionMap, AttentionPooling
from bfp.models.linear import LinearHead
from bfp.models.pooling import Pooling
from bfp.models.recalibration import Recalibration, Threshold
from bfp.models.typical import Typical
from bfp.storage import Place

CONTRACT = 3
"""The version of the folder's files, and of the vectors that a head takes; another one is refused."""


class _Attention(BaseModel):
    """An AttentionPooling in model.json; its maps stand beside the heads."""

    model_config = ConfigDict(extra="forbid")

    maps: Annotated[int, Field(ge=1)]
    within: Pooling


class _Told(BaseModel):
    """What model.json must hold to be used."""

    target: str
    classes: Annotated[list[str], Field(min_length=2)]
    pooling: Pooling | _Attention
    shown: Annotated[list[str], Field(min_length=1)]
    preprocessing: dict[str, Any]
    folds: Annotated[int, Field(ge=0)]
    typical: bool
    recalibration: Recalibration
    threshold: Threshold | None
    head_sha256: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Of n sessions: probabilities float64 (n, K) of the classes, as the head says them and recalibrated, and how far
    the fold heads are apart.

    spread: float64 (n,), the standard deviation over the fold heads of the predicted class's probability; NaN without
    fold heads.
    positive: bool (n,), at or above the threshold; None with more than two classes. distances, atypical: float64 (n,),
    as of `bfp.models.typical`, None where that is not known.
    """

    probabilities: np.ndarray
    recalibrated: np.ndarray
    spread: np.ndarray
    positive: np.ndarray | None
    distances: np.ndarray | None
    atypical: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class SessionModel:
    """The head and how it is used.

    target: the column that was learned. shown: the modalities that the encoder was shown.
    preprocessing: as in the store that it was trained on. typical: where the training sessions lie, None
    where encoder or pooling were trained on them. recalibration,
    threshold: from held-out sessions; None with more than two classes. facts: plain values for a reader (data, figures,
    versions).
    """

    target: str
    classes: tuple[str, ...]
    pooling: Pooling | AttentionPooling
    shown: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    head: LinearHead
    fold_heads: tuple[LinearHead, ...]
    typical: Typical | None
    recalibration: Recalibration
    threshold: Threshold | None
    facts: Mapping[str, Any]

    def predict(self, vectors: np.ndarray) -> Prediction:
        """vectors: float (n, F), as `pooling` makes them."""
        probabilities = self.head.probabilities(vectors)
        chosen = probabilities.argmax(axis=1)
        by_fold = [head.probabilities(vectors)[np.arange(len(vectors)), chosen] for head in self.fold_heads]
        distances = self.typical.distances(vectors) if self.typical else None
        return Prediction(
            probabilities=probabilities,
            recalibrated=self.recalibration(probabilities),
            spread=np.std(by_fold, axis=0) if by_fold else np.full(len(vectors), np.nan),
            positive=probabilities[:, 1] >= self.threshold.probability if self.threshold else None,
            distances=distances,
            atypical=self.typical.atypical(distances) if self.typical and distances is not None else None,
        )


def save_model(model: SessionModel, folder: Place, *, card: str) -> None:
    """Write everything but the encoder, which stands there already. card: in Markdown."""
    tensors = model.head.tensors("head.")
    for number, head in enumerate(model.fold_heads):
        tensors |= head.tensors(f"folds.{number}.")
    if model.typical:
        tensors |= model.typical.tensors("typical.")
    pooling = model.pooling
    if isinstance(pooling, AttentionPooling):
        for number, each in enumerate(pooling.maps):
            tensors |= each.tensors(f"maps.{number}.")
    weights = safetensors.numpy.save(tensors, metadata={"classes": json.dumps(model.classes)})
    told = {
        "contract": CONTRACT,
        "type": "classification",
        "target": model.target,
        "classes": list(model.classes),
        "pooling": asdict(pooling)
        if isinstance(pooling, Pooling)
        else {"maps": len(pooling.maps), "within": asdict(pooling.within)},
        "shown": list(model.shown),
        "preprocessing": dict(model.preprocessing),
        "folds": len(model.fold_heads),
        "typical": model.typical is not None,
        "recalibration": asdict(model.recalibration),
        "threshold": asdict(model.threshold) if model.threshold else None,
        "head_sha256": hashlib.sha256(weights).hexdigest(),
        "facts": dict(model.facts),
    }
    (folder / "head.safetensors").write(weights)
    (folder / "README.md").write(card.encode())
    (folder / "model.json").write(json.dumps(told, indent=1, ensure_ascii=False).encode())


def model_folder(at: Place) -> Place:
    """The model's folder, for itself or a finetune run. Raises InputError where there is none."""
    for folder in (at, at / "model"):
        if (folder / "model.json").exists():
            return folder
    raise InputError(
        f"{at}: no finished model there (no model.json); give a finetune run that is done, or its model folder"
    )


def read_description(folder: Place) -> dict[str, Any]:
    """model.json, without the weights. Raises InputError where it is of a newer contract, or damaged."""
    file = folder / "model.json"
    try:
        told: dict[str, Any] = json.loads(file.read())
        contract, kind = int(told["contract"]), told["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a file that bfp wrote, or damaged: {error!r}") from error
    if contract > CONTRACT:
        raise InputError(
            f"{file}: written by a newer bfp (contract {contract}; this one reads up to {CONTRACT}); update bfp"
        )
    if contract < CONTRACT:
        raise InputError(
            f"{file}: written by an older bfp (contract {contract}; this one is {CONTRACT}), which made other "
            "vectors of a session or kept less of its training; fine-tune again"
        )
    if kind != "classification":
        raise InputError(f"{file}: a model for {kind}; this bfp predicts with classifiers only")
    try:
        _Told.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}: {first['msg']}; fine-tune again, or bring the file back") from error
    return told


def load_model(folder: Place) -> SessionModel:
    """The inverse of `save_model`. Raises InputError where a file is damaged, or not the other one's."""
    told, file = read_description(folder), folder / "head.safetensors"
    data = file.read()
    found = hashlib.sha256(data).hexdigest()
    if found != told["head_sha256"]:
        raise InputError(
            f"{file}: not the head that model.json was written with (SHA-256 {found[:16]}, expected "
            f"{told['head_sha256'][:16]}); fine-tune again, or bring the folder back whole"
        )
    try:
        if (classes := _classes_of(data)) != told["classes"]:
            raise InputError(
                f"{folder / 'model.json'}: its classes are {', '.join(told['classes'])}, and those of the head "
                f"{', '.join(classes)}, in this order; fine-tune again, or bring the folder back whole"
            )
        tensors = safetensors.numpy.load(data)
        model = SessionModel(
            target=told["target"],
            classes=tuple(told["classes"]),
            pooling=_pooling(told["pooling"], tensors),
            shown=tuple(told["shown"]),
            preprocessing=told["preprocessing"],
            head=LinearHead.from_tensors(tensors, "head."),
            fold_heads=tuple(LinearHead.from_tensors(tensors, f"folds.{number}.") for number in range(told["folds"])),
            typical=Typical.from_tensors(tensors, "typical.") if told["typical"] else None,
            recalibration=TypeAdapter(Recalibration).validate_python(told["recalibration"]),
            threshold=TypeAdapter(Threshold | None).validate_python(told["threshold"]),
            facts=told["facts"],
        )
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: not a whole model: {error!r}; fine-tune it again") from error
    for head in (model.head, *model.fold_heads):
        if fault := head.fault(class_count=len(classes), length=model.head.centre.size):
            raise InputError(f"{file}: {fault}; fine-tune again")
    if model.typical and (fault := model.typical.fault(length=model.head.centre.size)):
        raise InputError(f"{file}: {fault}; fine-tune again")
    return model


def _pooling(told: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Pooling | AttentionPooling:
    """As model.json tells it; the maps of attention stand beside the heads."""
    within = told.get("within", told)
    plain = Pooling(**{**within, "parts": tuple(within["parts"])})
    if "maps" not in told:
        return plain
    maps = tuple(AttentionMap.from_tensors(tensors, f"maps.{number}.") for number in range(told["maps"]))
    return AttentionPooling(maps, plain)


def _classes_of(data: bytes) -> list[str]:
    """The classes in the metadata of a safetensors file: its first 8 bytes are the length of a JSON header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    classes: list[str] = json.loads(header["__metadata__"]["classes"])
    return classes
