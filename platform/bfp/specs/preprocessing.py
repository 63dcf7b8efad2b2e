"""Preprocessing: from a session's volumes to its slice stacks (DESIGN, "The grid")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bfp.specs.fields import Clash, Misfit, Modality, Positive, Share, Strict
from bfp.specs.preprocessing_presets import PREPROCESSING_PRESETS

T1W = "T1w"  # what deepbet was trained on
BRAIN_PROGRAM = "brain_program"
"""Of a stored preprocessing with `brain: program`: the command, which is no field of a spec."""


class ModalityStacks(Strict):
    """The paper's form: the same slice of three modalities."""

    form: Literal["modalities"]
    channels: tuple[Modality, Modality, Modality] = Field(
        ("T1w", "T2w", "FLAIR"),
        strict=False,
        description="The modality of each channel; the first that a session has is its reference.",
    )


class NeighbourStacks(Strict):
    """Three neighbouring slices of one modality."""

    form: Literal["neighbours"]
    gap_mm: float = Field(
        1.0, ge=0, description="The distance between the three slices, mm. 0: the same slice three times."
    )
    modalities: list[Modality] = Field(
        default_factory=lambda: ["T1w", "T2w", "FLAIR"], min_length=1, description="The modalities that are taken."
    )


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError("the lower percentile must lie below the upper one")
    return window


Percentile = Annotated[float, Field(ge=0, le=100)]
Window = Annotated[tuple[Percentile, Percentile], AfterValidator(_rising), Field(strict=False)]


def _upwards(ends_mm: tuple[float, float]) -> tuple[float, float]:
    if ends_mm[0] >= ends_mm[1]:
        raise ValueError("the lower end must lie below the upper one")
    return ends_mm


SliceRange = Annotated[tuple[float, float], AfterValidator(_upwards), Field(strict=False)]

# Later fields stand in a store only where they differ from their default, which may therefore never change: a store
# that was made before there was such a field is one that has its default.
_ALWAYS_STORED = frozenset(
    {"stacks", "spacing_mm", "slice_spacing_mm", "size", "register", "brain", "window", "min_foreground"}
)


class Preprocessing(Strict):
    """What is done to every scan; a store has one, and refuses another.

    `preset` gives some of the fields other defaults; a field beside it overrides the preset's, within `stacks` each
    for itself unless the form is another.
    """

    preset: Literal["brainfound", "braindino"] | None = Field(
        None,
        description="A paper's preprocessing, as far as its code says it: BrainFound's or BrainDINO's. A field beside "
        "it overrides the preset's. null: bfp's own.",
    )
    stacks: Annotated[ModalityStacks | NeighbourStacks, Field(discriminator="form")] = Field(
        default_factory=lambda: ModalityStacks(form="modalities"),
        description="What the three channels of a stack are: three modalities, or three neighbouring slices of one.",
        examples=[{"form": "neighbours", "gap_mm": 1.0}],
    )
    volumes: Literal["refuse", "first", "mean", "each"] = Field(
        "refuse",
        description="What becomes of a 4-D file. refuse: it is rejected; first: its first volume is taken; mean: the "
        "mean of its volumes, as they lie; each: every volume gives stacks of its own (form neighbours), in the crop "
        "and brain mask of the first but a window of its own; a scan whose stacks exceed 1 GiB is rejected.",
    )
    spacing_mm: Positive = Field(1.0, le=20, description="Pixel size of a stack, mm.")
    slice_spacing_mm: Positive | None = Field(
        None, le=50, description="Distance from one slice to the next, mm. null: the same as spacing_mm."
    )
    size: int = Field(224, ge=28, le=1024, description="Height and width of a stack, pixels.")
    slice_axis: Literal["axial", "coronal", "sagittal"] = Field(
        "axial",
        description="Across which axis slices are cut, of those of the scan that lie closest to the head's. axial: "
        "anterior up, the patient's left on the left; coronal: superior up, left on the left; sagittal: superior up, "
        "posterior on the left.",
    )
    slice_range_mm: SliceRange | None = Field(
        None,
        description="Only slices from here to here along the axis, mm from the head's centre (or the brain mask's): "
        "superior, anterior or right is positive. null: all that have enough foreground.",
        examples=[[-40, 50]],
    )
    registration: Literal["none", "header", "rigid"] = Field(
        "rigid",
        alias="register",  # pydantic's base class has a `register` of its own
        description="How a session's scans come onto their reference. none: they must share its grid; header: by their "
        "headers, offsets are flagged; rigid: by mutual information.",
    )
    interpolation: Literal["linear", "cubic"] = Field(
        "linear",
        description="How grey values are taken between voxels; labels are always the nearest's. cubic: by the B-spline "
        "through the voxels, sharper and slower.",
    )
    brain: Literal["none", "given", "image", "deepbet", "program"] = Field(
        "none",
        description="Where the brain mask comes from: what is outside becomes black, and crop, window and slices go by "
        "what is inside. none: no mask, the whole head. given: the cohort's segmentation named `brain`; the scan that "
        "it was drawn on takes it along to the session's reference, in form neighbours to each other scan, as "
        "`register` says, and a session without that scan has no mask. image: what is "
        "not background in a session's reference, which must be skull-stripped already. deepbet: found in the T1w "
        "(unless that is skull-stripped already) by the program of this name, an extra: pip install 'bfp[deepbet]'. "
        "program: found in a session's reference, in form neighbours in each scan (unless that is skull-stripped "
        "already) by a program of your own, whose command stands in the profile: local.brain_program in bfp.toml, "
        "beside the spec, in the working directory or in the user's config folder.",
    )
    bias_field: Literal["none", "n4"] = Field(
        "none",
        description="Whether the smooth gain of the receiver's coil is taken out of each scan before its window. n4: "
        "by N4ITK (Tustison et al. 2010, doi 10.1109/TMI.2010.2046908) within the foreground, a voxel every 8 mm; of "
        "`volumes: each` in the first volume for all. For MR images as the scanner made them: values of both signs "
        "(CT, standardised images) stay as they are, with a warning, and maps (T1, ADC) have no such gain. It "
        "takes some 2 s a scan, about 20 times the rest of preparing.",
    )
    window: Window = Field(
        (0.5, 99.5),
        description="Percentiles of the foreground's intensities that become 0 and 255; with `intensity: zscore`, "
        "between which mean and standard deviation are taken.",
    )
    intensity: Literal["percentiles", "zscore"] = Field(
        "percentiles",
        description="percentiles: `window` becomes 0 and 255. zscore: so many standard deviations below and above the "
        "foreground's mean do (`zscore_limit`).",
    )
    zscore_limit: Positive = Field(
        3.0, description="With `intensity: zscore`: how many standard deviations from the mean become 0 and 255."
    )
    min_foreground: Share = Field(0.05, description="A slice is kept when at least this share of it is foreground.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(preset := given.get("preset"), str):
            return given
        fields = PREPROCESSING_PRESETS.get(preset, {})
        filled = {**fields, **given}
        stacks, own = fields.get("stacks"), given.get("stacks")
        if isinstance(stacks, dict) and isinstance(own, dict) and own.get("form", stacks["form"]) == stacks["form"]:
            filled["stacks"] = {**stacks, **own}
        return filled

    @model_validator(mode="after")
    def _fields_fit(self) -> Preprocessing:
        clashes = []
        if self.intensity == "percentiles" and self.zscore_limit != type(self).model_fields["zscore_limit"].default:
            clashes.append(Clash("zscore_limit", "goes with `intensity: zscore` only", ("intensity",)))
        if self.volumes == "each" and isinstance(self.stacks, ModalityStacks):
            clashes.append(
                Clash(
                    "volumes",
                    "each goes with `stacks: {form: neighbours}` only: which volumes of three modalities would make "
                    "one stack is not known; first and mean make one volume of each scan",
                    ("stacks",),
                )
            )
        several = isinstance(self.stacks, NeighbourStacks) and len(self.stacks.modalities) > 1
        if self.volumes == "each" and self.brain == "given" and several:
            clashes.append(
                Clash(
                    "volumes",
                    "each with `brain: given` goes with one modality only, on which the mask was drawn: scans come "
                    "one by one",
                    ("stacks", "modalities"),
                )
            )
        if self.brain == "deepbet" and (expected := self._unfit_for_deepbet()):
            by_preset = PREPROCESSING_PRESETS.get(self.preset or "", {})
            field, other = (
                ("brain", "stacks") if "brain" not in by_preset and "stacks" in by_preset else ("stacks", "brain")
            )
            clashes.append(Clash(field, expected, (other,)))
        if clashes:
            raise Misfit(*clashes)
        return self

    def _unfit_for_deepbet(self) -> str:
        stacks = self.stacks
        if isinstance(stacks, ModalityStacks) and stacks.channels[0] != T1W:
            return f"deepbet finds the brain in the {T1W}, which must be the first of stacks.channels"
        if isinstance(stacks, NeighbourStacks) and stacks.modalities != [T1W]:
            return f"deepbet finds the brain in a {T1W} alone: write stacks.modalities: [{T1W}]"
        return ""

    def stored(self, *, brain_program: Sequence[str] = ()) -> dict[str, Any]:
        """As it stands in store.json and decides what a shard is called: what is done, without the preset's name.

        brain_program: the command of `brain: program`, if that is wanted.
        """
        told = self.model_dump(mode="json", exclude={"preset"})
        fields = {field.alias or name: field for name, field in type(self).model_fields.items()}
        return {
            name: value for name, value in told.items() if name in _ALWAYS_STORED or value != fields[name].default
        } | ({BRAIN_PROGRAM: command_stored(brain_program)} if brain_program else {})

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> Preprocessing:
        """The fields that stand in a store or a model. Raises ValidationError."""
        return cls.model_validate({name: value for name, value in stored.items() if name != BRAIN_PROGRAM})


def command_stored(command: Sequence[str]) -> list[str]:
    """A command as it stands in a store or a model: its program by its file name, its other words as they are.

    Where a program lies is each machine's own affair: a store is added to and a model used from several, and the way to
    a program may tell a user's name. What it is called and what it is told decide what it does.
    """
    return [PurePath(command[0]).name, *command[1:]]
