"""The model folder of a fine-tuning on sessions: an encoder, a head, and all that is needed to use them on raw scans.

    <folder>/encoder/            the encoder as plain timm loads it (`bfp.models.encoder`)
    <folder>/head.safetensors    the head, one head for each fold of its cross-validation, where training sessions lie
                                 (`bfp.models.typical`), and of a survival their held-out log hazards
    <folder>/model.json          type, target, pooling, modalities, preprocessing, figures, hash of the head, and what
                                 the type has of its own (`bfp.models.outputs`); written last
    <folder>/README.md           the model card

    type              of its own in model.json
    classification    classes, recalibration, threshold
    regression        trained_from, trained_to, margin
    survival          nothing

The head's file holds a seal of model.json, and that the hash of the encoder's config.json, so none of the three can be
exchanged or changed without the others (`bfp.models.tensor_files`). `infer` needs nothing else. A session's vector is
made of the spread of each stack's patch tokens (`bfp.features.describe`), pooled. Where the encoder was tuned, that of
each fold was another one, which is not kept: there are no heads of folds then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bfp.errors import InputError
from bfp.models.attention import AttentionMap, AttentionPooling
from bfp.models.linear import LinearHead
from bfp.models.outputs import Classes, Hazards, Margin, Numbers, Outputs, Value
from bfp.models.pooling import Pooling
from bfp.models.recalibration import Recalibration, Threshold
from bfp.models.tensor_files import CONFIG_HASH, SEAL, check_config, check_seal, config_hash, read_written, seal_of
from bfp.models.typical import Typical
from bfp.storage import Place

CONTRACT = 6
"""The version of the folder's files, and of the vectors that a head takes; another one is refused."""

HELD_OUT = "hazards.held_out"
"""The tensor of a survival's log hazards."""


class _Attention(BaseModel):
    """An AttentionPooling in model.json; its maps stand beside the heads."""

    model_config = ConfigDict(extra="forbid")

    maps: Annotated[int, Field(ge=1)]
    within: Pooling


class _Told(BaseModel):
    """What model.json must hold to be used."""

    target: str
    pooling: Pooling | _Attention
    shown: Annotated[list[str], Field(min_length=1)]
    preprocessing: dict[str, Any]
    folds: Annotated[int, Field(ge=0)]
    typical: bool
    encoder_config: str
    head_sha256: str
    facts: dict[str, Any]


class _OfClasses(_Told):
    classes: Annotated[list[str], Field(min_length=2)]
    recalibration: Recalibration
    threshold: Threshold | None


class _OfNumbers(_Told):
    trained_from: Annotated[float, Field(allow_inf_nan=False)]
    trained_to: Annotated[float, Field(allow_inf_nan=False)]
    margin: Margin | None


_TOLD: Mapping[str, type[_Told]] = {"classification": _OfClasses, "regression": _OfNumbers, "survival": _Told}
"""By the type of the task."""


class Prediction(NamedTuple):
    """Of a session: what the head's outputs tell of it, and the spread over the fold heads (`bfp.models.outputs`);
    distance and atypical as of `bfp.models.typical`, None where that is not known; and sentences for a person."""

    told: dict[str, Value]
    distance: float | None
    atypical: float | None
    warnings: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class SessionModel:
    """The head and how it is used.

    target: what was learned, in the columns' words. outputs: what the head's numbers mean. shown: the modalities that
    the encoder was shown. preprocessing: as in the store that it was trained on. typical: where the training sessions
    lie, None where encoder or pooling were trained on them. facts: plain values for a reader (data, figures, versions).
    """

    target: str
    outputs: Outputs
    pooling: Pooling | AttentionPooling
    shown: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    head: LinearHead
    fold_heads: tuple[LinearHead, ...]
    typical: Typical | None
    facts: Mapping[str, Any]

    def predict(self, vector: np.ndarray) -> Prediction:
        """Of a session. vector: float (F,), as `pooling` makes it."""
        told = self.outputs.told(vector[None], self.head, self.fold_heads)
        warnings, distance, atypical = self.outputs.warnings(told), None, None
        if self.typical:
            distances = self.typical.distances(vector[None])
            distance, atypical = float(distances[0]), float(self.typical.atypical(distances)[0])
            warnings += filter(None, [self.typical.warning(atypical)])
        return Prediction(told, distance, atypical, warnings)


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
    if isinstance(model.outputs, Hazards):
        tensors[HELD_OUT] = model.outputs.held_out
    told = {
        "contract": CONTRACT,
        **_stored(model.outputs),
        "target": model.target,
        "pooling": asdict(pooling)
        if isinstance(pooling, Pooling)
        else {"maps": len(pooling.maps), "within": asdict(pooling.within)},
        "shown": list(model.shown),
        "preprocessing": dict(model.preprocessing),
        "folds": len(model.fold_heads),
        "typical": model.typical is not None,
        CONFIG_HASH: config_hash(folder),
        "facts": dict(model.facts),
    }
    weights = safetensors.numpy.save(tensors, metadata={SEAL: seal_of(told)})
    told["head_sha256"] = hashlib.sha256(weights).hexdigest()
    (folder / "head.safetensors").write(weights)
    (folder / "README.md").write(card.encode())
    (folder / "model.json").write(json.dumps(told, indent=1, ensure_ascii=False).encode())


def _stored(outputs: Outputs) -> dict[str, Any]:
    """Their type and what it has of its own in model.json."""
    match outputs:
        case Classes(names, recalibration, threshold):
            return {
                "type": "classification",
                "classes": list(names),
                "recalibration": asdict(recalibration),
                "threshold": asdict(threshold) if threshold else None,
            }
        case Numbers():
            return {"type": "regression", **asdict(outputs)}
        case Hazards():
            return {"type": "survival"}


def _outputs(told: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Outputs:
    """The inverse of `_stored`, of a model.json that was read."""
    match told["type"]:
        case "classification":
            return Classes(
                tuple(told["classes"]),
                TypeAdapter(Recalibration).validate_python(told["recalibration"]),
                TypeAdapter(Threshold | None).validate_python(told["threshold"]),
            )
        case "regression":
            return Numbers(
                told["trained_from"],
                told["trained_to"],
                TypeAdapter(Margin | None).validate_python(told["margin"]),
            )
        case _:
            return Hazards(tensors[HELD_OUT])


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
    if kind not in _TOLD:
        raise InputError(f"{file}: a model for {kind}; this bfp predicts with those for {', '.join(_TOLD)}")
    try:
        _TOLD[kind].model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}: {first['msg']}; fine-tune again, or bring the file back") from error
    return told


def load_model(folder: Place) -> SessionModel:
    """The inverse of `save_model`. Raises InputError where a file is damaged, or not the other one's."""
    told, file = read_description(folder), folder / "head.safetensors"
    data = read_written(file, sha256=told["head_sha256"], what="head")
    try:
        check_seal(told, data, file=folder / "model.json")
        check_config(told, folder)
        tensors = safetensors.numpy.load(data)
        model = SessionModel(
            target=told["target"],
            outputs=_outputs(told, tensors),
            pooling=_pooling(told["pooling"], tensors),
            shown=tuple(told["shown"]),
            preprocessing=told["preprocessing"],
            head=LinearHead.from_tensors(tensors, "head."),
            fold_heads=tuple(LinearHead.from_tensors(tensors, f"folds.{number}.") for number in range(told["folds"])),
            typical=Typical.from_tensors(tensors, "typical.") if told["typical"] else None,
            facts=told["facts"],
        )
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: not a whole model: {error!r}; fine-tune it again") from error
    length = model.head.centre.size
    outputs = len(told.get("classes", [told["target"]]))
    faults = [head.fault(outputs=outputs, length=length) for head in (model.head, *model.fold_heads)]
    faults += [model.typical.fault(length=length)] if model.typical else []
    faults += [model.outputs.fault()] if isinstance(model.outputs, Hazards) else []
    for fault in filter(None, faults):
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
