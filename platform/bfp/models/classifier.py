"""The model folder of a classifier: an encoder, a head, and all that is needed to use them on raw scans.

    <folder>/encoder/            the encoder as plain timm loads it (`bfp.models.encoder`)
    <folder>/head.safetensors    the head, and one head for each fold of its cross-validation
    <folder>/model.json          classes, pooling, modalities, preprocessing, figures; written last
    <folder>/README.md           the model card

`infer` needs nothing else. A session's vector is made of each stack's class token and spread of patch
tokens (`bfp.features.describe`), pooled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from bfp.errors import InputError
from bfp.models.linear import LinearHead
from bfp.models.pooling import Pooling
from bfp.storage import Place

CONTRACT = 1
"""The version of the folder's files; a newer one is refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Of n sessions: probabilities float64 (n, K) of the classes, and how far the fold heads are apart.

    spread: float64 (n,), the standard deviation over the fold heads of the predicted class's probability.
    """

    probabilities: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """The head and how it is used.

    target: the column that was learned. shown: the modalities that the encoder was shown.
    preprocessing: as in the store that it was trained on. facts: plain values for a reader (data, figures, versions).
    """

    target: str
    classes: tuple[str, ...]
    pooling: Pooling
    shown: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    head: LinearHead
    fold_heads: tuple[LinearHead, ...]
    facts: Mapping[str, Any]

    def predict(self, vectors: np.ndarray) -> Prediction:
        """vectors: float (n, F), as `pooling` makes them."""
        probabilities = self.head.probabilities(vectors)
        chosen = probabilities.argmax(axis=1)
        by_fold = [head.probabilities(vectors)[np.arange(len(vectors)), chosen] for head in self.fold_heads]
        return Prediction(probabilities, np.std(by_fold, axis=0))


def save_classifier(classifier: Classifier, folder: Place, *, card: str) -> None:
    """Write everything but the encoder, which stands there already. card: in Markdown."""
    tensors = classifier.head.tensors("head.")
    for number, head in enumerate(classifier.fold_heads):
        tensors |= head.tensors(f"folds.{number}.")
    told = {
        "contract": CONTRACT,
        "type": "classification",
        "target": classifier.target,
        "classes": list(classifier.classes),
        "pooling": asdict(classifier.pooling),
        "shown": list(classifier.shown),
        "preprocessing": dict(classifier.preprocessing),
        "folds": len(classifier.fold_heads),
        "facts": dict(classifier.facts),
    }
    (folder / "head.safetensors").write(safetensors.numpy.save(tensors))
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
        contract, kind = told["contract"], told["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a file that bfp wrote, or damaged: {error!r}") from error
    if contract > CONTRACT:
        raise InputError(
            f"{file}: written by a newer bfp (contract {contract}; this one reads up to {CONTRACT}); update bfp"
        )
    if kind != "classification":
        raise InputError(f"{file}: a model for {kind}; this bfp predicts with classifiers only")
    return told


def load_classifier(folder: Place) -> Classifier:
    """The inverse of `save_classifier`. Raises InputError where a file is damaged."""
    told, file = read_description(folder), folder / "head.safetensors"
    try:
        tensors = safetensors.numpy.load(file.read())
        return Classifier(
            target=told["target"],
            classes=tuple(told["classes"]),
            pooling=Pooling(**{**told["pooling"], "parts": tuple(told["pooling"]["parts"])}),
            shown=tuple(told["shown"]),
            preprocessing=told["preprocessing"],
            head=LinearHead.from_tensors(tensors, "head."),
            fold_heads=tuple(LinearHead.from_tensors(tensors, f"folds.{number}.") for number in range(told["folds"])),
            facts=told["facts"],
        )
    except (KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: not a whole model: {error!r}; fine-tune it again") from error
