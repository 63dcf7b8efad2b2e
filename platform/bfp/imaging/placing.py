"""Where a scan goes in the space of its session's reference, and what its grey values are there.

It goes by its header, or as registration mends that. Its tissue (the head, or what the brain mask leaves of it), its
bias field and its window are its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.bias_field import Estimate, corrected, estimate_bias_field
from bfp.imaging.brain import Brain
from bfp.imaging.foreground import Foreground, masked_foreground
from bfp.imaging.nifti import Volume
from bfp.imaging.register import SUSPICIOUS_SHIFT_MM, Alignment, Overview, align, glance, overview
from bfp.imaging.stacks import Recipe, Registration
from bfp.imaging.window import Window, intensity_window, zscore_window

# Of 15 pairs of scans of one person the least similar came to 1.148 after registration; of 10 pairs of two people, or
# with a CT, a statistical map or a scan turned upside down, the most similar came to 1.105.
_LEAST_SIMILARITY = 1.12
# Where a glance finds a scan so near and so similar, a closer look found none of 32 pairs SUSPICIOUS_SHIFT_MM off, or
# less similar than _LEAST_SIMILARITY.
_SURELY_NEAR_MM, _SURELY_SIMILAR = 2.5, 1.16
# A scan that need not be resampled (`register: none`) lies on its reference's grid up to so much.
_SAME_GRID_MM = 1e-3


class Scan(NamedTuple):
    """A volume of the session and its head. number: of the volume, where the scan has several."""

    modality: str
    volume: Volume
    head: Foreground
    number: int | None = None


class Motion(NamedTuple):
    """Where a scan goes in its reference's space. alignment: None where none was estimated."""

    reference_ras_from_scan_ras: np.ndarray
    alignment: Alignment | None
    warnings: tuple[str, ...]


class Placed(NamedTuple):
    """A scan in its reference's space, with its grey values. tissue: the head, or what of it the brain mask leaves.

    window: of the values without the bias field.
    """

    scan: Scan
    motion: Motion
    tissue: Foreground
    bias: Estimate
    window: Window


BY_HEADER = Motion(np.eye(4), None, ())


@dataclass(slots=True, eq=False)
class Reference:
    """A scan and what follows it: its overview and each motion are worked out once, when they are wanted."""

    scan: Scan
    register: Registration
    _view: Overview | None = None
    _motions: dict[str, Motion] = field(default_factory=dict)

    def motion_of(self, scan: Scan) -> Motion:
        """How a scan goes with this one. Raises Unusable: OFF_GRID, REGISTRATION."""
        if scan is self.scan:
            return BY_HEADER
        if self._view is None and self.register != "none":
            self._view = overview(self.scan.volume, self.scan.head)
        if scan.modality not in self._motions:
            self._motions[scan.modality] = _follow(scan, self.scan, self._view, register=self.register)
        return self._motions[scan.modality]


def _follow(scan: Scan, reference: Scan, view: Overview | None, *, register: Registration) -> Motion:
    """How a scan follows its reference; view is the reference's, None when nothing is to be resampled.

    Raises Unusable: OFF_GRID, REGISTRATION.
    """
    if view is None:
        if not scan.volume.grid.matches(reference.volume.grid, tolerance_mm=_SAME_GRID_MM):
            raise Unusable(Reason.OFF_GRID, _grid_difference(scan, reference))
        return BY_HEADER
    try:
        alignment = _alignment(view, overview(scan.volume, scan.head), to_move=register == "rigid")
    except Unusable as unusable:
        if register == "rigid":
            raise
        return BY_HEADER._replace(warnings=(f"no estimate of how far the header is off: {unusable.detail}",))
    warnings: tuple[str, ...] = ()
    if alignment.similarity_after < _LEAST_SIMILARITY:
        figures = f"similarity {alignment.similarity_after:.2f}, {_LEAST_SIMILARITY} and more are expected"
        warnings = (f"has little in common with the {reference.modality} ({figures}): is it of the same person?",)
    if alignment.shift_mm > SUSPICIOUS_SHIFT_MM:
        fate = "moved it" if register == "rigid" else "would move it"
        offset = f"{alignment.shift_mm:.1f} mm from the {reference.modality}"
        warnings += (f"the header places the {scan.modality} {offset}; `register: rigid` {fate}",)
    motion = alignment.reference_ras_from_scan_ras if register == "rigid" else np.eye(4)
    return Motion(motion, alignment, warnings)


def _alignment(reference: Overview, scan: Overview, *, to_move: bool) -> Alignment:
    """As close as it is wanted: a header is followed whatever is found, and most are right."""
    if not to_move:
        found = glance(reference, scan)
        if found and found.shift_mm <= _SURELY_NEAR_MM and found.similarity_after >= _SURELY_SIMILAR:
            return found
    return align(reference, scan)


def _grid_difference(scan: Scan, reference: Scan) -> str:
    ours, theirs = scan.volume.grid, reference.volume.grid
    if ours.shape != theirs.shape:
        found = f"shape {ours.shape}, the {reference.modality}'s is {theirs.shape}"
    else:
        found = f"corners lie up to {ours.distance_mm(theirs):.2f} mm from those of the {reference.modality}"
    return f"{found}; `register: header` or `rigid` resamples it"


def place_scan(
    scan: Scan, motion: Motion, *, recipe: Recipe, brain: Brain | None, bias: Estimate | None = None
) -> Placed:
    """bias: what is known of the scan's field from another volume of it; None: it is looked for."""
    tissue = scan.head
    if brain is not None:
        to_mask = motion.reference_ras_from_scan_ras
        tissue = masked_foreground(scan.volume, mask=brain.mask, mask_ras_from_volume_ras=to_mask)
    if bias is None:
        bias = estimate_bias_field(scan.head, tissue) if recipe.bias_field == "n4" else Estimate(None)
    values = corrected(tissue, bias.field) if bias.field else tissue.values
    lower, upper = recipe.window_percentiles
    if recipe.intensity == "zscore":
        window = zscore_window(values, lower_percentile=lower, upper_percentile=upper, limit=recipe.zscore_limit)
    else:
        window = intensity_window(values, lower_percentile=lower, upper_percentile=upper)
    return Placed(scan, motion, tissue, bias, window)
