"""What goes with an encoder wherever it goes: its model card, and where it came from as config.json tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.drivers.pretrain_material import SUBJECT, Material
from bfp.drivers.pretrain_results import WORDS, Probed, methods
from bfp.reports.numbers import interval_text, number_text
from bfp.specs.document import flow
from bfp.specs.pretrain import Pretrain
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.models.encoder import LoadedEncoder
    from bfp.pretraining.schedules import Length

USE = """\
```python
encoder = timm.create_model("local-dir:<this folder>", pretrained=True).eval()
tokens = encoder.forward_features(images)   # (b, {prefix} + {patches}, {width}): class token first, patches last
```"""
LIMITS = (
    "For research; not a medical device. It was not tested on scanners, sequences, ages or diseases beyond those of "
    "its data, and its features may tell scanners apart, and people: treat features of a person's scan as you treat "
    "the scan. It expects stacks made by the preprocessing above."
)
FIGURES = {
    "loss": "loss, nats",
    "rank_cls": "directions that class tokens fill",
    "rank_patch": "directions that patch tokens fill",
    "patch_similarity": "mean cosine of two patches of an image",
    "teacher_entropy_mean": "entropy of the mean target, share of the largest",
    "teacher_entropy_sample": "entropy of each target, share of the largest",
    "prototypes_used": "prototypes in use, share",
}


def provenance(spec: Pretrain, material: Material, *, name: str, step: int) -> dict[str, Any]:
    """What config.json tells of the encoder after `step` steps of the run `name`."""
    return {
        "run": name,
        "bfp": __version__,
        "started_from": spec.encoder,
        "stores": [
            {"uri": str(store.place), "snapshot": store.snapshot, "preprocessing": store.preprocessing}
            for store in material.stores
        ],
        "imaging": sorted({version for store in material.stores for version in store.imaging}),
        "modalities": spec.where.modalities,
        "steps": step,
    }


def card(
    spec: Pretrain,
    material: Material,
    encoder: LoadedEncoder,
    *,
    name: str,
    step: int,
    logged: Sequence[Mapping[str, Any]],
    probed: Probed | None,
    earlier: Sequence[Length],
) -> str:
    """The model card, Markdown, of the encoder after `step` steps. logged: the run's figures, as `RunFolder.metrics`.

    probed: of the finished encoder, empty where it could not be; None before. earlier: see `schedules`.
    """
    it, model, size_px = encoder.description, encoder.model, encoder.description["size_px"]
    done = step == material.steps
    state = "" if done else f" This is its state after step {step:,} of {material.steps:,}, from a checkpoint."
    use = USE.format(prefix=model.num_prefix_tokens, patches=model.patch_embed.num_patches, width=it["width"])
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (encoder.mean, encoder.std))
    pixels = "`images`: grey values 0 to 255 as (value / 255 - mean) / std"
    absent = f"a channel that is absent holds {'0 before that' if encoder.fill == 'zero' else 'one that is there'}"
    what = f"{it['architecture']}, {it['parameters'] / 1e6:.1f} million parameters"
    parts = [
        f"# {name}: an encoder of brain MRI",
        f"{what}, for stacks of 3 × {size_px} × {size_px} pixels.{state} Without bfp:",
        use,
        f"{pixels}, mean {mean}, std {std}; {absent}.",
        "## Data",
        _data(spec, material),
        "## Preprocessing",
        _preprocessing(material),
        "## Recipe",
        *methods(spec, material, it, probed or Probed(), step=step, earlier=earlier),
        "## Figures",
        _figures(logged, step=step),
        _learned(spec, probed),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(spec: Pretrain, material: Material) -> str:
    """What was trained on, by cohort; no store's address, which config.json holds."""
    lines = ["| cohort | subjects | sessions | stacks | modalities |", "| --- | ---: | ---: | ---: | --- |"]
    for index in material.training:
        for cohort in sorted(set(index["cohort"].to_pylist())):
            lines.append(f"| {' | '.join(_row(index, cohort))} |")
    held = material.subjects[1]
    told = f"Of these cohorts {counted(held, 'further subject was', 'further subjects were')} held out." if held else ""
    return "\n".join(lines) + (f"\n\n{told}" if told else "")


def _row(index: pa.Table, cohort: str) -> list[str]:
    import pyarrow.compute as pc

    rows = index.filter(pc.equal(index["cohort"], cohort))
    subjects, sessions = (
        len(set(zip(*(rows[name].to_pylist() for name in names), strict=True)))
        for names in (SUBJECT, (*SUBJECT, "session"))
    )
    shown = zip(rows["modalities"].to_pylist(), rows["present"].to_pylist(), strict=True)
    kinds = {tuple(name for name, there in zip(*pair, strict=True) if there) for pair in shown}
    modalities = sorted({name for names in kinds for name in names})
    return [cohort, f"{subjects:,}", f"{sessions:,}", f"{len(rows):,}", ", ".join(modalities)]


def _preprocessing(material: Material) -> str:
    several = len(material.stores) > 1
    parts = []
    for number, store in enumerate(material.stores, 1):
        lines = [f"Store {number}:\n"] if several else []
        lines += [f"- `{field}`: {flow(value)}" for field, value in store.preprocessing.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _figures(logged: Sequence[Mapping[str, Any]], *, step: int) -> str:
    """The figures that were logged last, at `step` or before."""
    by_step: dict[int, dict[str, float]] = {}
    for row in logged:
        if row["step"] <= step and row["name"] in FIGURES and row["value"] is not None:
            by_step.setdefault(row["step"], {})[row["name"]] = row["value"]
    if not by_step:
        return ""
    last = max(by_step)
    rows = [f"- {FIGURES[name]}: {number_text(by_step[last][name])}" for name in FIGURES if name in by_step[last]]
    return f"Of training, at step {last:,}:\n\n" + "\n".join(rows)


def _learned(spec: Pretrain, probed: Probed | None) -> str:
    if probed is None:
        return "Not probed: the probe follows the last step."
    parts = []
    if probed.tissue is not None:
        rows = [f"- {WORDS[name]}: {interval_text(*interval)}" for name, interval in probed.tissue.r2.items()]
        parts.append("Residual tissue R² on held-out subjects (see the recipe), 95 % intervals:\n\n" + "\n".join(rows))
    if probed.label is not None and spec.probe is not None:
        rows = [
            f"- {WORDS[name]}, {way}: {interval_text(*interval)}"
            for name, ways in probed.label.aurocs.items()
            for way, interval in ways.items()
        ]
        parts.append(f"AUROC of {spec.probe.target} on held-out subjects, 95 % intervals:\n\n" + "\n".join(rows))
    if not parts:
        return f"Not probed: {'its labels did not suffice' if spec.probe else 'the spec asked for no probe'}."
    return "\n\n".join(parts)
