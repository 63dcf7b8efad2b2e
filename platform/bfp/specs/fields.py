"""What the specs of all kinds share: the strict base model, names, URIs, filters.

Every field carries a description (its meaning, unit and bounds), because `bfp init` and the JSON Schemas print it; a
field without a default carries examples, and what `bfp init` writes is the first of them. Defaults and rules across
fields live in these models alone; nothing below the drivers repeats them.

Relative paths are made absolute while a spec is loaded (`files.load` hands over the two `Folders`): those of a `Uri`
from the working directory, those of a `Shipped`, an input that ships with the spec, from the spec's own folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MODALITY_PATTERN = r"^[A-Za-z0-9]{1,32}$"
ENTITY_PATTERN = r"^[a-z]{1,16}$"
ENTITY_VALUE_PATTERN = r"^[A-Za-z0-9]{1,64}$"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
DNS_LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
IMAGE_PATTERN = (
    r"^[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?"
    r"(@sha256:[0-9a-f]{64})?$"
)
EXTENDED_RESOURCE_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
SBATCH_OPTION_PATTERN = r"^--[a-z][a-z-]*(=[^\n]*)?$"

PATTERNS_IN_WORDS = {
    NAME_PATTERN: "a name of up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit",
    MODALITY_PATTERN: "a BIDS suffix of up to 32 letters and digits, such as T1w",
    ENTITY_PATTERN: "a BIDS entity in small letters, such as acq, ce, rec or run",
    ENTITY_VALUE_PATTERN: "the value of a BIDS entity: letters and digits, as in acq-mprage",
    ENV_NAME_PATTERN: "the name of an environment variable: letters, digits and '_', not beginning with a digit",
    DNS_LABEL_PATTERN: "a name as Kubernetes wants it: up to 63 small letters, digits and '-', with none at its ends",
    IMAGE_PATTERN: "an image: registry.example.org/NAME:TAG, or NAME@sha256:DIGEST, without http://",
    EXTENDED_RESOURCE_PATTERN: "what a device plugin offers, such as nvidia.com/gpu",
    SBATCH_OPTION_PATTERN: "an option of sbatch, --name or --name=value",
}


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders, absolute, that a spec's relative paths start from."""

    spec: str
    working: str


def absolute(text: str, folder: str) -> str:
    """A path made absolute from `folder`; a URI as it is."""
    return text if "://" in text else os.path.abspath(os.path.join(folder, os.path.expanduser(text)))


def _from_working_folder(text: str, info: ValidationInfo) -> str:
    return absolute(text, info.context.working) if isinstance(info.context, Folders) else text


def _from_spec_folder(text: str, info: ValidationInfo) -> str:
    return absolute(text, info.context.spec) if isinstance(info.context, Folders) else text


UriText = Annotated[str, StringConstraints(min_length=1, max_length=2048)]

Uri = Annotated[UriText, AfterValidator(_from_working_folder)]
"""A local path (from the working directory) or a URI (`s3://bucket/key`, any fsspec scheme)."""

Shipped = Annotated[UriText, AfterValidator(_from_spec_folder)]
"""A file that ships with the spec: a local path (from the spec's folder) or a URI."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A run's or cohort's name; it becomes a folder."""

Modality = Annotated[str, StringConstraints(pattern=MODALITY_PATTERN)]
"""A BIDS suffix: T1w, T2w, FLAIR, …"""

Workers = Annotated[int, Field(ge=1, le=1024)]
"""How many processes work side by side."""

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Clash(NamedTuple):
    """A field, by its dotted path within the model ("" for the model itself), that does not go with others."""

    field: str
    expected: str
    others: tuple[str, ...] = ()


class Misfit(ValueError):
    """Fields that are each right but not together. A model's validator raises all of them at once."""

    def __init__(self, *clashes: Clash) -> None:
        self.clashes = clashes
        super().__init__("; ".join(f"{clash.field}: {clash.expected}".lstrip(": ") for clash in clashes))


class Strict(BaseModel):
    """What people write is read strictly: no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        serialize_by_alias=True,
        defer_build=True,  # of five kinds a light command reads one
    )


class Where(Strict):
    """Which part of a store is used; every filter that is given must hold."""

    cohorts: list[Name] | None = Field(None, min_length=1, description="Only these cohorts.")
    modalities: list[Modality] | None = Field(
        None, min_length=1, description="Only stacks that show at least one of these modalities."
    )
    subjects: Shipped | None = Field(
        None,
        description="A text file of subjects, one a line (`01`, or `cohort/01` where cohorts share it): only these.",
    )
    exclude_subjects: Shipped | None = Field(
        None, description="A text file of subjects, as for `subjects`: none of these."
    )


class Job(Strict):
    """The fields that every kind begins with."""

    kind: str
    name: Name = Field(description="The run's name: its folder is <output>/<name>.", examples=["my-run"])
    output: Uri = Field("runs", description="Where run folders go: a path (from the working directory) or a URI.")
    seed: int = Field(0, ge=0, lt=2**31, description="Every random draw of the run follows from it.")

    @property
    def folder(self) -> str:
        """The run's folder, a path or URI."""
        return f"{self.output.rstrip('/')}/{self.name}"


def lies_in(inner: str, outer: str) -> bool:
    """Whether a path or URI is another one, or lies below it."""
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def run_in_store(job: Job, stores: list[str]) -> list[Clash]:
    """A store holds nothing but its own files."""
    found = next((store for store in stores if lies_in(job.folder, store)), None)
    if found is None:
        return []
    expected = f"the run's folder would be {job.folder}, in the store {found}; give a place beside it"
    return [Clash("output", expected, ("store",))]


Precision = Literal["fp32", "bf16"]


class CpuCompute(Strict):
    """How an ingest is spread out. Changes nothing in what comes out."""

    workers: Workers | None = Field(
        None, description="Shards prepared at once, one CPU each. null: every CPU of the target."
    )
    scan_timeout_s: Positive = Field(
        300.0,
        description="A scan that is not read and decoded in this many seconds is rejected, and tried again by the "
        "next submit; so are the scans of a session that then need longer, each counted, to become stacks.",
    )
    retries: int = Field(2, ge=0, le=10, description="How often a shard whose worker died is tried again.")
