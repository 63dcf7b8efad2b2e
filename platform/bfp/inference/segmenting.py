"""Sessions become masks: prepared from raw scans, segmented by copies of the model, a few in flight.

As `pipeline` does it for predictions, with two differences. A session keeps, beside its stacks, the way back from them
to one of its scans: the one of the modality that the model's segmentation was drawn on, else the reference of the
stacks. And the copy of the model carries the probabilities back and writes the mask (`cohorts.derivatives`), so that
no volume passes through the driver; a session's row is committed after its mask, which a rerun writes again.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from bfp.batches.absent import fill_absent
from bfp.cohorts.derivatives import Masks
from bfp.cohorts.dicom import Series
from bfp.cohorts.prepare import ScanRecord, SessionStacks, prepare
from bfp.cohorts.sessions import Scan, Session
from bfp.errors import BfpError, InputError
from bfp.features.tokens import layered_patches
from bfp.imaging.grid import Grid
from bfp.imaging.native import labels_on
from bfp.imaging.nifti import header_of
from bfp.imaging.session import Prepared
from bfp.imaging.stacks import Recipe
from bfp.inference.pipeline import Failure, Machine
from bfp.inference.predictor import MaskPreview, Outcome
from bfp.inference.ready import Ready, ready
from bfp.models.decoder import blocks_of
from bfp.models.encoder import load
from bfp.models.segmenter import load_segmenter, read_segmentation
from bfp.storage import Place

_HEADER_BYTES = 1 << 16  # of a file, among which its header is, zipped or not


class WayBack(NamedTuple):
    """From a session's stacks to a scan: slices int32 (n,) of `working`; header: the scan's own, raw, None for a DICOM
    series; channel: of the stacks, in which the scan is."""

    scan: str
    slices: np.ndarray
    working: Grid
    native: Grid
    reference_ras_from_scan_ras: np.ndarray
    header: bytes | None
    channel: int


class ToSegment(NamedTuple):
    """way_back: None where the session gave no stack."""

    ready: Ready
    way_back: WayBack | None


def segment_sessions(
    sessions: Sequence[tuple[str, Session]],
    *,
    model: Place,
    recipe: Recipe,
    shown: Sequence[str],
    drawn_on: Sequence[str],
    masks: Masks,
    scan_timeout_s: float,
    machine: Machine,
) -> Iterator[Outcome | Failure]:
    """The outcomes of (inputs, session), in whatever order they are done; of whom none comes: as `predict_sessions`."""
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a worker that dies costs its session only; the caller sees which are missing
    items = [{"session": pickle.dumps(each)} for each in sessions]
    told = {"model": model, "device": "cuda" if machine.gpus else "cpu", "batch_size": machine.batch_size}
    with ray.data.DataContext.current(context):
        with warnings.catch_warnings():
            # Ray 2.60 wants its arguments named, and has no name for how often a task is tried again.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            prepared = ray.data.from_items(items, override_num_blocks=len(items)).map(
                partial(
                    prepare_row,
                    recipe=recipe,
                    shown=tuple(shown),
                    drawn_on=tuple(drawn_on),
                    scan_timeout_s=scan_timeout_s,
                ),
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=machine.workers),
                max_retries=0,
            )
            rows = prepared.map(
                SegmentRow,  # type: ignore[arg-type]  # Ray Data takes a class for actors
                fn_constructor_kwargs={**told, "masks": masks},
                num_cpus=0,
                num_gpus=machine.gpus,
                compute=ray.data.ActorPoolStrategy(size=machine.models),
                max_restarts=-1,  # a pool whose actor has used up its restarts waits for ever
                max_task_retries=machine.retries,
            )
        for row in rows.iter_rows():
            yield pickle.loads(row["outcome"])


def prepare_row(
    row: dict[str, Any], *, recipe: Recipe, shown: Sequence[str], drawn_on: Sequence[str], scan_timeout_s: float
) -> dict[str, Any]:
    """A session to one that is ready, or to a failure."""
    inputs, session = pickle.loads(row["session"])
    try:
        pieces = list(prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s))
        found: ToSegment | Failure = to_segment(
            session, pieces, recipe=recipe, shown=shown, drawn_on=drawn_on, inputs=inputs
        )
    except Exception as error:  # Ray Data drops the row of a task that raises, and with it the cause
        found = _failure(inputs, error)
    return {"ready": pickle.dumps(found)}


def to_segment(
    session: Session,
    pieces: Sequence[SessionStacks],
    *,
    recipe: Recipe,
    shown: Sequence[str],
    drawn_on: Sequence[str],
    inputs: str,
) -> ToSegment:
    """The stacks that show the model anything, and the way back from them. pieces: of the session, as prepared.

    Of form `neighbours` only the stacks of one scan are taken, of a modality on which the segmentation was drawn.
    """
    groups = [each for piece in pieces for each in piece.prepared]
    records = [record for piece in pieces for record in piece.scans]
    if recipe.form == "neighbours":
        shown = [name for name in drawn_on if name in shown]
        groups = [each for name in shown for each in groups if each.modalities[0] == name][:1]
        shown = [each.modalities[0] for each in groups] or shown
    found = ready(session, pieces, shown=shown, by_modality=False, size_px=recipe.size_px, inputs=inputs)
    if not groups or not len(found.pixels):
        return ToSegment(found, None)
    (prepared,) = groups
    return ToSegment(found, _way_back(prepared, records, drawn_on))


def _way_back(prepared: Prepared, records: Sequence[ScanRecord], drawn_on: Sequence[str]) -> WayBack:
    of_modality = {facts.modality: facts for facts in prepared.facts}
    name = next((name for name in drawn_on if name in of_modality), prepared.facts[0].modality)
    facts = of_modality[name]
    scan = next(record.scan for record in records if record.scan.modality == name)
    return WayBack(
        scan=scan.file.place.uri,
        slices=prepared.slices,
        working=prepared.working,
        native=facts.native,
        reference_ras_from_scan_ras=facts.reference_ras_from_scan_ras,
        header=_header(scan),
        channel=prepared.modalities.index(name) if len(set(prepared.modalities)) > 1 else 1,
    )


def _header(scan: Scan) -> bytes | None:
    if isinstance(scan.file, Series):
        return None
    return header_of(next(scan.file.place.pieces(_HEADER_BYTES)), is_pair=scan.voxels is not None)


class SegmentRow:
    """A copy of the model in a process of its own."""

    def __init__(self, *, model: Place, device: str, batch_size: int, masks: Masks) -> None:
        torch.set_num_threads(1)
        self._segmenting = Segmenting(model, device=device, batch_size=batch_size, masks=masks)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        found = pickle.loads(row["ready"])
        if isinstance(found, Failure):
            return {"outcome": row["ready"]}
        try:
            outcome: Outcome | Failure = self._segmenting.segment(found)
        except Exception as error:  # as above
            outcome = _failure(found.ready.inputs, error)
        return {"outcome": pickle.dumps(outcome)}


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
    row = {
        **session.key._asdict(),
        "mask": masks.write(session.key, way_back.scan, labels, header=way_back.header, grid=way_back.native),
        "space": way_back.scan,
        **{f"ml_{name}": float(n) * voxel_ml for name, n in zip(masks.classes, counts, strict=True)},
        "modalities": modalities,
        "missing": [name for name in shown if name not in modalities],
        "stacks": len(maps),
        "shift_mm": max(shifts, default=None),
        "foreground": min(scan.foreground for scan in session.scans),
        "warnings": [f"{scan.modality}: {text}" for scan in session.scans for text in scan.warnings],
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


def _failure(inputs: str, error: Exception) -> Failure:
    return Failure(inputs, str(error) if isinstance(error, BfpError) else f"{type(error).__name__}: {error}")
