"""All scans of a session to stacks, label slices and facts.

Form `modalities`: one set of stacks, on the grid of the reference (the first listed modality that can be used); the
other scans are resampled onto it once, with the registration composed in; a modality that is not there is zeros and
said to be absent. Form `neighbours`: one set of stacks for each scan, on its own grid; of a 4-D scan whose volumes are
wanted each, one for each volume, on the one grid of all.

A scan that cannot be used costs the session only that scan, and is returned with its reason.

Label maps and the brain mask that a cohort brings belong to the scan on which they were drawn (`label_maps`): it takes
them along wherever it goes (`placing`), and where it cannot be used they cannot either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.bias_field import Estimate
from bfp.imaging.brain import Brain, find_brain
from bfp.imaging.foreground import Foreground, find_foreground
from bfp.imaging.grid import Grid
from bfp.imaging.label_maps import Drawn, Segmentation, given_mask, label_slices, without_stacks
from bfp.imaging.mask_program import program_mask
from bfp.imaging.nifti import Series, Volume
from bfp.imaging.placing import BY_HEADER, Placed, Reference, Scan, place_scan
from bfp.imaging.resample import Interpolation, planes
from bfp.imaging.stacks import CHANNELS, BrainMask, Frame, Recipe, Registration, frame_stacks, mirrored, to_pixels
from bfp.imaging.window import Window, to_uint8

# More than any head fills, even one that was cropped to its brain.
_MOST_FOREGROUND = 0.9
# Less than the brain of any grown-up is high.
_LEAST_EXTENT_MM = 80.0
# Of the stacks of all volumes of a scan, as pixels, which inference holds at once. At about its own voxel size a scan
# of as many voxels as can be read stays below half of it; finer pixels would show nothing more.
MAX_SERIES_BYTES = 1 << 30


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
    scans: list[Scan] = []
    rejected: dict[str, Unusable] = {}
    for modality in sorted(volumes, key=recipe.rank):
        try:
            if modality not in recipe.wanted:
                raise Unusable(Reason.UNWANTED, f"{modality}; the stacks are made of {', '.join(recipe.wanted)}")
            scans.append(Scan(modality, volumes[modality], find_foreground(volumes[modality])))
        except Unusable as unusable:
            rejected[modality] = unusable.bare()

    groups = [scans] if recipe.form == "modalities" else [[scan] for scan in scans]
    prepared: list[Prepared] = []
    doubts: dict[str, tuple[str, ...]] = {}
    for group in groups:
        of_group = _prepare_group(group, scans, recipe=recipe, segmentations=segmentations, given=brain_mask)
        prepared += of_group.prepared
        rejected |= of_group.rejected
        doubts |= of_group.doubts
    used = {facts.modality for stacks in prepared for facts in stacks.facts}
    return PreparedSession(prepared, rejected | without_stacks(segmentations, used), doubts)


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
            scan = Scan(modality, volume, find_foreground(volume), number)
            if frame is None:
                placed, frame, brain = _lead(Reference(scan, recipe.register), [scan], recipe=recipe, given=brain_mask)
            else:
                placed = place_scan(scan, BY_HEADER, recipe=recipe, brain=brain, bias=bias)
        except Unusable as unusable:
            yield PreparedSession([], {modality: unusable.bare()})
            continue
        drawn = Drawn({}, {}, {})
        if leads:
            _check_size(frame, volumes=len(series))
            drawn = label_slices(segmentations, {modality: placed}, frame)
            drawn.lost.update(without_stacks(segmentations, {modality}))
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


class _Leader(NamedTuple):
    """The scan that gives its grid to all that share it, and the brain that was found in it."""

    placed: Placed
    frame: Frame
    brain: Brain | None


def _lead(reference: Reference, scans: list[Scan], *, recipe: Recipe, given: Segmentation | None) -> _Leader:
    """scans, given: as of a group. Raises Unusable where the scan can be no reference."""
    scan = reference.scan
    mask = given_mask(given, reference, scans) if given and recipe.brain == "given" else None

    def by_program() -> Volume:
        assert recipe.brain_program is not None
        made = Segmentation(program_mask(scan.volume, recipe.brain_program), scan.modality)
        return given_mask(made, reference, scans)  # it has to lie on its scan, as one that the cohort brings has

    brain = find_brain(
        scan.volume,
        how=recipe.brain,
        given=mask,
        for_deepbet=scan.modality == recipe.wanted[0],
        by_program=by_program,
    )
    placed = place_scan(scan, BY_HEADER, recipe=recipe, brain=brain)
    return _Leader(placed, frame_stacks(scan.volume.grid, placed.tissue, recipe=recipe), brain)


def _prepare_group(
    group: list[Scan],
    scans: list[Scan],
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
        following = Reference(reference, recipe.register)
        try:
            leader = _lead(following, scans, recipe=recipe, given=given)
        except Unusable as unusable:
            rejected[reference.modality] = unusable.bare()
    if leader is None:
        return PreparedSession([], rejected)
    frame, brain = leader.frame, leader.brain
    placed = {reference.modality: leader.placed}

    for scan in followers:
        try:
            motion = following.motion_of(scan)
            placed[scan.modality] = place_scan(scan, motion, recipe=recipe, brain=brain)
        except Unusable as unusable:
            rejected[scan.modality] = unusable.bare()

    drawn = label_slices(segmentations, placed, frame)
    stacks = _stacked(placed, frame, drawn.labels, recipe=recipe, brain=brain)
    return PreparedSession([stacks], rejected | drawn.lost, drawn.doubts)


def _stacked(
    placed: dict[str, Placed],
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
    placed: Placed,
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


def _facts(
    placed: Placed, frame: Frame, register: Registration, brain: Brain | None, *, is_reference: bool
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
        warnings=volume.warnings
        + _thin(volume.grid)
        + motion.warnings
        + of_brain
        + placed.bias.warnings
        + _no_background(placed.tissue),
    )


def _thin(grid: Grid) -> tuple[str, ...]:
    """A warning where no whole head has room in the grid."""
    extents_mm = [extent * spacing for extent, spacing in zip(grid.shape, grid.spacing_mm, strict=True)]
    if min(extents_mm) >= _LEAST_EXTENT_MM:
        return ()
    return (f"the volume is {min(extents_mm):.0f} mm thick: a localiser, or a part of a scan?",)


def _no_background(tissue: Foreground) -> tuple[str, ...]:
    if tissue.share <= _MOST_FOREGROUND:
        return ()
    return (f"{tissue.share:.0%} of the volume is foreground: no background was found; is this a head?",)
