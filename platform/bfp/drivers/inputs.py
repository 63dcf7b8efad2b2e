"""What ingest and infer say of scans, as the plain values that the layers below take: sources, sessions, the recipe.

Light: the recipe alone needs `imaging`, and is asked for when work begins. What pretrain and finetune say of stores and
encoders: `stores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from bfp.cohorts import SegmentationSource, Session, Source, discover
from bfp.cohorts.sessions import BRAIN
from bfp.specs.cohorts import Cohort
from bfp.specs.preprocessing import ModalityStacks, Preprocessing
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    from bfp.imaging.stacks import Recipe


def sessions_of(cohorts: Sequence[Cohort], preprocessing: Preprocessing) -> list[Session]:
    """The sessions of all cohorts, sorted by key. Raises InputError where one cannot be listed or holds no scan."""
    wanted = wanted_modalities(preprocessing)
    return sorted(
        (session for cohort in cohorts for session in discover(_source(cohort), wanted=wanted)),
        key=lambda session: session.key,
    )


class Carried(NamedTuple):
    """In how many sessions of a cohort a segmentation has a label map; refused: of how many more their names forbid it.

    of: all sessions that have a scan.
    """

    cohort: str
    segmentation: str
    sessions: int
    refused: int
    of: int

    @property
    def text(self) -> str:
        refused = f"; in {self.refused:,} more by name drawn on another scan or space" if self.refused else ""
        return f"in {self.sessions:,} of {counted(self.of, 'session')} of cohort {self.cohort}{refused}"

    @property
    def warning(self) -> str:
        """What to say where none carries it, "" otherwise."""
        if self.sessions:
            return ""
        remedy = "compare its `suffix` or `column` with the cohort's files"
        return f"segmentation {self.segmentation}: {self.text}; {remedy}"


def carried(cohorts: Sequence[Cohort], sessions: Sequence[Session]) -> list[Carried]:
    """The segmentations of the cohorts, in the order of the spec."""
    found = []
    for cohort in cohorts:
        own = [session for session in sessions if session.key.cohort == cohort.name and session.scans]
        for name in (each.name for each in cohort.segmentations):
            maps = [
                label_map
                for session in own
                for label_map in session.label_maps
                if label_map.name == name and label_map.drawn_on in {scan.modality for scan in session.scans}
            ]
            refused = sum(bool(label_map.refused) for label_map in maps)
            found.append(Carried(cohort.name, name, len(maps) - refused, refused, len(own)))
    return found


def wanted_modalities(preprocessing: Preprocessing) -> tuple[str, ...]:
    """The modalities that stacks are made of, in the order of the spec."""
    stacks = preprocessing.stacks
    return tuple(stacks.channels if isinstance(stacks, ModalityStacks) else stacks.modalities)


def recipe_of(
    preprocessing: Preprocessing, *, brain_program: Sequence[str] = (), scan_timeout_s: float = math.inf
) -> Recipe:
    """The preprocessing as `imaging` takes it.

    brain_program: the command of `brain: program`, () where that is not wanted; it may take scan_timeout_s for a scan.
    """
    from bfp.imaging.mask_program import MaskProgram
    from bfp.imaging.stacks import Recipe

    stacks = preprocessing.stacks
    return Recipe(
        form=stacks.form,
        channels=stacks.channels if isinstance(stacks, ModalityStacks) else ("", "", ""),
        modalities=() if isinstance(stacks, ModalityStacks) else tuple(stacks.modalities),
        gap_mm=0.0 if isinstance(stacks, ModalityStacks) else stacks.gap_mm,
        spacing_mm=preprocessing.spacing_mm,
        slice_spacing_mm=slice_spacing_mm(preprocessing),
        size_px=preprocessing.size,
        register=preprocessing.registration,
        brain=preprocessing.brain,
        bias_field=preprocessing.bias_field,
        window_percentiles=preprocessing.window,
        min_foreground=preprocessing.min_foreground,
        intensity=preprocessing.intensity,
        zscore_limit=preprocessing.zscore_limit,
        slice_axis=preprocessing.slice_axis,
        slice_range_mm=preprocessing.slice_range_mm,
        volumes=preprocessing.volumes,
        interpolation=preprocessing.interpolation,
        brain_program=MaskProgram(tuple(brain_program), scan_timeout_s) if brain_program else None,
    )


def slice_spacing_mm(preprocessing: Preprocessing) -> float:
    """From one slice to the next: as said, else the size of a pixel."""
    return preprocessing.slice_spacing_mm or preprocessing.spacing_mm


def _source(cohort: Cohort) -> Source:
    kinds: tuple[Literal["bids", "table", "glob"], ...] = ("bids", "table", "glob")
    ((kind, at),) = ((kind, at) for kind in kinds if (at := getattr(cohort, kind)) is not None)
    return Source(
        cohort.name,
        kind,
        place(at),
        pattern=cohort.pattern or "",
        dicom=cohort.dicom,
        modalities=cohort.modalities,
        segmentations=tuple(
            SegmentationSource(
                each.name,
                each.drawn_on,
                suffix=each.suffix,
                column=each.column,
                inside=tuple(sorted({value for values in each.classes.values() for value in values}))
                if each.name == BRAIN
                else (),
            )
            for each in cohort.segmentations
        ),
        prefer=cohort.prefer,
        labels=place(cohort.labels) if cohort.labels else None,
    )
