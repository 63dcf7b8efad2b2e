"""A model that segments ready sessions, and writes their masks: encoder and decoder from one model folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bfp.batches.absent import fill_absent
from bfp.cohorts.derivatives import Masks
from bfp.errors import InputError
from bfp.features.tokens import layered_patches
from bfp.imaging.native import labels_on
from bfp.inference.outcomes import Failure, MaskPreview, Outcome
from bfp.inference.ready import Ready
from bfp.inference.way_back import ToSegment, WayBack
from bfp.models.decoder import blocks_of
from bfp.models.encoder import load
from bfp.models.segmenter import load_segmenter, read_segmentation
from bfp.storage import Place


class Segmenting:
    """The model of a folder, on one device, and where its masks go.

    Raises InputError where the folder is damaged, or holds another encoder than the decoder was trained on.
    """

    def __init__(self, folder: Place, *, device: str, batch_size: int, masks: Masks) -> None:
        size_px = int(read_segmentation(folder)["preprocessing"]["size"])
        self._encoder = load(origin="folder", name=None, uri=(folder / "encoder").uri, size_px=size_px)
        self._segmenter = load_segmenter(folder, encoder=self._encoder)
        found, expected = self._encoder.description["weights"], self._segmenter.facts["weights"]
        if found != expected:
            raise InputError(
                f"{folder / 'encoder'}: not the encoder that the decoder was trained on (weights {found[:16]}, "
                f"expected {expected[:16]}); fine-tune again, or bring the folder back whole"
            )
        self._encoder.model.to(device)
        self._segmenter.decoder.to(device)
        self._device, self._batch_size, self._masks = device, batch_size, masks
        self._blocks = blocks_of(self._segmenter.layers, depth=self._encoder.description["depth"])

    def outcomes(self, sessions: Sequence[ToSegment]) -> list[Outcome | Failure]:
        """One of each session."""
        return [self._outcome(session) for session in sessions]

    def _outcome(self, session: ToSegment) -> Outcome | Failure:
        try:
            return self.segment(session)
        except Exception as error:
            return Failure.of(session.ready.inputs, error)

    def segment(self, session: ToSegment) -> Outcome:
        """Write the session's mask; its row."""
        own = session.ready
        if session.way_back is None:
            return Outcome(own.inputs, None, own.left_out, None, own.passing)
        pixels = fill_absent(torch.from_numpy(own.pixels), torch.from_numpy(own.visible))
        maps = self._maps(pixels, torch.from_numpy(own.heights))
        return written(own, session.way_back, maps, masks=self._masks, shown=self._segmenter.shown)

    @torch.inference_mode()
    def _maps(self, pixels: torch.Tensor, heights: torch.Tensor) -> np.ndarray:
        """The probability of each class in each pixel, float16 (n, K, S, S). pixels: uint8, zeros where not shown."""
        maps = []
        for few, own in zip(pixels.split(self._batch_size), heights.split(self._batch_size), strict=True):
            tokens = layered_patches(self._encoder, few, self._blocks).half().float()  # as they were kept in training
            logits = self._segmenter.decoder(tokens, few.to(self._device), own.to(self._device))
            maps.append(logits.softmax(dim=1).half().cpu().numpy())
        found = np.concatenate(maps)
        if not np.isfinite(found).all():
            raise InputError("the model gave numbers that are not finite; its weights are damaged, or the model is")
        return found


def written(session: Ready, way_back: WayBack, maps: np.ndarray, *, masks: Masks, shown: Sequence[str]) -> Outcome:
    """Write the mask that the probabilities (n, K, S, S) of a session's stacks make; its row."""
    labels = labels_on(
        maps,
        slices=way_back.slices,
        working=way_back.working,
        native=way_back.native,
        reference_ras_from_scan_ras=way_back.reference_ras_from_scan_ras,
    )
    modalities = sorted({scan.modality for scan in session.scans})
    shifts = [scan.shift_mm for scan in session.scans if scan.shift_mm is not None]
    voxel_ml = float(np.prod(way_back.native.spacing_mm)) / 1000
    counts = np.bincount(labels.ravel(), minlength=maps.shape[1])[1:]
    missing = [name for name in shown if name not in modalities]
    row = {
        **session.key._asdict(),
        "mask": masks.write(session.key, way_back.scan, labels, header=way_back.header, grid=way_back.native),
        "space": way_back.scan,
        **{f"ml_{name}": float(n) * voxel_ml for name, n in zip(masks.classes, counts, strict=True)},
        "modalities": modalities,
        "missing": missing,
        "stacks": len(maps),
        "shift_mm": max(shifts, default=None),
        "foreground": min(scan.foreground for scan in session.scans),
        "warnings": [
            *(f"no {name}, which the model was trained with" for name in missing),
            *(f"{scan.modality}: {text}" for scan in session.scans for text in scan.warnings),
        ],
        "scans": [scan.uri for scan in session.scans],
        "inputs": session.inputs,
    }
    preview = _preview(session.pixels[:, way_back.channel], maps)
    return Outcome(session.inputs, row, session.left_out, preview, session.passing)


def _preview(greys: np.ndarray, maps: np.ndarray) -> MaskPreview:
    """The stack with most of its pixels in a class, the middle one where none is. greys: uint8 (n, S, S)."""
    labels = maps.argmax(axis=1).astype(np.uint8)
    counts = np.count_nonzero(labels, axis=(1, 2))
    at = int(counts.argmax()) if counts.any() else len(labels) // 2
    return MaskPreview(greys[at], labels[at])
