"""kind: benchmark — the paper's protocol as one job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bfp.specs.encoders import Encoder
from bfp.specs.fields import Job, Modality, Name, Shipped, Uri, Where
from bfp.specs.finetune import FinetuneCompute, Task


class Benchmark(Job):
    """Encoders x tasks x label fractions x modalities x seeds x outside cohorts."""

    kind: Literal["benchmark"]
    store: Uri = Field(description="The slice store that is learned from.", examples=["stores/my-store"])
    where: Where = Field(default_factory=Where, description="Which part of the store is used.")
    external: dict[Name, Uri] = Field(
        default_factory=dict,
        description="Outside cohorts: a name and a slice store each.",
        examples=[{"aibl": "s3://brains/stores/aibl"}],
    )
    encoders: dict[Name, Encoder] = Field(
        min_length=1,
        description="What is compared: a name and an encoder each.",
        examples=[{"untrained": "random:vit_small_patch14_dinov2", "ours": "runs/my-encoder"}],
    )
    labels: Shipped | None = Field(None, description="A CSV or TSV of labels. null: what the cohorts carried along.")
    tasks: list[Task] = Field(
        min_length=1,
        description="What is learned.",
        examples=[[{"type": "classification", "target": "diagnosis", "classes": ["control", "patient"]}]],
    )
    label_fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="Shares of the training subjects whose labels are used.",
    )
    modalities: list[Annotated[list[Modality], Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Sets of modalities that are shown to the encoder. null: all of the store.",
        examples=[[["T1w"], ["T1w", "T2w", "FLAIR"]]],
    )
    tune: Literal["frozen", "lora", "full"] = Field("frozen", description="What is trained beside the head.")
    folds: int = Field(5, ge=2, le=50, description="Folds of the cross-validation, grouped by subject.")
    seeds: int = Field(1, ge=1, le=100, description="Repetitions with other seeds.")
    compute: FinetuneCompute = Field(default_factory=FinetuneCompute, description="How the work is spread out.")
