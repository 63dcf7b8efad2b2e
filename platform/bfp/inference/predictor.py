"""A model that predicts ready sessions: encoder, pooling and heads from one model folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bfp.batches.absent import fill_absent
from bfp.cohorts.sessions import LeftOut
from bfp.errors import InputError
from bfp.features.describe import EncoderVectors
from bfp.imaging import SHOWN_HEIGHTS
from bfp.inference.ready import Ready
from bfp.models.classifier import load_classifier
from bfp.models.encoder import load
from bfp.storage import Place


class Preview(NamedTuple):
    """A few slices for the report: uint8 (few, 3, H, W), and which channels the model saw."""

    pixels: np.ndarray
    visible: tuple[bool, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a session: its row (columns of `kept.predictions_schema`; None where it gave no stack), the scans
    that were left out, and, where there are stacks, a preview. passing: as of `Ready`."""

    inputs: str
    row: dict[str, Any] | None
    left_out: list[LeftOut]
    preview: Preview | None
    passing: bool = False


class Predictor:
    """The model of a folder, on one device.

    Raises InputError where the folder is damaged, or holds another encoder than the head was trained on.
    """

    def __init__(self, folder: Place, *, device: str, batch_size: int) -> None:
        self._classifier = load_classifier(folder)
        size_px = int(self._classifier.preprocessing["size"])
        encoder = load(origin="folder", name=None, uri=(folder / "encoder").uri, size_px=size_px)
        found, expected = encoder.description["weights"], self._classifier.facts["weights"]
        if found != expected:
            raise InputError(
                f"{folder / 'encoder'}: not the encoder that the head was trained on (weights {found[:16]}, expected "
                f"{expected[:16]}); fine-tune again, or bring the folder back whole"
            )
        self._describe = EncoderVectors(encoder).to(device)
        self._batch_size = batch_size

    def predict(self, session: Ready) -> Outcome:
        if not len(session.pixels):
            return Outcome(session.inputs, None, session.left_out, None, session.passing)
        vectors = self._vectors(session)
        if not np.isfinite(vectors).all():  # a head would take them for what a session lacks
            raise InputError("the encoder gave numbers that are not finite; its weights are damaged, or the model is")
        pooled = self._classifier.pooling.pool(vectors, heights=session.heights, parts=session.parts)[None]
        prediction, classes = self._classifier.predict(pooled), self._classifier.classes
        probabilities = prediction.probabilities[0]
        modalities = sorted({scan.modality for scan in session.scans})
        shifts = [scan.shift_mm for scan in session.scans if scan.shift_mm is not None]
        row = {
            **session.key._asdict(),
            "predicted": classes[int(probabilities.argmax())],
            **{f"prob_{name}": float(value) for name, value in zip(classes, probabilities, strict=True)},
            "spread": float(prediction.spread[0]) if np.isfinite(prediction.spread[0]) else None,
            "modalities": modalities,
            "missing": [name for name in self._classifier.shown if name not in modalities],
            "stacks": len(vectors),
            "shift_mm": max(shifts, default=None),
            "foreground": min(scan.foreground for scan in session.scans),
            "warnings": [f"{scan.modality}: {text}" for scan in session.scans for text in scan.warnings],
            "scans": [scan.uri for scan in session.scans],
            "embedding": vectors.mean(axis=0, dtype=np.float64).astype(np.float32),
            "inputs": session.inputs,
        }
        return Outcome(session.inputs, row, session.left_out, _preview(session), session.passing)

    def _vectors(self, session: Ready) -> np.ndarray:
        """Of each stack, float32 (n, D)."""
        pixels, visible = torch.from_numpy(session.pixels), torch.from_numpy(session.visible)
        batches = zip(pixels.split(self._batch_size), visible.split(self._batch_size), strict=True)
        return np.concatenate([self._describe(fill_absent(own, seen)) for own, seen in batches])


def _preview(session: Ready) -> Preview:
    """The stacks nearest to the shown heights, of the first part."""
    first = np.flatnonzero(np.array(session.parts) == session.parts[0])
    nearest = [int(first[np.abs(session.heights[first] - height).argmin()]) for height in SHOWN_HEIGHTS]
    return Preview(session.pixels[nearest], tuple(bool(seen) for seen in session.visible[nearest[0]]))
