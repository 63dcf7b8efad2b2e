"""kind: infer — model + new cohort -> predictions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bfp.specs.cohorts import Cohort, in_cohorts, same_names
from bfp.specs.fields import Clash, Job, Misfit, Positive, Share, Strict, Uri, Workers

Label = Annotated[str, Field(pattern=r"^[^/\s]+$")]
EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class InferCompute(Strict):
    """How an inference is spread out. Changes nothing in what comes out."""

    workers: Workers | None = Field(
        None, description="Sessions prepared at once, one CPU each. null: every CPU of the target."
    )
    models: Workers = Field(
        1, description="Copies of the model that predict side by side; without GPUs they share all CPUs."
    )
    gpus_per_model: float | None = Field(
        None, ge=0, le=8, description="GPUs for each copy. null: one if the target has any, else none."
    )
    batch_size: int = Field(64, ge=1, description="Stacks in one forward pass.")
    scan_timeout_s: Positive = Field(
        300.0,
        description="A scan that is not read and decoded in this many seconds is rejected, and tried again by the "
        "next submit; so are the scans of a session that then need longer, each counted, to become stacks.",
    )
    retries: int = Field(2, ge=0, le=10, description="How often sessions whose worker died are tried again.")


class Privacy(Strict):
    """What a run may show of the people whose scans it reads."""

    identifiers: Literal["keep", "hash"] = Field(
        "keep",
        description="hash: subjects, sessions and files stand in tables, events, pictures and report as hashes with a "
        "key; without the key nobody can find out whose they are.",
    )
    key_variable: EnvironmentVariable = Field(
        "BFP_IDENTIFIER_KEY",
        description="The environment variable that holds the key of `hash`, a secret of 16 characters or more. The "
        "same key gives the same hashes.",
    )
    pictures: Literal["shown", "brain", "none"] = Field(
        "shown",
        description="Slices of the scans in the report. brain: only where the model's preprocessing cuts out the "
        "brain, since a face can be made from slices of a head.",
    )


class Infer(Job):
    """Raw scans of new cohorts become one row of predictions a session."""

    kind: Literal["infer"]
    model: Uri = Field(
        description="A finetune run, or a model folder; for embeddings alone a pretrain run, or an exported encoder.",
        examples=["runs/my-model"],
    )
    cohorts: list[Cohort] = Field(
        min_length=1, description="Where the scans come from.", examples=[[{"name": "my-cohort", "bids": "data/bids"}]]
    )
    subjects: list[Label] | None = Field(
        None, min_length=1, description="Only subjects with these labels, without `sub-`. null: all.", examples=[["01"]]
    )
    embedding: bool = Field(True, description="Write each session's embedding beside its prediction.")
    max_rejected: Share | None = Field(
        None, description="Fail when more than this share of the scans is rejected. null: never."
    )
    privacy: Privacy = Field(default_factory=Privacy, description="What the run may show of people.")
    compute: InferCompute = Field(default_factory=InferCompute, description="How the work is spread out.")

    @model_validator(mode="after")
    def _cohorts_differ(self) -> Infer:
        if clashes := [
            *same_names(self.cohorts),
            *in_cohorts("output", self.folder, self.cohorts),
            *self._names_told(),
        ]:
            raise Misfit(*clashes)
        return self

    def _names_told(self) -> list[Clash]:
        """A run keeps its spec."""
        if self.subjects is None or self.privacy.identifiers == "keep":
            return []
        expected = (
            "would stand in the run by name, which identifiers: hash keeps out; leave it out, and give cohorts of "
        )
        return [Clash("subjects", f"{expected}these subjects alone", ("privacy.identifiers",))]
