"""A model that predicts ready sessions: encoder, pooling and heads from one model folder; or an encoder alone, which
gives their embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bfp.batches.absent import fill_absent
from bfp.errors import InputError
from bfp.features.describe import Describe, EncoderVectors, TokenMeans
from bfp.imaging import SHOWN_HEIGHTS
from bfp.inference.kept import EMBEDDINGS
from bfp.inference.outcomes import Failure, Outcome, Preview
from bfp.inference.ready import Ready
from bfp.models.encoder import load
from bfp.models.encoder_alone import encoder_alone, read_encoder_alone
from bfp.models.folders import WEIGHTS
from bfp.models.session_model import load_model
from bfp.storage import Place


class Predictor:
    """The model of a folder, on one device.

    Raises InputError where the folder is damaged, or holds another encoder than the head was trained on.
    """

    def __init__(self, folder: Place, *, device: str, batch_size: int) -> None:
        self._model = load_model(folder)
        size_px = int(self._model.preprocessing["size"])
        encoder = load(origin="folder", name=None, uri=(folder / "encoder").uri, size_px=size_px)
        found, expected = encoder.description["weights"], self._model.facts["weights"]
        if found != expected:
            raise InputError(
                f"{folder / 'encoder'}: not the encoder that the head was trained on (weights {found[:16]}, expected "
                f"{expected[:16]}); fine-tune again, or bring the folder back whole"
            )
        self._describe = EncoderVectors(encoder).to(device)
        self._batch_size = batch_size

    def outcomes(self, sessions: Sequence[Ready]) -> list[Outcome | Failure]:
        """One of each session; batches are filled across them."""
        return _outcomes(self, sessions)

    def predict(self, session: Ready, vectors: np.ndarray) -> Outcome:
        """vectors: float32 (n, D) of its n stacks.

        Raises InputError where they are no numbers.
        """
        if not len(session.pixels):
            return Outcome(session.inputs, None, session.left_out, None, session.passing)
        _check_numbers(vectors)
        pooled = self._model.pooling.pool(vectors, heights=session.heights, parts=session.parts)
        prediction = self._model.predict(pooled)
        row = {
            **prediction.told,
            "distance": prediction.distance,
            "atypical": prediction.atypical,
            "embedding": vectors.mean(axis=0, dtype=np.float64).astype(np.float32),
            **_seen(session, shown=self._model.shown, warnings=prediction.warnings),
        }
        return Outcome(session.inputs, row, session.left_out, _preview(session), session.passing)

    def vectors(self, sessions: Sequence[Ready]) -> list[np.ndarray]:
        """Of each session float32 (n, D), one row a stack."""
        return _vectors(self._describe, sessions, batch_size=self._batch_size)


class Embedder:
    """As a `Predictor`, of an encoder without a head."""

    def __init__(self, folder: Place, *, device: str, batch_size: int) -> None:
        told = read_encoder_alone(folder)
        found, expected = hashlib.sha256((folder / WEIGHTS).read()).hexdigest(), told["facts"]["weights"]
        if found != expected:
            raise InputError(
                f"{folder / WEIGHTS}: not the weights that its config.json was written with (SHA-256 {found[:16]}, "
                f"expected {expected[:16]}); export the encoder again, or bring the folder back whole"
            )
        self._shown = tuple(told["shown"])
        encoder = load(origin="folder", name=None, uri=folder.uri, size_px=int(told["preprocessing"]["size"]))
        self._describe = TokenMeans(encoder).to(device)
        self._batch_size = batch_size

    def outcomes(self, sessions: Sequence[Ready]) -> list[Outcome | Failure]:
        """As of a `Predictor`."""
        return _outcomes(self, sessions)

    def predict(self, session: Ready, vectors: np.ndarray) -> Outcome:
        """vectors: float32 (n, 3·D) of its n stacks. Raises InputError where they are no numbers."""
        if not len(session.pixels):
            return Outcome(session.inputs, None, session.left_out, None, session.passing)
        _check_numbers(vectors)
        means = np.split(vectors.mean(axis=0, dtype=np.float64).astype(np.float32), len(EMBEDDINGS))
        seen = _seen(session, shown=self._shown, warnings=[])
        row = {**dict(zip(EMBEDDINGS, means, strict=True)), **seen}
        return Outcome(session.inputs, row, session.left_out, _preview(session), session.passing)

    def vectors(self, sessions: Sequence[Ready]) -> list[np.ndarray]:
        """As of a `Predictor`."""
        return _vectors(self._describe, sessions, batch_size=self._batch_size)


def predictor_of(folder: Place, *, device: str, batch_size: int) -> Predictor | Embedder:
    """What the folder's model wants. Raises InputError as they do."""
    make = Embedder if encoder_alone(folder) else Predictor
    return make(folder, device=device, batch_size=batch_size)


def _outcomes(model: Predictor | Embedder, sessions: Sequence[Ready]) -> list[Outcome | Failure]:
    try:
        described = model.vectors(sessions)
    except Exception as error:  # whichever session it is of, none has vectors
        return [Failure.of(session.inputs, error) for session in sessions]
    return [_outcome(model, *each) for each in zip(sessions, described, strict=True)]


def _outcome(model: Predictor | Embedder, session: Ready, vectors: np.ndarray) -> Outcome | Failure:
    try:
        return model.predict(session, vectors)
    except Exception as error:
        return Failure.of(session.inputs, error)


def _check_numbers(vectors: np.ndarray) -> None:
    if not np.isfinite(vectors).all():  # a head would take them for what a session lacks
        raise InputError("the encoder gave numbers that are not finite; its weights are damaged, or the model is")


def _seen(session: Ready, *, shown: Sequence[str], warnings: Sequence[str]) -> dict[str, Any]:
    """What a row tells of any session that was seen. warnings: on what was made of it."""
    modalities = sorted({scan.modality for scan in session.scans})
    missing = [name for name in shown if name not in modalities]
    of_scans = [f"{scan.modality}: {text}" for scan in session.scans for text in scan.warnings]
    shifts = [scan.shift_mm for scan in session.scans if scan.shift_mm is not None]
    return {
        **session.key._asdict(),
        "modalities": modalities,
        "missing": missing,
        "stacks": len(session.pixels),
        "shift_mm": max(shifts, default=None),
        "foreground": min(scan.foreground for scan in session.scans),
        "warnings": [*(f"no {name}, which the model was trained with" for name in missing), *warnings, *of_scans],
        "scans": [scan.uri for scan in session.scans],
        "inputs": session.inputs,
    }


def _vectors(describe: Describe, sessions: Sequence[Ready], *, batch_size: int) -> list[np.ndarray]:
    """Of each session one row a stack; batches are filled across sessions."""
    counts = [len(session.pixels) for session in sessions]
    made = [describe(fill_absent(*batch)) for batch in _batches(sessions, batch_size=batch_size)]
    return np.split(np.concatenate(made), np.cumsum(counts)[:-1]) if made else [np.zeros((0, 0))] * len(sessions)


def _batches(sessions: Sequence[Ready], *, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pixels and what is visible of them, `batch_size` stacks at a time; no more than a batch is copied at once."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for session in sessions:
        pixels, visible = session.pixels, session.visible
        while len(pixels):
            lacking = batch_size - sum(len(own) for own, _ in waiting)
            waiting.append((pixels[:lacking], visible[:lacking]))
            pixels, visible = pixels[lacking:], visible[lacking:]
            if sum(len(own) for own, _ in waiting) == batch_size:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, visible = (np.concatenate(own) for own in zip(*parts, strict=True))
    return torch.from_numpy(pixels), torch.from_numpy(visible)


def _preview(session: Ready) -> Preview:
    """The stacks nearest to the shown heights, of the first part."""
    first = np.flatnonzero(np.array(session.parts) == session.parts[0])
    nearest = [int(first[np.abs(session.heights[first] - height).argmin()]) for height in SHOWN_HEIGHTS]
    return Preview(session.pixels[nearest], tuple(bool(seen) for seen in session.visible[nearest[0]]))
