"""What a pretraining says of what came out: losses, monitors, the probe, and the texts that go with the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bfp import __version__
from bfp.drivers.pretrain_material import Material, modality_views_of, schedules_of
from bfp.drivers.pretrain_views import views_block
from bfp.metrics.bootstrap import REPLICATES
from bfp.metrics.class_probe import NEIGHBOURS, STRENGTH
from bfp.metrics.tissue import BRAIN_SHARE, HEIGHT_BINS
from bfp.pretraining.probe import SORTED_PIXELS, ProbeResult
from bfp.pretraining.schedules import Length, Schedules
from bfp.pretraining.session_probe import SessionResult
from bfp.pretraining.tripwire import FIGURES, TISSUE
from bfp.reports.blocks import Block, Cell, Curves, Facts, IntervalRow, Intervals, Picture, Results, Table, Text
from bfp.reports.numbers import number_text
from bfp.reports.pictures import pca_maps
from bfp.runs import Run
from bfp.specs.pretrain import NaturalCrops, Pretrain
from bfp.words import counted

PRETRAINED, UNTRAINED = "pretrained", "untrained"
WHAT = "What ran on what"
WORDS = {
    PRETRAINED: "pretrained encoder",
    UNTRAINED: "the same encoder, untrained",
    SORTED_PIXELS: "sorted pixels, no encoder",
}
LOSSES = ["loss", "dino_global", "dino_local", "ibot", "koleo"]


Description = dict[str, Any]
"""As `LoadedEncoder.description`."""


class Probed(NamedTuple):
    """What the probe found: residual tissue R², AUROC of a label; None for what was not asked for or not to be had."""

    tissue: ProbeResult | None = None
    label: SessionResult | None = None


def opening_of(spec: Pretrain, material: Material) -> Results:
    """What is known before the first step: so the page of a run that was stopped, or failed, has its curves too."""
    return Results(
        figures=_counts(material),
        blocks=[Facts(WHAT, _facts(spec, material)), *_curves(spec), views_block(spec, material)],
    )


def results_of(
    spec: Pretrain,
    run: Run,
    material: Material,
    encoder: Description,
    probed: Probed,
    *,
    earlier: Sequence[Length],
) -> Results:
    """Figures and blocks; pictures are written into the run's folder. earlier: see `schedules`."""
    losses = sorted((row["step"], row["value"]) for row in run.metrics() if row["name"] == "loss")
    figures: dict[str, Cell] = {
        "steps": material.steps,
        **_counts(material),
        "loss_first": losses[0][1] if losses else None,
        "loss_last": losses[-1][1] if losses else None,
    }
    facts = [*_facts(spec, material), ("architecture", _architecture(encoder)), ("weights", encoder["weights"][:16])]
    blocks: list[Block] = [Facts(WHAT, facts), *_curves(spec)]
    if probed.label is not None:
        figures |= _label_figures(probed.label)
        blocks[1:1] = _label_blocks(spec, probed.label)
    if probed.tissue is not None:
        figures |= _probe_figures(probed.tissue)
        blocks[1:1] = _probe_blocks(probed.tissue)
        assert material.probed is not None
        axis = material.stores[material.probed].slice_axis
        maps = pca_maps(probed.tissue.images, probed.tissue.patch_tokens, axis=axis)
        (run.folder / "pictures" / "patch-tokens.png").write(maps)
    blocks.append(views_block(spec, material))
    told = methods(spec, material, encoder, probed, step=material.steps, earlier=earlier)
    blocks.append(Text("Methods", told))
    return Results(figures=figures, blocks=blocks)


def methods(
    spec: Pretrain, material: Material, encoder: Description, probed: Probed, *, step: int, earlier: Sequence[Length]
) -> list[str]:
    """Paragraphs that are ready to paste, of the encoder after `step` steps. earlier: see `schedules`."""
    return [
        _training_text(spec, material, encoder, step=step, earlier=earlier),
        *([_probe_text(material, probed.tissue)] if probed.tissue is not None else []),
        *([_label_text(spec, probed.label)] if probed.label is not None else []),
    ]


def _training_text(
    spec: Pretrain, material: Material, encoder: Description, *, step: int, earlier: Sequence[Length]
) -> str:
    ssl, subjects = spec.ssl, counted(material.subjects[0], "subject")
    schedules = replace(schedules_of(spec, material), earlier=tuple(earlier))
    centring = "Sinkhorn-Knopp" if ssl.centring == "sinkhorn" else "softmax centring"
    own_views = (
        "Departing from DINOv2, the teacher saw the global crops in modalities and a contrast of its own, and patches "
        "of the head were predicted whether hidden or not. "
    )
    return (
        f"A vision transformer ({encoder['architecture']}, width {encoder['width']}, {encoder['depth']} blocks, "
        f"patches of {encoder['patch_px']} pixels; started from {spec.encoder}) was pretrained without labels by "
        f"DINOv2 (Oquab et al. 2023) on {material.stacks:,} slice stacks of {subjects}: "
        f"{step:,} steps of {spec.train.batch_size} stacks{_of_length(material, step=step)}, two global and "
        f"{spec.crops.local_count} local crops of each, {ssl.prototypes:,} prototypes, {centring}, KoLeo weight "
        f"{ssl.koleo_weight:g}, {_rate_text(spec, schedules, step=step)}, teacher momentum {ssl.momentum[0]:g} to "
        f"{ssl.momentum[1]:g}. {_backbone_text(spec, schedules, step=step)}{_lengths_text(material, earlier)}"
        f"{_augmentation_text(spec, material)}"
        f"{_batches_text(material)}"
        f"{own_views if spec.crops.teacher_views == 'own' else ''}"
        f"Software: bfp {__version__}."
    )


def _of_length(material: Material, *, step: int) -> str:
    return "" if step == material.steps else f" (of a run of {material.steps:,})"


def _rate_text(spec: Pretrain, schedules: Schedules, *, step: int) -> str:
    warmup = schedules.heads_warmup_steps
    peak = (
        f"{number_text(schedules.learning_rate)} ({spec.ssl.learning_rate:g} for a batch of 1,024, square-root rule) "
        f"after a warm-up of {counted(warmup, 'step')}"
    )
    if step > warmup:
        return f"peak learning rate {peak}"
    return f"learning rate {number_text(schedules.at(step - 1).learning_rate)} when it ended, still rising to {peak}"


def _backbone_text(spec: Pretrain, schedules: Schedules, *, step: int) -> str:
    """How the encoder learned where it did so otherwise than its heads."""
    resting, warmup, factor = schedules.freeze_backbone_steps, schedules.warmup_steps, spec.ssl.backbone_rate
    of_heads = f"{factor:g} of the heads' rate" if factor != 1 else "the heads' rate"
    if not resting:
        return f"The encoder learned at {of_heads}. " if factor != 1 else ""
    if step <= resting:
        return f"The encoder rested in all of these steps (in the first {resting:,} by plan). "
    told = f"The encoder rested in the first {resting:,} steps and warmed up over the next {warmup:,} to {of_heads}"
    return told + (", which was not reached. " if step <= resting + warmup else ". ")


def _lengths_text(material: Material, earlier: Sequence[Length]) -> str:
    """How a run came to its length, where it was another before."""
    if not earlier:
        return ""
    lengths = ", then to ".join(f"{steps:,}" for steps in [*(before.steps for before in earlier[1:]), material.steps])
    return (
        f"The run was first {earlier[0].steps:,} steps long and was extended to {lengths}: rates, momentum and "
        "temperature moved over a tenth of the steps that were left to the schedules of the new length. "
    )


def _augmentation_text(spec: Pretrain, material: Material) -> str:
    crops, hidden = spec.crops, modality_views_of(spec, material)
    some = f", left-right flips (probability {crops.flip:g})" if crops.flip else ""
    some += f", and views that show only some of the modalities (probability {hidden:g})" if hidden else ""
    if isinstance(crops, NaturalCrops):
        first, second, local = crops.blur
        return (
            "Augmentation was DINOv2's own, made for photographs: crops at any place, colour jitter (probability "
            f"{crops.jitter:g}), greyscale ({crops.greyscale:g}), blur ({first:g} and {second:g} of the global crops, "
            f"{local:g} of the local ones), solarisation ({crops.solarise:g} of the second global crop){some}. "
        )
    return (
        "Augmentation was limited to what a scanner could change: crops, contrast, brightness, gamma, bias field, "
        f"noise, blur{some}. "
    )


def _batches_text(material: Material) -> str:
    order = material.order
    told = f"No batch held more than {counted(order.most_of_a_session, 'stack')} of one session. "
    if order.balance:
        shares = ", ".join(f"{name} {cohort.share:.0%}" for name, cohort in order.cohorts.items())
        told += (
            f"Cohorts were balanced, each in proportion to its size to the power of {1 - order.balance:g}: {shares}. "
        )
    return told


def _probe_text(material: Material, probed: ProbeResult) -> str:
    held_out, judged = material.subjects[1], probed.subjects[1]
    some = "" if judged == held_out else f"; {judged} of them have labelled stacks and were judged"
    return (
        f"Residual tissue R²: {counted(held_out, 'subject was', 'subjects were')} held out from pretraining{some}. In "
        f"patches at least {BRAIN_SHARE:.0%} inside the brain the shares of {', '.join(probed.tissues)} were predicted "
        f"from patch tokens by ridge regression, fitted on {probed.subjects[0]} other subjects "
        f"({probed.patches[0]:,} patches), after the mean of each position in the slice and each of {HEIGHT_BINS} "
        "slice heights had been removed from tokens and shares. R² is the mean over tissues on the held-out subjects "
        f"({probed.patches[1]:,} patches); "
        f"95 % intervals are from {REPLICATES:,} bootstrap replicates over these subjects (bias-corrected and "
        "accelerated), paired for differences."
    )


def _label_text(spec: Pretrain, probed: SessionResult) -> str:
    assert spec.probe is not None, "was probed"
    learned, judged = (counted(sessions, "session") for sessions in probed.sessions)
    return (
        f"AUROC of {spec.probe.target} ({', '.join(probed.names)}): the mean class token of a session was judged, on "
        f"{judged} of the held-out subjects, after {learned} of the others: by the {NEIGHBOURS} nearest neighbours "
        f"(cosine) and by logistic regression (C = {STRENGTH:g}). 95 % intervals are over the held-out subjects."
    )


def _architecture(encoder: dict[str, Any]) -> str:
    return f"{encoder['architecture']}, {encoder['parameters'] / 1e6:.1f} million parameters"


def _counts(material: Material) -> dict[str, Cell]:
    seen, held_out = material.subjects
    return {"stacks": material.stacks, "subjects": seen, "subjects_held_out": held_out}


def _facts(spec: Pretrain, material: Material) -> list[tuple[str, Cell]]:
    stores = [
        ("store", f"{store.place}, snapshot {store.snapshot}, preprocessing {store.fingerprint}")
        for store in material.stores
    ]
    seen, held_out = material.subjects
    return [
        *stores,
        ("stacks", material.stacks),
        ("subjects", f"{seen:,} seen, {held_out:,} held out"),
        ("started from", spec.encoder),
        ("steps", f"{material.steps:,} of {spec.train.batch_size} stacks"),
        ("batches", material.batches),
        ("workers", f"{spec.compute.workers}, {spec.compute.precision}"),
        ("seed", spec.seed),
    ]


def _curves(spec: Pretrain) -> list[Block]:
    return [
        Curves("Losses", LOSSES, "loss, nats", note="As DINOv2 reports them; `loss` is what is optimised."),
        Curves(
            "Is it collapsing? Directions that tokens fill",
            ["rank_cls", "rank_patch"],
            "effective rank, directions",
            note="A collapsed encoder falls towards 1.",
        ),
        Curves(
            "Is it collapsing? Targets",
            ["teacher_entropy_mean", "teacher_entropy_sample", "prototypes_used", "patch_similarity"],
            "share, 0 to 1",
            note="Entropies as shares of the largest. Both near 1: targets that say nothing. Patch similarity near 1: "
            "patches that have lost their place.",
        ),
        Curves(
            "Is it collapsing? Targets of patches",
            ["teacher_entropy_mean_patch", "teacher_entropy_sample_patch", "prototypes_used_patch"],
            "share, 0 to 1",
        ),
        Curves(
            "Gradients",
            ["gradient_norm_backbone", "gradient_norm_dino_head", "gradient_norm_ibot_head"],
            "norm before clipping",
            note=f"Each is clipped at {spec.ssl.clip_norm:g} by itself.",
        ),
        Curves("Learning rate", ["learning_rate"], "rate per step"),
        *_probe_curves(spec),
        Curves("Speed", ["samples_per_s"], "stacks per second"),
        Curves(
            "How well the device is used",
            ["flop_utilisation", "data_wait_share"],
            "share, 0 to 1",
            note="Utilisation: the matrix operations of student, teacher and heads, as a share of what a product of "
            "square matrices reached on the first worker's device when training began. Below it, the share of the "
            "time that was spent waiting for stacks.",
        ),
        Curves("Memory", ["host_memory_peak_mb", "device_memory_peak_mb"], "most so far, MB, of the first worker"),
    ]


def _probe_curves(spec: Pretrain) -> list[Block]:
    if spec.probe is None or spec.probe.every is None:
        return []
    asked = {way: spec.probe.target if way != TISSUE else spec.probe.segmentation for way in FIGURES}
    return [
        Curves(
            "Probe while training",
            [FIGURES[way] for way, what in asked.items() if what is not None],
            "AUROC or R² on held-out subjects",
            note="Of the teacher, on a part of the labelled stacks; step 0 is what training started from.",
        )
    ]


def _label_figures(probed: SessionResult) -> dict[str, Cell]:
    return {
        f"{FIGURES[way].removeprefix('probe_')}_{name}{part}": value
        for name, ways in probed.aurocs.items()
        for way, interval in ways.items()
        for part, value in zip(("", "_low", "_high"), interval, strict=True)
    }


def _label_blocks(spec: Pretrain, probed: SessionResult) -> list[Block]:
    assert spec.probe is not None, "was probed"
    rows = [
        IntervalRow(f"{WORDS[name]}, {way}", *interval)
        for name, ways in probed.aurocs.items()
        for way, interval in ways.items()
    ]
    gains = [IntervalRow(way, *interval) for way, interval in probed.gains.items()]
    return [
        Intervals(f"AUROC of {spec.probe.target}", rows, "AUROC on held-out subjects", reference=0.5),
        Intervals(
            f"What pretraining adds to the AUROC of {spec.probe.target}",
            gains,
            "difference of AUROC, paired by subject",
            reference=0.0,
        ),
    ]


def _probe_figures(probed: ProbeResult) -> dict[str, Cell]:
    figures: dict[str, Cell] = {}
    for name, interval in probed.r2.items():
        key = f"tissue_r2_{name.replace(' ', '_')}"
        figures |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    for name, interval in probed.gain.items():
        key = f"tissue_r2_gain_over_{name.replace(' ', '_')}"
        figures |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    return figures


def _probe_blocks(probed: ProbeResult) -> list[Block]:
    return [
        Intervals(
            "Residual tissue R²",
            [IntervalRow(WORDS[name], *interval) for name, interval in probed.r2.items()],
            "R² on held-out subjects",
            reference=0.0,
            note="What patch tokens tell of the tissue in a patch beyond its place. Intervals are over subjects.",
        ),
        Intervals(
            "What pretraining adds",
            [IntervalRow(f"over {WORDS[name]}", *interval) for name, interval in probed.gain.items()],
            "difference of R², paired by subject",
            reference=0.0,
        ),
        Table(
            "Residual R² by tissue",
            ["read from", *probed.tissues],
            [[WORDS[name], *values] for name, values in probed.by_tissue.items()],
        ),
        Picture(
            "Patch tokens of held-out subjects",
            "pictures/patch-tokens.png",
            "Slices that pretraining never saw, and the first three principal components of their patch tokens.",
        ),
    ]
