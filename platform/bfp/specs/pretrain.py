"""kind: pretrain — slice store -> encoder, by DINOv2 self-supervision (Oquab et al. 2023, arXiv 2304.07193)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from bfp.specs.backbones import backbones
from bfp.specs.encoders import Encoder, EncoderShape, off_patch_grid, parse_encoder, shape_clashes
from bfp.specs.fields import (
    Clash,
    Job,
    Misfit,
    Name,
    Positive,
    Precision,
    Share,
    Strict,
    Uri,
    Where,
    Workers,
    run_in_store,
)
from bfp.specs.presets import NATURAL_BLUR, SSL_PRESETS

NonNegative = Annotated[float, Field(ge=0)]
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
DecayPair = Annotated[tuple[NonNegative, NonNegative], Field(strict=False)]
SharePair = Annotated[tuple[Share, Share], Field(strict=False)]


def _rising(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError("the smaller share comes first")
    return shares


def _positive(shares: tuple[float, float]) -> tuple[float, float]:
    if not shares[0]:
        raise ValueError("more than 0")
    return shares


def _in_part(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[1] == 1:
        raise ValueError("less than 1: of a masked crop nothing would be seen")
    return shares


RisingShares = Annotated[SharePair, AfterValidator(_rising)]
Areas = Annotated[RisingShares, AfterValidator(_positive)]
Masked = Annotated[RisingShares, AfterValidator(_in_part)]


def _optional_by_preset(schema: dict[str, Any]) -> None:
    """In the JSON Schema every number may be left out: the preset gives it."""
    schema.pop("required", None)


class Ssl(Strict):
    """The method's numbers. `preset` sets all of them; a number beside it overrides the preset's."""

    model_config = ConfigDict(json_schema_extra=_optional_by_preset)

    preset: Literal["dinov2-fast", "dinov2-long", "brain"] = Field(
        "brain", description="Where the numbers come from: DINOv2's two recipes, or ours for brain MRI."
    )
    prototypes: int = Field(ge=2, description="Outputs K of the DINO head.")
    ibot_prototypes: int = Field(ge=2, description="Outputs of the iBOT head, when it is a head of its own.")
    bottleneck: int = Field(ge=2, description="Width of the DINO head's bottleneck.")
    ibot_bottleneck: int = Field(ge=2, description="Width of the iBOT head's bottleneck, when it is one of its own.")
    hidden: int = Field(ge=2, description="Width of the heads' hidden layers.")
    shared_head: bool = Field(description="One head for class and patch tokens, or one each.")
    batch_norm_head: bool = Field(description="Batch normalisation in the heads' hidden layers.")
    centring: Literal["softmax", "sinkhorn"] = Field(description="How the teacher's outputs are kept from collapse.")
    scope: Literal["global", "local"] = Field(
        description="Centres and KoLeo over the global batch, or by each worker as published. Sinkhorn is over all."
    )
    student_temperature: Positive = Field(description="Softmax temperature of the student.")
    teacher_temperature: Pair = Field(
        description="Softmax temperature of the teacher: at the start, after its warm-up."
    )
    teacher_temperature_warmup_epochs: float = Field(
        ge=0, description="Epochs from the first temperature to the second."
    )
    momentum: RisingShares = Field(
        description="Momentum of the teacher's moving average: at the start, at the end (cosine)."
    )
    learning_rate: Positive = Field(description="Peak rate for a batch of 1,024; scaled by sqrt(batch_size / 1024).")
    min_learning_rate: float = Field(ge=0, description="Rate at the end of the cosine.")
    warmup_epochs: float = Field(ge=0, description="Epochs of linear warm-up from 0.")
    weight_decay: DecayPair = Field(description="Weight decay: at the start, at the end (cosine).")
    layer_decay: float = Field(gt=0, le=1, description="Factor of the rate from one block to the one below.")
    patch_embed_rate: float = Field(gt=0, le=1, description="Further factor of the patch embedding's rate.")
    clip_norm: Positive = Field(description="Gradient norm at which backbone and each head are clipped.")
    freeze_last_layer_epochs: float = Field(ge=0, description="Epochs in which the heads' last layer rests.")
    freeze_backbone_epochs: float = Field(
        ge=0,
        description="Epochs in which only the heads learn; the backbone's rate warms up after them. For an encoder "
        "that was trained before.",
    )
    backbone_rate: float = Field(
        gt=0, le=1, description="Factor of the backbone's rate. Low for an encoder that was trained before."
    )
    drop_path: float = Field(ge=0, lt=1, description="Stochastic depth of the student.")
    dino_weight: float = Field(ge=0, description="Weight of the DINO loss.")
    ibot_weight: float = Field(ge=0, description="Weight of the iBOT loss.")
    koleo_weight: float = Field(ge=0, description="Weight of the KoLeo regulariser.")
    mask_ratio: Masked = Field(description="Smallest and largest share of a masked crop's patches that is masked.")
    mask_probability: Share = Field(description="Share of the global crops that are masked.")
    constant_masks: bool = Field(
        description="Hide equally many patches in every batch, rather than numbers that vary as published."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "brain")
        known = isinstance(preset, str) and preset in SSL_PRESETS  # a list, say, is refused where its type is checked
        return {**SSL_PRESETS[preset if known else "brain"], "preset": "brain", **given}


class Views(Strict):
    """The views of a stack: what every preset says, each with its own numbers."""

    preset: str
    global_size_px: int | None = Field(None, ge=14, description="Size of the two global crops. null: the store's size.")
    local_size_px: int = Field(98, ge=14, description="Size of the local crops.")
    local_count: int = Field(8, ge=0, le=32, description="Local crops of each stack.")
    global_scale: Areas = Field((0.32, 1.0), description="Share of a stack's area that a global crop covers.")
    local_scale: Areas = Field((0.05, 0.32), description="Share of a stack's area that a local crop covers.")
    modality_views: Share = Field(
        0.5, description="Probability that a crop shows a random part of the stack's modalities only."
    )
    fill: Literal["zero", "repeat"] = Field(
        "zero",
        description="What stands in a channel that a crop does not show: zeros, or one that it does show. Whoever uses "
        "the encoder later has absent modalities filled in the same way.",
    )
    teacher_views: Literal["same", "own"] = Field(
        "same",
        description="same: the teacher sees the student's global crops, as published. own: the same places in "
        "modalities and a contrast of its own, and patches of the head are predicted whether hidden or not, so that "
        "what is learned is what contrasts share.",
    )
    flip: Share = Field(0.0, description="Probability of a left-right flip.")


class MriCrops(Views):
    """Multi-crop of stacks on the training device; every operation is safe for MRI.

    No hue, saturation, greyscale or solarise: they mix contrasts or slices.
    """

    preset: Literal["mri"] = Field(
        "mri",
        description="mri: crops where the head is, and what a scanner could change. natural, with other fields: "
        "DINOv2's own, made for photographs.",
    )
    brightness: float = Field(0.2, ge=0, le=1, description="Largest shift of intensity, as a share of the range.")
    contrast: float = Field(0.3, ge=0, lt=1, description="Largest relative change of contrast.")
    gamma: float = Field(0.3, ge=0, lt=1, description="Largest change of log gamma.")
    bias_field: float = Field(0.3, ge=0, lt=1, description="Largest relative change by a smooth field.")
    noise: float = Field(0.05, ge=0, le=1, description="Largest standard deviation of noise, as a share of the range.")
    blur: Share = Field(0.3, description="Probability of a Gaussian blur.")


class NaturalCrops(Views):
    """DINOv2's own multi-crop, made for photographs: it takes channels for red, green and blue, and mixes them.

    To compare with. The numbers are those of the released training code.
    """

    preset: Literal["natural"] = Field(description="DINOv2's own multi-crop.", examples=["natural"])
    modality_views: Share = Field(0.0, description=Views.model_fields["modality_views"].description)
    flip: Share = Field(0.5, description=Views.model_fields["flip"].description)
    jitter: Share = Field(0.8, description="Probability of a change of brightness, contrast, saturation and hue.")
    brightness: Share = Field(0.4, description="Largest relative change of brightness.")
    contrast: Share = Field(0.4, description="Largest relative change of contrast.")
    saturation: Share = Field(0.2, description="Largest relative change of saturation.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Largest shift of hue, as a share of the colour circle.")
    greyscale: Share = Field(0.2, description="Probability that the channels' luma stands in all of them.")
    blur_probability: Literal["published", "declared"] = Field(
        "published",
        description="Probability of a Gaussian blur of the first global crop, the second, and local ones. published: "
        "0, 0.9 and 0.5, which is what the released code does; declared: 1, 0.1 and 0.5, which is what it says.",
    )
    solarise: Share = Field(0.2, description="Probability that the second global crop is solarised.")

    @property
    def blur(self) -> tuple[float, float, float]:
        """The probabilities that `blur_probability` names."""
        return NATURAL_BLUR[self.blur_probability]


def _mri_unless_said(given: Any) -> Any:
    return {"preset": "mri", **given} if isinstance(given, dict) else given


Crops = Annotated[MriCrops | NaturalCrops, Field(discriminator="preset"), BeforeValidator(_mri_unless_said)]


class Train(Strict):
    """How long, in what batches, and how often it is saved."""

    epochs: float = Field(100, gt=0, description="Length of the run.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Steps in an epoch. null: one pass over the stacks.")
    batch_size: int = Field(64, ge=2, description="Stacks in a step, over all workers.")
    stacks_per_session: int | None = Field(
        None,
        ge=1,
        description="Most stacks of one session in a step. null: as few as the sessions allow; the plan says how many.",
    )
    cohort_balance: Share = Field(
        0.0,
        description="0: cohorts as large as they are. 1: as many stacks of each; a small one's come more often.",
    )
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the last checkpoints stay.")
    keep_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints that stay for ever, beside the last ones. null: none does."
    )
    log_every: int = Field(10, ge=1, description="Steps between logged figures.")


class PretrainCompute(Strict):
    """How the training is spread out."""

    workers: Workers = Field(1, description="Training workers; the batch is split among them.")
    cpus_per_worker: int = Field(
        1, ge=1, le=1024, description="CPUs that each worker claims (and threads it computes with on a CPU)."
    )
    gpus_per_worker: int | None = Field(
        None, ge=0, le=1, description="GPUs of each worker. null: one if the target has any, else none."
    )
    precision: Precision = Field("fp32", description="bf16: compute in bfloat16, weights kept in float32.")
    gradient_accumulation: int = Field(
        1,
        ge=1,
        description="In how many micro-batches a worker computes its share of a batch, to save memory. Targets and "
        "centres stay those of the whole batch; KoLeo and batch_norm_head see a micro-batch.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute the student's activations a second time instead of keeping them: less memory."
    )
    compile: bool = Field(
        False, description="Compile the encoder's blocks (torch.compile): fewer passes through memory on a GPU."
    )
    retries: int = Field(
        2,
        ge=0,
        le=100,
        description="How often training starts again from its checkpoint after a worker died. After workers were told "
        "to end (SIGTERM) it does so however often that happens.",
    )


class Probe(Strict):
    """What tells whether the features have learned anything, on subjects that pretraining never sees."""

    segmentation: Name | None = Field(
        None,
        description="The store's segmentation whose class shares in a patch are predicted from patch tokens (residual "
        "tissue R²). null: none.",
        examples=["tissue"],
    )
    target: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="A label that the cohorts carried, of few values, which nearest neighbours and logistic regression "
        "predict from the mean class token of a session (AUROC). null: none.",
        examples=["diagnosis"],
    )
    held_out: float = Field(
        0.25, gt=0, lt=1, description="Share of the subjects that pretraining never sees and the probe is judged on."
    )
    every: int | None = Field(
        None,
        ge=1,
        description="Steps between probes while training, on a part of the labelled stacks. null: only at the end.",
    )
    on_worse: Literal["warn", "stop"] = Field(
        "warn",
        description="What follows when, in two probes in a row, features are worse than at the start: when the 95 % "
        "interval of the difference, over subjects, lies below 0. stop: the run fails and leaves a checkpoint.",
    )

    @model_validator(mode="after")
    def _something_is_probed(self) -> Probe:
        if self.segmentation is None and self.target is None:
            raise Misfit(Clash("", "needs a `segmentation`, a `target`, or both; without a probe write null", ()))
        if self.on_worse == "stop" and self.every is None:
            raise Misfit(Clash("on_worse", "stop goes with `every` only", ("every",)))
        return self


class Pretrain(Job):
    """DINOv2 pretraining on the stacks of one or more stores."""

    kind: Literal["pretrain"]
    store: Uri | Annotated[list[Uri], Field(min_length=1)] = Field(
        description="The slice store, or a list of them.", examples=["stores/my-store", "s3://brains/stores/v1"]
    )
    where: Where = Field(default_factory=Where, description="Which part of the stores is used.")
    encoder: Encoder = Field(
        "random:vit_small_patch14_dinov2",
        description="Where it starts: random:<timm name>, timm:<name>[@file], meta:<file>, or a run.",
        examples=["timm:vit_large_patch14_dinov2", "runs/my-run"],
    )
    encoder_shape: EncoderShape | None = Field(
        None,
        description="With random:, a smaller ViT than the named one. null: as named.",
        examples=[{"width": 192, "depth": 12, "heads": 3}],
    )
    ssl: Ssl = Field(default_factory=lambda: Ssl.model_validate({}), description="The method's numbers.")
    crops: Crops = Field(default_factory=MriCrops, description="Multi-crop augmentation.")
    train: Train = Field(default_factory=Train, description="Length, batches, checkpoints.")
    probe: Probe | None = Field(
        None,
        description="A check of what was learned. null: none is made.",
        examples=[{"segmentation": "tissue", "target": "diagnosis", "held_out": 0.25, "every": 1000}],
    )
    compute: PretrainCompute = Field(default_factory=PretrainCompute, description="How the work is spread out.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Pretrain:
        clashes = [*shape_clashes(self.encoder, self.encoder_shape), *self._crops_off_the_patch_grid()]
        stores = self.store if isinstance(self.store, list) else [self.store]
        clashes += run_in_store(self, stores)
        if len(set(stores)) < len(stores):
            clashes.append(Clash("store", "names a store twice; its stacks would count twice", ()))
        if self.crops.global_size_px is not None and self.crops.local_size_px > self.crops.global_size_px:
            expected = f"larger than a global crop ({self.crops.global_size_px})"
            clashes.append(Clash("crops.local_size_px", expected, ("crops.global_size_px",)))
        parts = self.compute.workers * self.compute.gradient_accumulation
        if self.train.batch_size % parts:
            expected = f"does not split into {parts} parts (compute.workers × compute.gradient_accumulation)"
            clashes.append(Clash("train.batch_size", expected, ("compute.workers", "compute.gradient_accumulation")))
        clashes += self._nothing_to_learn()
        every, kept = self.train.checkpoint_every, self.train.keep_every
        if kept is not None and kept % every:
            expected = f"not a multiple of train.checkpoint_every ({every})"
            clashes.append(Clash("train.keep_every", expected, ("train.checkpoint_every",)))
        if clashes:
            raise Misfit(*clashes)
        return self

    def _nothing_to_learn(self) -> list[Clash]:
        ssl, epochs, last_layer = self.ssl, self.train.epochs, self.ssl.freeze_last_layer_epochs
        clashes = []
        if ssl.freeze_backbone_epochs >= epochs:
            expected = f"not shorter than the run (train.epochs: {epochs:g})"
            clashes.append(Clash("ssl.freeze_backbone_epochs", expected, ("train.epochs",)))
        if 0 < ssl.freeze_backbone_epochs <= last_layer:
            expected = f"not longer than ssl.freeze_last_layer_epochs ({last_layer:g}): the heads would not learn whole"
            clashes.append(Clash("ssl.freeze_backbone_epochs", expected, ("ssl.freeze_last_layer_epochs",)))
        if not (ssl.dino_weight or ssl.ibot_weight or ssl.koleo_weight):
            clashes.append(
                Clash("ssl.dino_weight", "0, as are ibot_weight and koleo_weight: nothing would be learned", ())
            )
        workers = 1 if ssl.scope == "global" else self.compute.workers
        if ssl.koleo_weight and self.train.batch_size // (workers * self.compute.gradient_accumulation) < 2:
            expected = "one stack for KoLeo to find a neighbour among: needs two in each part, or ssl.koleo_weight: 0"
            clashes.append(Clash("train.batch_size", expected, ("compute.workers", "compute.gradient_accumulation")))
        return clashes

    def _crops_off_the_patch_grid(self) -> list[Clash]:
        name = (parse_encoder(self.encoder).name or "").split(".")[0]
        if not name:
            return []
        patch = backbones()[name].patch_px
        clashes = []
        for field in ("global_size_px", "local_size_px"):
            size = getattr(self.crops, field)
            if size is not None and (expected := off_patch_grid(size, patch_px=patch, encoder=name)):
                clashes.append(Clash(f"crops.{field}", expected, ("encoder",)))
        return clashes
