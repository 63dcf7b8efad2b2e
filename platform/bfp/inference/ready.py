"""A session that is ready to be predicted: its stacks, what of them the model may see, and what a row must tell.

Preparation is that of ingest (`bfp.cohorts.prepare`), with the recipe that the model was trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bfp.cohorts.sessions import Key, LeftOut, Session
from bfp.errors import Reason
from bfp.imaging import IMAGING_VERSION
from bfp.models.encoder_alone import encoder_alone
from bfp.models.folders import CONFIG
from bfp.models.segmenter import DECODER, is_segmenter
from bfp.storage import Place

if TYPE_CHECKING:
    from bfp.cohorts.prepare import ScanRecord, SessionStacks


class UsedScan(NamedTuple):
    """A scan that is in the stacks, with all of its volumes. shift_mm: how far its header is off, None where that was
    not looked for. foreground: the smallest share of a volume."""

    modality: str
    uri: str
    shift_mm: float | None
    foreground: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """pixels: uint8 (n, 3, H, W); visible: bool (n, 3), the channels that hold a modality that the model is shown;
    heights: float32 (n,); parts: of each stack, what is pooled together; a session that gave no stack has n = 0.

    inputs: the hash of all that the session's row will follow from. passing: as of `cohorts.prepare.SessionStacks`.
    """

    key: Key
    inputs: str
    pixels: np.ndarray
    visible: np.ndarray
    heights: np.ndarray
    parts: list[str]
    scans: list[UsedScan]
    left_out: list[LeftOut]
    passing: bool = False


def model_hash(folder: Place) -> str:
    """A hash of all that a model's predictions follow from: model.json, or the config.json of an encoder without a
    head, names the encoder's weights by their hash."""
    digest = hashlib.sha256()
    if encoder_alone(folder):
        names = [CONFIG]
    else:
        names = ["model.json", DECODER if is_segmenter(folder) else "head.safetensors"]
    for name in names:
        digest.update((folder / name).read())
    return digest.hexdigest()[:24]


def inputs_of(session: Session, *, model: str) -> str:
    """The hash of a session's files (URI, size, etag) and of what is done with them. model: the hash of the model."""
    named = [(scan.modality, scan.files) for scan in (*session.scans, *session.spares)]
    named += [(label_map.name, label_map.files) for label_map in session.label_maps]
    told = [
        [name, *(fact for file in files for fact in (file.place.uri, file.size, file.etag))] for name, files in named
    ]
    meant = [[each.drawn_on, each.inside, each.refused, each.warnings] for each in session.label_maps]
    content = json.dumps([session.key, told, meant, model, IMAGING_VERSION])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def ready(
    session: Session,
    pieces: Iterable[SessionStacks],
    *,
    shown: Sequence[str],
    by_modality: bool,
    size_px: int,
    inputs: str,
) -> Ready:
    """The stacks that show the model anything. pieces: of the session, as it was prepared.

    Of a 4-D scan whose volumes have stacks each, all of them stand side by side: a part is pooled over the volumes as
    it is over slices, here as in training (`features.sessions`), and each counts alike.

    shown: the modalities that it may see. by_modality: whether the stacks of each are pooled for themselves (form
    `neighbours`).
    """
    pixels = [np.zeros((0, 3, size_px, size_px), dtype=np.uint8)]
    visible, heights = [np.zeros((0, 3), dtype=bool)], [np.zeros(0, dtype=np.float32)]
    parts: list[str] = []
    records: dict[str, list[ScanRecord]] = defaultdict(list)  # by modality: one each, or one for each volume
    left_out: list[LeftOut] = []
    passing = False
    for piece in pieces:
        left_out += piece.left_out
        passing |= piece.passing
        for record in piece.scans:
            records[record.scan.modality].append(record)
        for each in piece.prepared:
            channels = zip(each.modalities, each.present, strict=True)
            seen = np.array([there and name in shown for name, there in channels])
            if not seen.any():
                continue
            count = len(each.pixels)
            pixels.append(each.pixels)
            visible.append(np.tile(seen, (count, 1)))
            heights.append(each.height)
            parts += [each.modalities[0] if by_modality else ""] * count
    unseen = [
        LeftOut(
            session.key,
            modality,
            own[0].scan.file.place.uri,
            Reason.UNWANTED,
            f"the model is shown {', '.join(shown)}",
        )
        for modality, own in records.items()
        if modality not in shown
    ]
    return Ready(
        key=session.key,
        inputs=inputs,
        pixels=np.concatenate(pixels),
        visible=np.concatenate(visible),
        heights=np.concatenate(heights),
        parts=parts,
        scans=[_used(own) for modality, own in records.items() if modality in shown],
        left_out=[*left_out, *unseen],
        passing=passing,
    )


def _used(records: Sequence[ScanRecord]) -> UsedScan:
    """A scan from the records of its volumes."""
    first = records[0]
    return UsedScan(
        modality=first.scan.modality,
        uri=first.scan.file.place.uri,
        shift_mm=first.facts.shift_mm,
        foreground=min(record.facts.foreground_share for record in records),
        warnings=tuple(warning for record in records for warning in record.warnings),
    )
