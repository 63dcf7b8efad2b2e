"""A session's stacks, and the way back from them to one of its scans: what a model that segments takes (CPU).

The scan is the one of the modality that the model's segmentation was drawn on, else the reference of the stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bfp.cohorts.dicom import Series
from bfp.cohorts.prepare import ScanRecord, SessionStacks
from bfp.cohorts.sessions import Scan, Session
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import header_of
from bfp.imaging.session import Prepared
from bfp.imaging.stacks import Recipe
from bfp.inference.ready import Ready, ready

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
