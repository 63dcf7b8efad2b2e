"""What a pretraining will take before its first step is done: the spec's numbers as `sizing` takes them.

One GPU of one kind was measured. So a time is an estimate, and says from what; on CPUs, in float32, or with an encoder
whose shape no name tells, there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bfp.drivers import sizing
from bfp.models.folders import encoder_folder, read_config
from bfp.reports.numbers import duration_text, number_text
from bfp.specs.backbones import BackboneFacts, backbones
from bfp.specs.encoders import parse_encoder
from bfp.specs.pretrain import Pretrain
from bfp.storage import place
from bfp.words import bytes_text, counted

UNKNOWN = "not known before the first steps are done; it can be stopped and resumed at any moment"


@dataclass(frozen=True, slots=True)
class Outlook:
    """checkpoints, time: in words, "" for checkpoints that are not known; figures: the same for machines."""

    time: str = UNKNOWN
    checkpoints: str = ""
    figures: dict[str, int] = field(default_factory=dict)


def of(spec: Pretrain, *, steps: int, size_px: int, gpus: int) -> Outlook:
    """size_px: of the store's stacks. gpus: of the target."""
    vit = vit_of(spec)
    if vit is None:
        return Outlook()
    heads, views = heads_of(spec), views_of(spec, patch_px=vit.patch_px, size_px=size_px)
    checkpoint = sizing.checkpoint_bytes(vit, heads, size_px=views.large_px)
    written = -(-steps // spec.train.checkpoint_every)
    stay = min(written, spec.train.keep_checkpoints)
    checkpoints = f"about {bytes_text(checkpoint)} each: {written:,} are written, the last {stay} stay"
    figures = {"checkpoint_bytes_estimated": checkpoint}

    used = min(gpus, spec.compute.workers) if spec.compute.gpus_per_worker != 0 else 0
    if not used or spec.compute.precision != "bf16":
        return Outlook(checkpoints=checkpoints, figures=figures)
    rate = sizing.training_rate(vit, heads, views, compiled=spec.compute.compile)
    step = sizing.step(
        rate,
        parameters=sizing.network_parameters(vit, heads, size_px=views.large_px),
        batch_size=spec.train.batch_size,
        gpus=used,
        micro_batches=spec.compute.gradient_accumulation,
    )
    seconds = step.seconds * steps
    stacks_s = number_text(spec.train.batch_size / step.seconds)
    source = "as measured" if rate.measured and used == 1 else "estimated from ViT-S/14 and ViT-L/14"
    time = (
        f"about {duration_text(seconds)} if {'it is' if used == 1 else 'they are'} as fast as the one {sizing.GPU} "
        f"that was measured: {stacks_s} stacks a second on {counted(used, 'GPU')}, {source}; the first steps will tell"
    )
    return Outlook(time, checkpoints, {**figures, "seconds_estimated": round(seconds)})


def vit_of(spec: Pretrain) -> BackboneFacts | None:
    """How large the encoder is, by its name or its folder; None where neither tells, as of Meta's files."""
    reference = parse_encoder(spec.encoder)
    if reference.name is not None:
        facts, shape = backbones()[reference.name.split(".")[0]], spec.encoder_shape
        return facts if shape is None else sizing.scaled(facts, width=shape.width, depth=shape.depth)
    if reference.origin != "folder" or reference.uri is None:
        return None
    config = read_config(encoder_folder(place(reference.uri)))
    known, own = backbones().get(str(config.get("architecture"))), config.get("model_args", {})
    if known is None:
        return None
    return sizing.scaled(known, width=own.get("embed_dim", known.width), depth=own.get("depth", known.depth))


def heads_of(spec: Pretrain) -> sizing.Heads:
    ssl = spec.ssl
    own = {} if ssl.shared_head else {"ibot_bottleneck": ssl.ibot_bottleneck, "ibot_prototypes": ssl.ibot_prototypes}
    return sizing.Heads(ssl.hidden, ssl.bottleneck, ssl.prototypes, **own)


def views_of(spec: Pretrain, *, patch_px: int, size_px: int) -> sizing.Views:
    """size_px: of the store's stacks, which global crops have unless the spec says otherwise."""
    crops, ssl = spec.crops, spec.ssl
    large_px = crops.global_size_px or size_px
    masked = sum(ssl.mask_ratio) / 2 * ssl.mask_probability
    return sizing.Views(
        large_px=large_px,
        small_px=crops.local_size_px,
        small_count=crops.local_count,
        predicted=2 * (large_px // patch_px) ** 2 * masked,
        drop_path=ssl.drop_path,
    )
