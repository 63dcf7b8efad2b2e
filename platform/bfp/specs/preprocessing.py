"""Preprocessing: from a session's volumes to its slice stacks (DESIGN, "The grid")."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bfp.specs.fields import Modality, Positive, Share, Strict


class ModalityStacks(Strict):
    """The paper's form: the same axial slice of three modalities."""

    form: Literal["modalities"]
    channels: tuple[Modality, Modality, Modality] = Field(
        ("T1w", "T2w", "FLAIR"),
        strict=False,
        description="The modality of each channel; the first that a session has is its reference.",
    )


class NeighbourStacks(Strict):
    """Three neighbouring slices of one modality."""

    form: Literal["neighbours"]
    gap_mm: Positive = Field(1.0, description="The distance between the three slices, mm.")
    modalities: list[Modality] = Field(
        default_factory=lambda: ["T1w", "T2w", "FLAIR"], min_length=1, description="The modalities that are taken."
    )


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError("the lower percentile must lie below the upper one")
    return window


Percentile = Annotated[float, Field(ge=0, le=100)]
Window = Annotated[tuple[Percentile, Percentile], AfterValidator(_rising), Field(strict=False)]


class Preprocessing(Strict):
    """What is done to every scan; a store has one, and refuses another."""

    stacks: Annotated[ModalityStacks | NeighbourStacks, Field(discriminator="form")] = Field(
        default_factory=lambda: ModalityStacks(form="modalities"),
        description="What the three channels of a stack are: three modalities, or three neighbouring slices of one.",
        examples=[{"form": "neighbours", "gap_mm": 1.0}],
    )
    spacing_mm: Positive = Field(1.0, le=20, description="Pixel size of a stack, mm.")
    slice_spacing_mm: Positive | None = Field(
        None, le=50, description="Distance from one slice to the next, mm. null: the same as spacing_mm."
    )
    size: int = Field(224, ge=28, le=1024, description="Height and width of a stack, pixels.")
    registration: Literal["none", "header", "rigid"] = Field(
        "rigid",
        alias="register",  # pydantic's base class has a `register` of its own
        description="How a session's scans come onto their reference. none: they must share its grid; header: by their "
        "headers, offsets are flagged; rigid: by mutual information.",
    )
    brain: Literal["none", "given", "deepbet"] = Field(
        "none",
        description="none: the whole image. given: voxels outside the cohort's segmentation named `brain` are set "
        "to zero. deepbet: the mask is found in the image.",
    )
    window: Window = Field(
        (0.5, 99.5), description="Percentiles of the foreground's intensities that become 0 and 255."
    )
    min_foreground: Share = Field(0.05, description="A slice is kept when at least this share of it is foreground.")
