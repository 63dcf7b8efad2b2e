"""kind: finetune — encoder + labels -> model, with its cross-validated figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from bfp.specs.encoders import Encoder, EncoderShape, shape_clashes
from bfp.specs.fields import (
    Clash,
    Job,
    Misfit,
    Modality,
    Name,
    Positive,
    Share,
    Shipped,
    Strict,
    Uri,
    Where,
    Workers,
    run_in_store,
)
from bfp.specs.presets import PRESET_OF, TRAINING_PRESETS

Column = Annotated[str, Field(min_length=1, max_length=256)]
Pooling = Literal["position", "mean"]
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Of regularisation, inverse: what a head chooses from unless a spec says otherwise."""


class Classification(Strict):
    """Which of several classes a session belongs to."""

    type: Literal["classification"]
    target: Column = Field(description="The column of the labels that holds the class.", examples=["diagnosis"])
    classes: list[str] = Field(
        min_length=2,
        description="The classes, as the column spells them; sessions of other classes are left out.",
        examples=[["control", "patient"]],
    )

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: list[str]) -> list[str]:
        if twice := [name for number, name in enumerate(classes) if name in classes[:number]]:
            raise ValueError(f"the class {twice[0]} is named twice")
        return classes


class Regression(Strict):
    """A number for each session, such as age."""

    type: Literal["regression"]
    target: Column = Field(description="The column of the labels that holds the number.", examples=["age"])


class Survival(Strict):
    """The time to an event."""

    type: Literal["survival"]
    time: Column = Field(description="The column with the time to the event or to the last visit.", examples=["months"])
    event: Column = Field(description="The column that is 1 where the event happened, else 0.", examples=["converted"])

    @model_validator(mode="after")
    def _columns_differ(self) -> Survival:
        if self.time == self.event:
            raise Misfit(
                Clash("event", "is the column of the time; name the one that is 1 where the event came", ("time",))
            )
        return self


class Decoder(Strict):
    """What makes masks of the encoder's patch tokens."""

    layers: Literal["last", "intermediate"] = Field(
        "last",
        description="Whose tokens it takes: the last block's, or those of four blocks at even distances, which keep "
        "more of edges and take four times the room.",
    )
    width: int = Field(64, ge=16, le=512, description="Its channels on the grid of patches; half as many a step on.")
    steps: int = Field(1500, ge=1, description="Steps of training, in each fold.")
    batch_size: int = Field(16, ge=1, le=1024, description="Slices in a step.")
    learning_rate: Positive = Field(0.01, description="At the start; it falls to 0 as a cosine.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")


class SegmentationTask(Strict):
    """A label for each voxel."""

    type: Literal["segmentation"]
    target: Name = Field(description="The store's segmentation that is learned.", examples=["tumour"])
    decoder: Decoder = Field(default_factory=Decoder, description="What makes masks of the encoder's patch tokens.")


Task = Annotated[Classification | Regression | Survival | SegmentationTask, Field(discriminator="type")]


class Baselines(Strict):
    """What the fine-tuned model is compared with, on the same folds."""

    untrained: bool = Field(True, description="The same encoder with random weights.")
    permuted: bool = Field(
        True,
        description="The same vectors, with labels permuted among subjects: nothing is to be told.",
    )
    histograms: bool = Field(True, description="Grey-value histograms of the slices, without any encoder.")
    neighbours: bool = Field(
        True,
        description="The same vectors without any head: the nearest training sessions vote (k-NN). Not of a survival.",
    )
    covariates: list[Column] = Field(default_factory=list, description="These columns of the labels alone.")
    oracle: Column | None = Field(None, description="A column that is known to hold the truth (made cohorts only).")


def _optional_by_preset(schema: dict[str, Any]) -> None:
    """In the JSON Schema every number may be left out: the preset gives it."""
    schema.pop("required", None)


class Training(Strict):
    """How the encoder, or attention on it, is trained. `preset` sets all numbers; one beside it overrides the preset's.

    After each epoch a fifth of a fold's training subjects, which are set aside, tells how good the model is; the best
    epoch is taken.
    """

    model_config = ConfigDict(json_schema_extra=_optional_by_preset)

    preset: Literal["retfound", "lora", "attention"] = Field(
        "retfound",
        description="Where the numbers come from: RETFound's recipe, for `tune: full`; ours for `tune: lora`, and for "
        "attention on a frozen encoder.",
    )
    epochs: int = Field(ge=1, le=10_000, description="Most passes over the sessions; the best one is taken.")
    warmup_epochs: float = Field(ge=0, description="Epochs of linear warm-up from 0.")
    learning_rate: Positive = Field(
        description="Peak rate for a step of 256 sessions; scaled by sessions_per_step / 256."
    )
    min_learning_rate: float = Field(ge=0, description="Rate at the end of the cosine.")
    weight_decay: float = Field(ge=0, description="Weight decay, not on biases, norms, positions and tokens.")
    sessions_per_step: int = Field(ge=1, le=1024, description="Sessions in a step.")
    slices_per_session: int = Field(
        ge=1, le=4096, description="Slices of each session in a step, drawn evenly over it. All of them are tested."
    )
    label_smoothing: Share = Field(description="Share of each label that is spread over all classes.")
    class_balanced: bool = Field(description="Sessions of rare classes weigh more, so that all classes weigh alike.")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="tune: full. Factor of the rate from one block to the one below."
    )
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="tune: full. Stochastic depth of the last block; that of the first is 0."
    )
    rank: int | None = Field(None, ge=1, le=1024, description="tune: lora. Rank of the adapters.")
    alpha: int | None = Field(None, ge=1, description="tune: lora. What adapters add is multiplied with alpha / rank.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "retfound")
        known = isinstance(preset, str) and preset in TRAINING_PRESETS  # else refused where its type is checked
        return {**TRAINING_PRESETS[preset if known else "retfound"], "preset": "retfound", **given}


class FinetuneCompute(Strict):
    """How the work is spread out. Changes nothing in what comes out."""

    workers: Workers | None = Field(None, description="Folds at once, one CPU each. null: every CPU of the target.")
    gpus: float | None = Field(
        None,
        ge=0,
        le=8,
        description="GPUs for computing features, and for training, where each fold takes one. null: one if the target "
        "has any, else none.",
    )
    batch_size: int = Field(64, ge=1, description="Stacks in one forward pass.")


class Finetune(Job):
    """A head on an encoder, judged by subject-grouped, stratified cross-validation."""

    kind: Literal["finetune"]
    store: Uri = Field(description="The slice store.", examples=["stores/my-store"])
    where: Where = Field(default_factory=Where, description="Which part of the store is used.")
    encoder: Encoder = Field(
        description="random:<timm name>, timm:<name>[@file], meta:<file>, a run, or a model folder.",
        examples=["runs/my-encoder", "timm:vit_large_patch14_dinov2"],
    )
    encoder_shape: EncoderShape | None = Field(
        None,
        description="With random:, a smaller ViT than the named one. null: as named.",
        examples=[{"width": 192, "depth": 12, "heads": 3}],
    )
    labels: Shipped | None = Field(
        None,
        description="A CSV or TSV with the column subject (and session; and cohort, where two cohorts "
        "have a subject of that label) and the labels. Empty, n/a, NA, NaN, null and . are no value. "
        "null: what the cohorts carried along.",
    )
    task: Task = Field(
        description="What is learned: a classification, regression, survival or segmentation.",
        examples=[
            {"type": "classification", "target": "diagnosis", "classes": ["control", "patient"]},
            {"type": "regression", "target": "age"},
        ],
    )
    modalities: list[Modality] | None = Field(
        None, min_length=1, description="Only these modalities are shown to the encoder. null: all of the store."
    )
    tune: Literal["frozen", "lora", "full"] = Field(
        "frozen",
        description="What is trained beside the head. frozen: nothing. lora: low-rank adapters in the encoder's blocks "
        "(an extra: pip install 'bfp[lora]'). full: the whole encoder. The frozen one is judged beside it.",
    )
    training: Training | None = Field(
        None,
        description="How it is trained, with `tune: lora` or `full`, or `pooling: attention`. null: as in its preset.",
        examples=[{"preset": "retfound", "epochs": 50, "slices_per_session": 32}],
    )
    pooling: Literal["position", "mean", "attention"] = Field(
        "position",
        description="From the stacks of a session to one vector. position: the mean of the slices in each of several "
        "bands of height; mean: one mean of all; attention: a mean whose weights are learned (gated attention; Ilse "
        "et al. 2018).",
    )
    regularisation: list[Positive] = Field(
        default_factory=lambda: list(STRENGTHS),
        min_length=1,
        description="Inverse strengths C of the heads; one is chosen inside each fold's training subjects.",
    )
    folds: int = Field(5, ge=2, le=50, description="Folds of the cross-validation, grouped by subject.")
    splits: Shipped | None = Field(
        None,
        description="A CSV or TSV with the columns subject (and session; and cohort, as in `labels`) and fold, such as "
        "the folds.csv of another run. null: subjects are dealt by the seed, stratified by class and cohort.",
    )
    groups: list[Column] | None = Field(
        None,
        description="Columns of the labels by whose values figures are given too: text by value, numbers in bands. "
        "null: those of sex, age and site that there are, and the cohort.",
        examples=[["sex", "age", "scanner"]],
    )
    baselines: Baselines = Field(default_factory=Baselines, description="What the model is compared with.")
    compute: FinetuneCompute = Field(default_factory=FinetuneCompute, description="How the work is spread out.")

    @property
    def trains(self) -> bool:
        """Whether more is trained than a head on vectors."""
        return self.tune != "frozen" or self.pooling == "attention"

    @model_validator(mode="before")
    @classmethod
    def _preset_by_tune(cls, given: Any) -> Any:
        """The preset is what `tune` asks for, where nothing else is said."""
        if not isinstance(given, dict):
            return given
        tune, training = given.get("tune", "frozen"), given.get("training")
        wanted = tune in ("lora", "full") or given.get("pooling") == "attention"
        if isinstance(tune, str) and tune in PRESET_OF and (isinstance(training, dict) or (wanted and not training)):
            return {**given, "training": {"preset": PRESET_OF[tune], **(training or {})}}
        return given

    @model_validator(mode="after")
    def _parts_fit(self) -> Finetune:
        clashes = [
            *shape_clashes(self.encoder, self.encoder_shape),
            *run_in_store(self, [self.store]),
            *answers_told(self.task, self._baseline_columns(), field="task"),
            *self._no_vectors_of_sessions(),
            *self._training_of_something_else(),
        ]
        if clashes:
            raise Misfit(*clashes)
        return self

    def _training_of_something_else(self) -> list[Clash]:
        if self.training is None:
            return []
        if not self.trains:
            expected = "goes with tune: lora or full, or with pooling: attention; set one of them, or leave it out"
            return [Clash("training", expected, ("tune", "pooling"))]
        training, wanted = self.training, PRESET_OF[self.tune]
        if training.preset != wanted:
            return [Clash("training.preset", f"tune: {self.tune} goes with the preset {wanted}", ("tune",))]
        if isinstance(self.task, Survival):
            expected = "survival is learned on frozen vectors alone: set tune: frozen and pooling: position or mean"
            return [Clash("task.type", expected, ("tune", "pooling"))]
        clashes = []
        for name, tune in {"layer_decay": "full", "drop_path": "full", "rank": "lora", "alpha": "lora"}.items():
            if (getattr(training, name) is None) is (self.tune == tune):
                expected = f"goes with tune: {tune}" if self.tune != tune else "needs a number"
                clashes.append(Clash(f"training.{name}", expected, ("tune",)))
        if training.class_balanced and not isinstance(self.task, Classification):
            expected = "goes with a classification alone: a number is of no class"
            clashes.append(Clash("training.class_balanced", expected, ("task",)))
        if training.warmup_epochs >= training.epochs:
            expected = f"less than training.epochs ({training.epochs})"
            clashes.append(Clash("training.warmup_epochs", expected, ("training.epochs",)))
        return clashes

    def _baseline_columns(self) -> dict[str, str | None]:
        columns = {"baselines.oracle": self.baselines.oracle}
        return columns | {f"baselines.covariates[{n}]": name for n, name in enumerate(self.baselines.covariates)}

    def _no_vectors_of_sessions(self) -> list[Clash]:
        """A segmentation learns from masks, slice by slice: it has no use for a session's labels or vector."""
        if not isinstance(self.task, SegmentationTask):
            return []
        given = {
            "labels": self.labels is not None,
            "groups": self.groups is not None,
            "baselines.covariates": bool(self.baselines.covariates),
            "baselines.oracle": self.baselines.oracle is not None,
        }
        expected = "goes with a class, number or time of each session, not with a segmentation; leave it out"
        return [Clash(path, expected, ("task",)) for path, is_given in given.items() if is_given]


def answers_told(task: Task, columns: Mapping[str, str | None], *, field: str) -> list[Clash]:
    """Baselines whose column is what the task learns. columns: of each field; field: where the task stands."""
    learned = [getattr(task, name) for name in ("target", "time", "event") if hasattr(task, name)]
    expected = "is what the task learns: the baseline would be told the answer; leave it out"
    return [Clash(path, expected, (field,)) for path, name in columns.items() if name in learned]
