"""kind: benchmark — the paper's protocol as one job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bfp.specs.encoders import Encoder, EncoderShape, parse_encoder
from bfp.specs.fields import Clash, Job, Misfit, Modality, Name, Positive, Shipped, Strict, Uri, Where, run_in_store
from bfp.specs.finetune import STRENGTHS, Column, FinetuneCompute, Pooling, Task, answers_told

HISTOGRAMS, COVARIATES, SITE, PERMUTED = "histograms", "covariates", "site", "permuted"
ATLAS, THRESHOLD = "atlas", "threshold"
"""Approaches beside the encoders, by the names that they have in every table; the last two of segmentations."""


class BenchmarkBaselines(Strict):
    """What stands beside the encoders, on the same folds."""

    histograms: bool = Field(True, description="Grey-value histograms of the slices, without any encoder.")
    covariates: list[Column] = Field(default_factory=list, description="These columns of the labels alone.")
    permuted: bool = Field(
        True,
        description="The vectors of `ours`, with labels permuted among subjects: nothing is to be told.",
    )


class Benchmark(Job):
    """Encoders x tasks x label fractions x modalities x seeds x outside cohorts."""

    kind: Literal["benchmark"]
    store: Uri = Field(description="The slice store that is learned from.", examples=["stores/my-store"])
    where: Where = Field(default_factory=Where, description="Which part of the store is used.")
    external: dict[Name, Uri] = Field(
        default_factory=dict,
        description="Outside cohorts: a name and a slice store each, made by the same preprocessing. They are tested "
        "on only.",
        examples=[{"aibl": "s3://brains/stores/aibl"}],
    )
    encoders: dict[Name, Encoder] = Field(
        min_length=1,
        description="What is compared: a name and an encoder each.",
        examples=[{"untrained": "random:vit_small_patch14_dinov2", "ours": "runs/my-encoder"}],
    )
    encoder_shape: EncoderShape | None = Field(
        None,
        description="Of the random: encoders, a smaller ViT than the named ones. null: as named.",
        examples=[{"width": 192, "depth": 12, "heads": 3}],
    )
    ours: Name | None = Field(None, description="The encoder that each other one is compared with. null: the last.")
    labels: Shipped | None = Field(
        None,
        description="A CSV or TSV of labels, as for finetune; outside cohorts of which it says nothing bring their "
        "own. null: what the cohorts carried along.",
    )
    tasks: list[Task] = Field(
        min_length=1,
        description="What is learned.",
        examples=[[{"type": "classification", "target": "diagnosis", "classes": ["control", "patient"]}]],
    )
    label_fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="Shares of the training subjects whose labels are used; a smaller one is part of a larger.",
    )
    modalities: list[Annotated[list[Modality], Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Sets of modalities that are shown to the encoder. What was learned with one of them is also "
        "tested with those that are part of it: as if the others were missing. null: all of the store.",
        examples=[[["T1w"], ["T1w", "T2w", "FLAIR"]]],
    )
    pooling: Pooling = Field("position", description="From the stacks of a session to one vector, as for finetune.")
    regularisation: list[Positive] = Field(
        default_factory=lambda: list(STRENGTHS),
        min_length=1,
        description="Inverse strengths C of the heads; one is chosen inside each fold's training subjects.",
    )
    folds: int = Field(5, ge=2, le=50, description="Folds of the cross-validation, grouped by subject.")
    splits: Shipped | None = Field(
        None, description="A table with the fold of each subject, as for finetune. null: dealt by each seed."
    )
    seeds: int = Field(1, ge=1, le=100, description="Repetitions with other seeds: other folds, other few labels.")
    baselines: BenchmarkBaselines = Field(
        default_factory=BenchmarkBaselines, description="What stands beside the encoders."
    )
    site: Column | None = Field(
        None,
        description="The column of the labels that says where a session was scanned, for the site probe. null: `site` "
        "where there is one, else the cohort.",
    )
    compute: FinetuneCompute = Field(default_factory=FinetuneCompute, description="How the work is spread out.")

    @field_validator("label_fractions")
    @classmethod
    def _fractions_differ(cls, fractions: list[float]) -> list[float]:
        if twice := [each for number, each in enumerate(fractions) if each in fractions[:number]]:
            raise ValueError(f"{twice[0]:g} is there twice")
        return fractions

    @field_validator("modalities")
    @classmethod
    def _sets_differ(cls, sets: list[list[str]] | None) -> list[list[str]] | None:
        seen: list[set[str]] = []
        for each in sets or []:
            if len(set(each)) < len(each):
                raise ValueError(f"[{', '.join(each)}] names a modality twice")
            if set(each) in seen:
                raise ValueError(f"[{', '.join(each)}] is there twice")
            seen.append(set(each))
        return sets

    @model_validator(mode="after")
    def _parts_fit(self) -> Benchmark:
        taken = (HISTOGRAMS, COVARIATES, SITE, PERMUTED, ATLAS, THRESHOLD)
        clashes = [
            Clash(f"encoders.{name}", "is the name of a baseline; give the encoder another", ())
            for name in self.encoders
            if name in taken
        ]
        if self.ours is not None and self.ours not in self.encoders:
            clashes.append(
                Clash("ours", f"is none of the encoders, which are {', '.join(self.encoders)}", ("encoders",))
            )
        if self.encoder_shape and not any(parse_encoder(each).origin == "random" for each in self.encoders.values()):
            clashes.append(Clash("encoder_shape", "goes with random: encoders, and there is none", ("encoders",)))
        for number, task in enumerate(self.tasks):
            if any(task == earlier for earlier in self.tasks[:number]):
                clashes.append(Clash(f"tasks[{number}]", "is there twice", ()))
        columns = {f"baselines.covariates[{n}]": name for n, name in enumerate(self.baselines.covariates)}
        clashes += [clash for task in self.tasks for clash in answers_told(task, columns, field="tasks")]
        clashes += run_in_store(self, [self.store, *self.external.values()])
        if clashes:
            raise Misfit(*clashes)
        return self

    @property
    def compared(self) -> str:
        """The name of the encoder that others are compared with."""
        return self.ours or list(self.encoders)[-1]
