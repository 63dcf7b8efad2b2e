"""All scans of a session to stacks, label slices and facts.

Form `modalities`: one set of stacks, on the grid of the reference (the first listed modality that can be used); the
other scans are resampled onto it once, with the registration composed in; a modality that is not there is zeros and
said to be absent. Form `neighbours`: one set of stacks for each scan, on its own grid; of a 4-D scan whose volumes are
wanted each, one for each volume, on the one grid of all.

A scan that cannot be used costs the session only that scan, and is returned with its reason.

Label maps and the brain mask that a cohort brings belong to the scan on which they were drawn: it takes them along
wherever it goes, and where it cannot be used they cannot either. A map has to lie on its scan by its own header: it
shares the scan's grid or, with a grid of its own, covers the head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.bias_field import Estimate, corrected, estimate_bias_field
from bfp.imaging.brain import Brain, find_brain
from bfp.imaging.foreground import BRAIN_HEIGHT_MM, Foreground, find_foreground, masked_foreground
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import NO_ORIENTATION, Series, Volume
from bfp.imaging.register import SUSPICIOUS_SHIFT_MM, Alignment, Overview, align, overview
from bfp.imaging.resample import Interpolation, planes
from bfp.imaging.stacks import CHANNELS, BrainMask, Frame, Recipe, Registration, frame_stacks, mirrored, to_pixels
from bfp.imaging.window import Window, intensity_window, to_uint8, zscore_window

# More than any head fills, even one that was cropped to its brain.
_MOST_FOREGROUND = 0.9
# Of 15 pairs of scans of one person the least similar came to 1.148 after registration; of 10 pairs of two people, or
# with a CT, a statistical map or a scan turned upside down, the most similar came to 1.105.
_LEAST_SIMILARITY = 1.12
# Of the stacks of all volumes of a scan, as pixels, which inference holds at once. At about its own voxel size a scan
# of as many voxels as can be read stays below half of it; finer pixels would show nothing more.
MAX_SERIES_BYTES = 1 << 30
# A scan that need not be resampled (`register: none`) lies on its reference's grid up to so much.
_SAME_GRID_MM = 1e-3
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


@dataclass(frozen=True, slots=True, eq=False)
class ScanFacts:
    """What was found in a scan and done to it; with it, `native` takes maps on the stacks back to the scan.

    volume: which one of a 4-D scan this is, from 0; None where the scan made one volume.
    form_distance_mm: between qform and sform, None unless the file has both. foreground_share: of the volume.
    register: what was done: none for the reference, for a scan by itself, and where the grids were required to be one.
    reference_ras_from_scan_ras: the motion that was applied; the identity for the reference and unless registered.
    shift_mm: how far rigid registration moves the head, applied or not; None for the reference or if not estimated.
    similarity_before, similarity_after: normalised mutual information with the reference, None if not estimated.
    brain: where the brain mask comes from; brain_ml: the volume that it holds, None without one.
    bias_field_ratio: of the field that was corrected, see `bias_field`; None where none was. window: of grey values
    without it.
    warnings: sentences for a person.
    """

    modality: str
    volume: int | None
    native: Grid
    working: Grid
    form_distance_mm: float | None
    window: Window
    foreground_share: float
    register: Registration
    reference_ras_from_scan_ras: np.ndarray
    shift_mm: float | None
    similarity_before: float | None
    similarity_after: float | None
    brain: BrainMask
    brain_ml: float | None
    bias_field_ratio: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The stacks of one working grid.

    pixels: uint8 (n, 3, size, size), see `stacks` for what lies where. slices: int32 (n,), z indices of `working`.
    position_mm: float32 (n,), of the slices' centres along RAS z (coronal: y, sagittal: x). height: float32 (n,), 0 at
    the first of these, 1 at the last. foreground: float32 (n,), the share of each slice that is head. modalities,
    present: of the channels. labels: uint16 (n, size, size) of the centre slice by the segmentation's name.
    """

    pixels: np.ndarray
    slices: np.ndarray
    position_mm: np.ndarray
    height: np.ndarray
    foreground: np.ndarray
    modalities: tuple[str, str, str]
    present: tuple[bool, bool, bool]
    labels: dict[str, np.ndarray]
    working: Grid
    facts: list[ScanFacts]

    @property
    def volume(self) -> int | None:
        """Which one of a 4-D scan the stacks show, as in its facts; of several modalities none is one of many."""
        return self.facts[0].volume


class PreparedSession(NamedTuple):
    """prepared: at most one with form modalities, one for each scan with form neighbours.

    rejected: what could not be used, scans by modality and segmentations by name. doubts: of the segmentations that
    were used, by name, as sentences for a person; those of the brain mask stand with the scans.
    """

    prepared: list[Prepared]
    rejected: dict[str, Unusable]
    doubts: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def prepare_session(
    volumes: Mapping[str, Volume],
    *,
    recipe: Recipe,
    segmentations: Mapping[str, Segmentation] | None = None,
    brain_mask: Segmentation | None = None,
) -> PreparedSession:
    """The stacks of a session from its decoded scans, by modality.

    brain_mask: goes with the scan on which it was drawn to the reference (form neighbours: to each other scan), as
    recipe.register says. It is looked at with recipe.brain "given" alone. Whatever mask there is decides what is
    foreground, and what is outside becomes black.
    """
    segmentations = segmentations or {}
    scans: list[_Scan] = []
    rejected: dict[str, Unusable] = {}
    for modality in sorted(volumes, key=recipe.rank):
        try:
            if modality not in recipe.wanted:
                raise Unusable(Reason.UNWANTED, f"{modality}; the stacks are made of {', '.join(recipe.wanted)}")
            scans.append(_Scan(modality, volumes[modality], find_foreground(volumes[modality])))
        except Unusable as unusable:
            rejected[modality] = unusable

    groups = [scans] if recipe.form == "modalities" else [[scan] for scan in scans]
    prepared: list[Prepared] = []
    doubts: dict[str, tuple[str, ...]] = {}
    for group in groups:
        of_group = _prepare_group(group, scans, recipe=recipe, segmentations=segmentations, given=brain_mask)
        prepared += of_group.prepared
        rejected |= of_group.rejected
        doubts |= of_group.doubts
    used = {facts.modality for stacks in prepared for facts in stacks.facts}
    return PreparedSession(prepared, rejected | _without_stacks(segmentations, used), doubts)


def prepare_series(
    modality: str,
    series: Series,
    *,
    recipe: Recipe,
    segmentations: Mapping[str, Segmentation] | None = None,
    brain_mask: Segmentation | None = None,
) -> Iterator[PreparedSession]:
    """The stacks of a 4-D scan in form `neighbours`, of one volume after the other: only one is held at a time.

    The first volume that can be used leads, volume 0 as a rule: grid, crop, slices and brain mask are found in it and
    are those of all, so that a pixel is the same place in each and volumes can be compared; so is the bias field, which
    is the coil's, and best seen where diffusion does not weight. Motion between them is not corrected. The label slices
    stand with its stacks and are those of all. The window is each volume's own, by its own head, as it is each scan's:
    diffusion weighting leaves of b = 0 a fraction, which its window would show as black.

    Of each volume in turn: its stacks, or why it gave none. brain_mask: as of a session.
    Raises Unusable (TOO_LARGE) where all stacks would come to more than MAX_SERIES_BYTES.
    """
    segmentations = segmentations or {}
    frame: Frame | None = None
    brain: Brain | None = None
    bias: Estimate | None = None
    for number in range(len(series)):
        leads = frame is None
        try:
            volume = series.volume(number)
            if not leads:
                volume = replace(volume, warnings=())  # the header's are told once
            scan = _Scan(modality, volume, find_foreground(volume), number)
            if frame is None:
                placed, frame, brain = _lead(_Reference(scan, recipe.register), [scan], recipe=recipe, given=brain_mask)
            else:
                placed = _place(scan, _BY_HEADER, recipe=recipe, brain=brain, bias=bias)
        except Unusable as unusable:
            yield PreparedSession([], {modality: unusable})
            continue
        drawn = _Drawn({}, {}, {})
        if leads:
            _check_size(frame, volumes=len(series))
            drawn = _drawn(segmentations, {modality: placed}, frame)
            drawn.lost.update(_without_stacks(segmentations, {modality}))
        stacks = _stacked({modality: placed}, frame, drawn.labels, recipe=recipe, brain=brain)
        yield PreparedSession([stacks], drawn.lost, drawn.doubts)
        brain = brain._replace(warnings=()) if brain else None  # likewise
        bias = placed.bias._replace(warnings=())


def _check_size(frame: Frame, *, volumes: int) -> None:
    """Raise Unusable (TOO_LARGE) where the stacks of so many volumes are more than may be held."""
    size_px, slices = frame.working.shape[0], frame.slices.size
    size_bytes = volumes * slices * CHANNELS * size_px**2
    if size_bytes > MAX_SERIES_BYTES:
        raise Unusable(
            Reason.TOO_LARGE,
            f"{volumes:,} volumes of {slices} stacks of {size_px} pixels come to {size_bytes / 1e9:.1f} GB; the limit "
            f"is {MAX_SERIES_BYTES / 1e9:.1f} GB; spacing_mm and slice_spacing_mm nearer to the scan's own (and a size "
            "to match) make less of them, `volumes: first` or `mean` those of one volume",
        )


def _without_stacks(segmentations: Mapping[str, Segmentation], used: Collection[str]) -> dict[str, Unusable]:
    """Why segmentations cannot be used that were drawn on none of the modalities that gave stacks."""
    return {
        name: Unusable(Reason.UNPLACED, f"the {segmentation.drawn_on}, which gave no stacks")
        for name, segmentation in segmentations.items()
        if segmentation.drawn_on not in used
    }


class _Scan(NamedTuple):
    """number: of the volume, where the scan has several."""

    modality: str
    volume: Volume
    head: Foreground
    number: int | None = None


class _Motion(NamedTuple):
    """Where a scan goes in its reference's space. alignment: None where none was estimated."""

    reference_ras_from_scan_ras: np.ndarray
    alignment: Alignment | None
    warnings: tuple[str, ...]


class _Placed(NamedTuple):
    """A scan in its reference's space, with its grey values. tissue: the head, or what of it the brain mask leaves.

    window: of the values without the bias field.
    """

    scan: _Scan
    motion: _Motion
    tissue: Foreground
    bias: Estimate
    window: Window


class _Leader(NamedTuple):
    """The scan that gives its grid to all that share it, and the brain that was found in it."""

    placed: _Placed
    frame: Frame
    brain: Brain | None


_BY_HEADER = _Motion(np.eye(4), None, ())


@dataclass(slots=True, eq=False)
class _Reference:
    """A scan and what follows it: its overview and each motion are worked out once, when they are wanted."""

    scan: _Scan
    register: Registration
    _view: Overview | None = None
    _motions: dict[str, _Motion] = field(default_factory=dict)

    def motion_of(self, scan: _Scan) -> _Motion:
        """How a scan goes with this one. Raises Unusable: OFF_GRID, REGISTRATION."""
        if scan is self.scan:
            return _BY_HEADER
        if self._view is None and self.register != "none":
            self._view = overview(self.scan.volume, self.scan.head)
        if scan.modality not in self._motions:
            self._motions[scan.modality] = _follow(scan, self.scan, self._view, register=self.register)
        return self._motions[scan.modality]


def _lead(reference: _Reference, scans: list[_Scan], *, recipe: Recipe, given: Segmentation | None) -> _Leader:
    """scans, given: as of a group. Raises Unusable where the scan can be no reference."""
    scan = reference.scan
    mask = _given_mask(given, reference, scans) if given and recipe.brain == "given" else None
    brain = find_brain(scan.volume, how=recipe.brain, given=mask, for_deepbet=scan.modality == recipe.wanted[0])
    placed = _place(scan, _BY_HEADER, recipe=recipe, brain=brain)
    return _Leader(placed, frame_stacks(scan.volume.grid, placed.tissue, recipe=recipe), brain)


def _prepare_group(
    group: list[_Scan],
    scans: list[_Scan],
    *,
    recipe: Recipe,
    segmentations: Mapping[str, Segmentation],
    given: Segmentation | None,
) -> PreparedSession:
    """The stacks of scans that share a working grid, in order of rank: the first that can be the reference is.

    scans: all of the session. given: the brain mask that the cohort brings. The brain that is found in the reference is
    that of all.
    """
    rejected: dict[str, Unusable] = {}
    followers = list(group)
    leader = None
    while followers and leader is None:
        reference = followers.pop(0)
        following = _Reference(reference, recipe.register)
        try:
            leader = _lead(following, scans, recipe=recipe, given=given)
        except Unusable as unusable:
            rejected[reference.modality] = unusable
    if leader is None:
        return PreparedSession([], rejected)
    frame, brain = leader.frame, leader.brain
    placed = {reference.modality: leader.placed}

    for scan in followers:
        try:
            motion = following.motion_of(scan)
            placed[scan.modality] = _place(scan, motion, recipe=recipe, brain=brain)
        except Unusable as unusable:
            rejected[scan.modality] = unusable

    drawn = _drawn(segmentations, placed, frame)
    stacks = _stacked(placed, frame, drawn.labels, recipe=recipe, brain=brain)
    return PreparedSession([stacks], rejected | drawn.lost, drawn.doubts)


class _Drawn(NamedTuple):
    """Segmentations by name: their label slices, what is doubtful about these, and why others gave none."""

    labels: dict[str, np.ndarray]
    doubts: dict[str, tuple[str, ...]]
    lost: dict[str, Unusable]


def _drawn(segmentations: Mapping[str, Segmentation], placed: Mapping[str, _Placed], frame: Frame) -> _Drawn:
    """Those that were drawn on one of these scans."""
    drawn = _Drawn({}, {}, {})
    for name, segmentation in segmentations.items():
        try:
            if segmentation.drawn_on in placed:
                drawn.labels[name], drawn.doubts[name] = _labels(segmentation, placed[segmentation.drawn_on], frame)
        except Unusable as unusable:
            drawn.lost[name] = unusable
    return drawn


def _given_mask(given: Segmentation, reference: _Reference, scans: list[_Scan]) -> Volume:
    """The cohort's brain mask, 1 in the brain, moved into the reference's space with the scan that it was drawn on.

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


def _check_lies_on(scan: _Scan, drawn: Volume) -> None:
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


def _follow(scan: _Scan, reference: _Scan, view: Overview | None, *, register: Registration) -> _Motion:
    """How a scan follows its reference; view is the reference's, None when nothing is to be resampled.

    Raises Unusable: OFF_GRID, REGISTRATION.
    """
    if view is None:
        if not scan.volume.grid.matches(reference.volume.grid, tolerance_mm=_SAME_GRID_MM):
            raise Unusable(Reason.OFF_GRID, _grid_difference(scan, reference))
        return _BY_HEADER
    try:
        alignment = align(view, overview(scan.volume, scan.head))
    except Unusable as unusable:
        if register == "rigid":
            raise
        return _BY_HEADER._replace(warnings=(f"no estimate of how far the header is off: {unusable.detail}",))
    warnings: tuple[str, ...] = ()
    if alignment.similarity_after < _LEAST_SIMILARITY:
        figures = f"similarity {alignment.similarity_after:.2f}, {_LEAST_SIMILARITY} and more are expected"
        warnings = (f"has little in common with the {reference.modality} ({figures}): is it of the same person?",)
    if alignment.shift_mm > SUSPICIOUS_SHIFT_MM:
        fate = "moved it" if register == "rigid" else "would move it"
        offset = f"{alignment.shift_mm:.1f} mm from the {reference.modality}"
        warnings += (f"the header places the {scan.modality} {offset}; `register: rigid` {fate}",)
    motion = alignment.reference_ras_from_scan_ras if register == "rigid" else np.eye(4)
    return _Motion(motion, alignment, warnings)


def _grid_difference(scan: _Scan, reference: _Scan) -> str:
    ours, theirs = scan.volume.grid, reference.volume.grid
    if ours.shape != theirs.shape:
        found = f"shape {ours.shape}, the {reference.modality}'s is {theirs.shape}"
    else:
        found = f"corners lie up to {ours.distance_mm(theirs):.2f} mm from those of the {reference.modality}"
    return f"{found}; `register: header` or `rigid` resamples it"


def _place(
    scan: _Scan, motion: _Motion, *, recipe: Recipe, brain: Brain | None, bias: Estimate | None = None
) -> _Placed:
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
    return _Placed(scan, motion, tissue, bias, window)


def _stacked(
    placed: dict[str, _Placed],
    frame: Frame,
    labels: dict[str, np.ndarray],
    *,
    recipe: Recipe,
    brain: Brain | None,
) -> Prepared:
    if recipe.form == "modalities":
        modalities, heights_mm = recipe.channels, (0.0, 0.0, 0.0)
    else:
        (modality,) = placed
        modalities, heights_mm = (modality, modality, modality), (-recipe.gap_mm, 0.0, recipe.gap_mm)
    mask = brain.mask if brain else None
    pixels = np.zeros((frame.slices.size, CHANNELS, recipe.size_px, recipe.size_px), dtype=np.uint8)
    for channel, (modality, height_mm) in enumerate(zip(modalities, heights_mm, strict=True)):
        if modality in placed:
            _fill_grey(
                pixels[:, channel],
                placed[modality],
                frame=frame,
                height_mm=height_mm,
                interpolation=recipe.interpolation,
                mask=mask,
            )
    first, second, third = (modality in placed for modality in modalities)
    return Prepared(
        pixels=pixels,
        slices=frame.slices,
        position_mm=frame.position_mm,
        height=frame.height,
        foreground=frame.foreground,
        modalities=modalities,
        present=(first, second, third),
        labels=labels,
        working=frame.working,
        facts=[
            _facts(scan, frame, recipe.register, brain, is_reference=number == 0)
            for number, scan in enumerate(placed.values())
        ],
    )


def _fill_grey(
    grey: np.ndarray,
    placed: _Placed,
    *,
    frame: Frame,
    height_mm: float,
    interpolation: Interpolation,
    mask: Volume | None,
) -> None:
    """Write a scan's planes, so far above the kept slices, into uint8 (n, size, size): black outside scan and mask."""
    volume, window, field = placed.scan.volume, placed.window, placed.bias.field
    at = frame.slices + height_mm / frame.working.spacing_mm[2]
    scan_ras_from_ras = np.linalg.inv(placed.motion.reference_ras_from_scan_ras)
    # A scan whose rows run the other way is taken as it runs, and turned round once it is bytes: in half the time.
    x_step = volume.grid.voxel_from_ras[:3, :3] @ scan_ras_from_ras[:3, :3] @ frame.working.ras_from_voxel[:3, 0]
    backwards = x_step[np.abs(x_step).argmax()] < 0
    target = frame.working.mirrored() if backwards else frame.working
    stored = planes(
        volume.stored,
        source=volume.grid,
        target=target,
        source_ras_from_target_ras=scan_ras_from_ras,
        at=at,
        interpolation=interpolation,
        outside=volume.unscaled(-np.inf if field else window.low),  # black, whatever the field makes of it
    )
    greys = map(volume.scaled, stored)
    if field:
        corrections = planes(
            field.correction,
            source=field.grid,
            target=target,
            source_ras_from_target_ras=scan_ras_from_ras,
            at=at,
            interpolation="linear",
            outside=1.0,
        )
        greys = map(np.multiply, greys, corrections)
    for row, values in zip(grey, greys, strict=True):
        pixels = to_pixels(to_uint8(values, window))
        row[:] = mirrored(pixels) if backwards else pixels
    if mask is not None:
        brain = planes(
            mask.stored,
            source=mask.grid,
            target=frame.working,
            source_ras_from_target_ras=np.eye(4),
            at=at,
            interpolation="nearest",
            outside=0,
        )
        for row, plane in zip(grey, brain, strict=True):
            row[to_pixels(plane) == 0] = 0


class _Labels(NamedTuple):
    """planes: uint16 (n, size, size), of the kept slices, 0 outside the segmentation."""

    planes: np.ndarray
    doubts: tuple[str, ...]


def _labels(segmentation: Segmentation, drawn_on: _Placed, frame: Frame) -> _Labels:
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


def _facts(
    placed: _Placed, frame: Frame, register: Registration, brain: Brain | None, *, is_reference: bool
) -> ScanFacts:
    of_brain = brain.warnings if brain and is_reference else ()
    volume, motion, alignment = placed.scan.volume, placed.motion, placed.motion.alignment
    return ScanFacts(
        modality=placed.scan.modality,
        volume=placed.scan.number,
        native=volume.grid,
        working=frame.working,
        form_distance_mm=volume.form_distance_mm,
        window=placed.window,
        foreground_share=placed.tissue.share,
        register="none" if is_reference else register,
        reference_ras_from_scan_ras=motion.reference_ras_from_scan_ras,
        shift_mm=alignment.shift_mm if alignment else None,
        similarity_before=alignment.similarity_before if alignment else None,
        similarity_after=alignment.similarity_after if alignment else None,
        brain=brain.source if brain else "none",
        brain_ml=brain.size_ml if brain else None,
        bias_field_ratio=placed.bias.field.ratio if placed.bias.field else None,
        warnings=volume.warnings + motion.warnings + of_brain + placed.bias.warnings + _no_background(placed.tissue),
    )


def _no_background(tissue: Foreground) -> tuple[str, ...]:
    if tissue.share <= _MOST_FOREGROUND:
        return ()
    return (f"{tissue.share:.0%} of the volume is foreground: no background was found; is this a head?",)
