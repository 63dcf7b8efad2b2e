"""Cohorts: where scans come from."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from bfp.specs.fields import (
    ENTITY_PATTERN,
    ENTITY_VALUE_PATTERN,
    Clash,
    Misfit,
    Modality,
    Name,
    Shipped,
    Strict,
    Uri,
    lies_in,
)


def _not_who_or_when(entity: str) -> str:
    if entity in ("sub", "ses"):
        raise ValueError("tells who and when, not which scan; such as acq, ce, rec or run")
    return entity


Entity = Annotated[str, StringConstraints(pattern=ENTITY_PATTERN), AfterValidator(_not_who_or_when)]
EntityValue = Annotated[str, StringConstraints(pattern=ENTITY_VALUE_PATTERN)]


class Segmentation(Strict):
    """Label maps that ride along from a cohort's scans to the stacks, or its brain masks."""

    name: Name = Field(
        description="What this segmentation is called in the store. `brain`: the brain mask, with `brain: given`.",
        examples=["tumour"],
    )
    suffix: str | None = Field(
        None, description="BIDS cohorts: how the file name ends before its extension (`label-lesion_mask`, `dseg`)."
    )
    column: str | None = Field(None, description="Table cohorts: the column with the label map's URI.")
    drawn_on: Modality = Field(
        description="The modality of the scan on which the labels were drawn: they go where it goes. A map that does "
        "not lie on it by its own header is not used.",
        examples=["T1w"],
    )
    classes: dict[Name, list[Annotated[int, Field(ge=1, le=65535)]]] = Field(
        description="Each class and the label values that make it; every other value is background. Of a brain mask, "
        "what is in any class is brain.",
        min_length=1,
        examples=[{"lesion": [1]}],
    )

    @model_validator(mode="after")
    def _classes_differ(self) -> Segmentation:
        clashes, owner = [], dict[int, str]()
        for name, values in self.classes.items():
            for value in values:
                if owner.setdefault(value, name) != name:
                    expected = f"the value {value} is {owner[value]} already; give each value to one class"
                    clashes.append(Clash(f"classes.{name}", expected, (f"classes.{owner[value]}",)))
        if clashes:
            raise Misfit(*clashes)
        return self


class Cohort(Strict):
    """A set of scans from one source: exactly one of `bids`, `table` and `glob`."""

    name: Name = Field(description="The cohort's name; it stands in every row of the store.", examples=["my-cohort"])
    bids: Uri | None = Field(None, description="A BIDS dataset's root.", examples=["data/bids", "s3://brains/ds-a"])
    table: Shipped | None = Field(
        None,
        description="A CSV or TSV file with columns subject, modality, uri and, if any, session; "
        "relative URIs are relative to the table; every other column is carried along.",
        examples=["scans.csv"],
    )
    glob: Uri | None = Field(
        None, description="A path or URI with `*`, `?` and `**`.", examples=["s3://brains/ds-c/**/*_T1w.nii.gz"]
    )
    pattern: Annotated[str, StringConstraints(max_length=1024)] | None = Field(
        None,
        description="With `glob`: a regular expression, searched in each URI, with the named groups `subject` and "
        "`modality`, and `session` if any.",
        examples=["sub-(?P<subject>[^/_]+).*_(?P<modality>[^_.]+)[.]nii"],
    )
    dicom: bool = Field(
        False,
        description="With `table` or `glob`: the scans are DICOM, and the files of one folder are one series, which "
        "dcm2niix, an extra, makes an image of: pip install 'bfp[dicom]'. A table names the folders; a glob finds any "
        "file in them, and the pattern is searched in the folder's URI, ended by a slash.",
    )
    modalities: dict[str, Modality] = Field(
        default_factory=dict,
        description="The cohort's own names of modalities and the BIDS suffixes they stand for.",
        examples=[{"T1": "T1w", "FL": "FLAIR"}],
    )
    prefer: dict[Entity, EntityValue | None] = Field(
        default_factory=dict,
        description="BIDS cohorts: of several scans of one modality, those whose names have these entities are taken "
        "first, in this order; null: without the entity. Others are taken where there is none. {}: the plainest name.",
        examples=[{"acq": "mprage", "ce": None}],
    )
    segmentations: list[Segmentation] = Field(
        default_factory=list,
        description="Label maps that ride along.",
        examples=[[{"name": "tumour", "suffix": "label-lesion_mask", "drawn_on": "T1w", "classes": {"lesion": [1]}}]],
    )
    labels: Shipped | None = Field(
        None,
        description="A CSV or TSV of labels and covariates by subject (and session; and cohort, where two "
        "cohorts have a subject of that label), carried into the store. "
        "null: participants.tsv and sessions.tsv of a BIDS dataset, the further columns of a table.",
    )

    @field_validator("pattern")
    @classmethod
    def _names_subject_and_modality(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        missing = [name for name in ("subject", "modality") if name not in groups]
        if missing:
            raise ValueError(
                f"lacks the named group{'s' * (len(missing) > 1)} {' and '.join(missing)}; write (?P<{missing[0]}>…)"
            )
        return pattern

    @model_validator(mode="after")
    def _one_source(self) -> Cohort:
        given = [source for source in ("bids", "table", "glob") if getattr(self, source) is not None]
        clashes = []
        if len(given) != 1:
            found = " and ".join(given) or "none"
            clashes.append(
                Clash("", f"give exactly one of bids, table and glob; found {found}", ("bids", "table", "glob"))
            )
        if given == ["glob"] and self.pattern is None:
            expected = "needs a `pattern`, which tells subject and modality from each name"
            clashes.append(Clash("glob", expected, ("pattern",)))
        if self.glob is None and self.pattern is not None:
            clashes.append(Clash("pattern", "goes with `glob` only", ("glob",)))
        if given == ["bids"] and self.dicom:
            clashes.append(Clash("dicom", "BIDS is NIfTI; name DICOM folders by `table` or `glob`", ("bids",)))
        if given in (["glob"], ["table"]) and self.prefer:
            expected = "goes with `bids` only; of a table the first row is taken, of a glob the first by name"
            clashes.append(Clash("prefer", expected, (given[0],)))
        if given == ["glob"] and self.segmentations:
            expected = "a glob cohort carries no segmentations; list its files in a table instead"
            clashes.append(Clash("segmentations", expected, ("glob",)))
        names = [segmentation.name for segmentation in self.segmentations]
        for number, segmentation in enumerate(self.segmentations):
            at = f"segmentations[{number}]"
            if segmentation.name in names[:number]:
                expected = "another segmentation of this cohort has this name; give each its own"
                first = names.index(segmentation.name)
                clashes.append(Clash(f"{at}.name", expected, (f"segmentations[{first}].name",)))
            key, other = {"bids": ("suffix", "column"), "table": ("column", "suffix")}.get("".join(given), ("", ""))
            if key and getattr(segmentation, key) is None:
                expected = f"the segmentation of a {given[0]} cohort needs its `{key}`"
                clashes.append(Clash(at, expected, tuple(given)))
            if other and getattr(segmentation, other) is not None:
                expected = f"the label maps of a {given[0]} cohort are found by `{key}` alone"
                clashes.append(Clash(f"{at}.{other}", expected, tuple(given)))
        if clashes:
            raise Misfit(*clashes)
        return self


def in_cohorts(field: str, folder: str, cohorts: list[Cohort]) -> list[Clash]:
    """Nothing is written into a BIDS dataset but where BIDS has a place for it."""
    what = {"output": "the run's folder", "store": "the store"}[field]
    return [
        Clash(
            field,
            f"{what} would be {folder}, among the data of cohort {cohort.name}; give a place outside of "
            f"{cohort.bids}, or its derivatives/",
            (f"cohorts[{number}].bids",),
        )
        for number, cohort in enumerate(cohorts)
        if cohort.bids
        and lies_in(folder, cohort.bids)
        and not lies_in(folder, f"{cohort.bids.rstrip('/')}/derivatives")
    ]


def same_names(cohorts: list[Cohort]) -> list[Clash]:
    """The cohorts that are called like an earlier one."""
    names = [cohort.name for cohort in cohorts]
    return [
        Clash(f"cohorts[{number}].name", "another cohort has this name; give each its own")
        for number, name in enumerate(names)
        if name in names[:number]
    ]
