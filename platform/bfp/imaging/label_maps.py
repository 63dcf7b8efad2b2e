"""Label maps and brain masks: what was drawn on a scan goes where the scan goes, and comes out as slices.

A map has to lie on its scan by its own header: it shares the scan's grid, its axes turned round or not, or, with a grid
of its own, covers the head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.foreground import BRAIN_HEIGHT_MM
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import NO_ORIENTATION, Volume
from bfp.imaging.placing import Placed, Reference, Scan
from bfp.imaging.resample import planes
from bfp.imaging.stacks import Frame, to_pixels

# Programs that write a label map round the scan's matrix. What is further off was not drawn on this header.
_MAP_GRID_MM = 1.0
# Of the head without its neck, in the box of a map: of eleven adults cropped to their brain 0.83 to 0.92, to their
# lesions 0.15 to 0.28, which is what a lost origin leaves as well.
_LEAST_COVER = 0.75


class Segmentation(NamedTuple):
    """Whole-number labels (0: none of them) and the modality of the scan on which they were drawn.

    inside: of a brain mask, the labels that are brain; () for all but 0.
    """

    volume: Volume
    drawn_on: str
    inside: tuple[int, ...] = ()


class Drawn(NamedTuple):
    """Segmentations by name: their label slices, what is doubtful about these, and why others gave none."""

    labels: dict[str, np.ndarray]
    doubts: dict[str, tuple[str, ...]]
    lost: dict[str, Unusable]


def label_slices(segmentations: Mapping[str, Segmentation], placed: Mapping[str, Placed], frame: Frame) -> Drawn:
    """Those that were drawn on one of these scans."""
    drawn = Drawn({}, {}, {})
    for name, segmentation in segmentations.items():
        try:
            if segmentation.drawn_on in placed:
                drawn.labels[name], drawn.doubts[name] = _labels(segmentation, placed[segmentation.drawn_on], frame)
        except Unusable as unusable:
            drawn.lost[name] = unusable.bare()
    return drawn


def without_stacks(segmentations: Mapping[str, Segmentation], used: Collection[str]) -> dict[str, Unusable]:
    """Why segmentations cannot be used that were drawn on none of the modalities that gave stacks."""
    return {
        name: Unusable(Reason.UNPLACED, f"the {segmentation.drawn_on}, which gave no stacks")
        for name, segmentation in segmentations.items()
        if segmentation.drawn_on not in used
    }


def given_mask(given: Segmentation, reference: Reference, scans: list[Scan]) -> Volume:
    """A brain mask, 1 in the brain, moved into the reference's space with the scan that it was drawn on.

    Raises Unusable (NO_BRAIN_MASK).
    """
    try:
        drawn_on = next((scan for scan in scans if scan.modality == given.drawn_on), None)
        if drawn_on is None:
            raise Unusable(Reason.UNPLACED, f"the {given.drawn_on}, which is not there or cannot be used")
        _check_lies_on(drawn_on, given.volume)
        labels = _whole_numbers(given.volume)
        motion = reference.motion_of(drawn_on)
    except Unusable as unusable:
        raise Unusable(Reason.NO_BRAIN_MASK, str(unusable)) from unusable
    brain = np.isin(labels.T, given.inside).T if given.inside else labels != 0  # isin answers in C order
    if not brain.any():
        found = f"no voxel is {' or '.join(map(str, given.inside))}" if given.inside else "every voxel is 0"
        raise Unusable(Reason.NO_BRAIN_MASK, f"the mask is blank: {found}")
    grid = given.volume.grid
    return replace(
        given.volume,
        stored=brain.view(np.uint8),
        slope=1.0,
        intercept=0.0,
        grid=Grid(grid.shape, motion.reference_ras_from_scan_ras @ grid.ras_from_voxel),
        warnings=tuple(f"brain mask: {text}" for text in given.volume.warnings)
        + tuple(f"brain mask, drawn on the {given.drawn_on}: {text}" for text in motion.warnings),
    )


def _check_lies_on(scan: Scan, drawn: Volume) -> None:
    """Raise Unusable (UNPLACED) where what was drawn on a scan does not lie on it by its own header."""
    # a map may have been saved with its axes turned round: the same voxels all the same
    own, grid, head = drawn.grid.closest_ras(), scan.volume.grid.closest_ras(), scan.head
    if own.matches(grid, tolerance_mm=_MAP_GRID_MM):
        return
    if own.shape == grid.shape:
        raise Unusable(
            Reason.UNPLACED,
            f"it has the shape of the {scan.modality}, and its corners lie up to {own.distance_mm(grid):,.0f} mm from "
            "those; if it was drawn on these voxels, give it the scan's header",
        )
    if NO_ORIENTATION in drawn.warnings:
        raise Unusable(Reason.UNPLACED, f"{NO_ORIENTATION}, and that is not the grid of the {scan.modality}")
    head_ras = head.grid.ras(np.argwhere(head.mask))
    voxels = own.voxels(head_ras[head_ras[:, 2] >= head.crown_mm - BRAIN_HEIGHT_MM])
    cover = float(np.mean(((voxels >= -0.5) & (voxels <= np.array(own.shape) - 0.5)).all(axis=-1)))
    if cover < _LEAST_COVER:
        raise Unusable(
            Reason.UNPLACED,
            f"it covers {cover:.0%} of the head in the {scan.modality}, {_LEAST_COVER:.0%} are expected; if it was cut "
            "to what it shows, put it back onto the scan's grid",
        )


class _Labels(NamedTuple):
    """planes: uint16 (n, size, size), of the kept slices, 0 outside the segmentation."""

    planes: np.ndarray
    doubts: tuple[str, ...]


def _labels(segmentation: Segmentation, drawn_on: Placed, frame: Frame) -> _Labels:
    """The labels on the kept slices. Raises Unusable: UNPLACED, NOT_LABELS."""
    _check_lies_on(drawn_on.scan, segmentation.volume)
    values = _whole_numbers(segmentation.volume)
    labels = np.empty((frame.slices.size, *frame.working.shape[1::-1]), np.uint16)
    drawn = planes(
        values,
        source=segmentation.volume.grid,
        target=frame.working,
        source_ras_from_target_ras=np.linalg.inv(drawn_on.motion.reference_ras_from_scan_ras),
        at=frame.slices,
        interpolation="nearest",
        outside=0,
    )
    for row, plane in zip(labels, drawn, strict=True):
        row[:] = to_pixels(plane)
    doubts = segmentation.volume.warnings
    if not labels.any() and (drawn_voxels := np.count_nonzero(values)):
        doubts += (f"none of its {drawn_voxels:,} labelled voxels lies on a stack",)
    return _Labels(labels, doubts)


def _whole_numbers(labels: Volume) -> np.ndarray:
    """uint16 (i, j, k). Raises Unusable (NOT_LABELS) where there are others than whole numbers from 0 to 65535."""
    values = labels.scaled(labels.stored)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max or np.any(values != np.rint(values)):
        raise Unusable(Reason.NOT_LABELS, f"they go from {values.min():g} to {values.max():g}")
    return values.astype(np.uint16, order="K")
