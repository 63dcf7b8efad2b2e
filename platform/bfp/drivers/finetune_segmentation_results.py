"""What a segmentation came to: Dice and HD95 by class with intervals, worst and best cases, table and model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bfp import __version__
from bfp.cohorts.derivatives import Masks, mask_stem
from bfp.cohorts.sessions import Key
from bfp.drivers.finetune_results import METHODS
from bfp.drivers.finetune_tripod import Known, evaluated
from bfp.errors import BfpError
from bfp.finetuning.segmentation import FoldResult, Score, Segmented
from bfp.imaging.nifti import decode
from bfp.imaging.showing import axial_plane, most_at
from bfp.metrics.bootstrap import Interval
from bfp.metrics.segmentation import DICE, HD95_MM, INTERVALS, RULE, Overlap, mean_difference, mean_over_sessions
from bfp.reports.blocks import (
    Block,
    Cell,
    Facts,
    IntervalRow,
    Intervals,
    Picture,
    Results,
    Table,
    Text,
)
from bfp.reports.numbers import interval_text
from bfp.reports.pictures import Outlined, orientation, outlines
from bfp.runs import Run
from bfp.specs.finetune import Finetune
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    from bfp.drivers.finetune_segmentation import Material

MODEL = "encoder"
PICTURE, SHOWN_CASES = "pictures/cases.png", 3
SHOWN_ROWS = 50
LIMITS = (
    "For research; not a medical device: nothing here was tested for use on patients. The masks that were learned from "
    "are taken for the truth, whoever or whatever drew them; agreement with a program's masks is no better than the "
    "program."
)


class _Values:
    """The scores of every approach in the order of the sessions, and what is said of them."""

    def __init__(self, material: Material, folds: Mapping[str, Sequence[FoldResult]], *, seed: int) -> None:
        self._persons, self._seed = material.persons, seed
        self.scores: dict[str, list[Score]] = {
            name: sorted((score for fold in results for score in fold.scores), key=lambda score: score.session)
            for name, results in folds.items()
        }

    def of(self, approach: str, which: str, k: int | None) -> list[float | None]:
        """dice or hd95_mm of each session: of class k, or the mean of those classes in which it is defined."""

        def one(overlaps: Sequence[Overlap]) -> float | None:
            if k is not None:
                value: float | None = getattr(overlaps[k], which)
                return value
            defined = [value for own in overlaps if (value := getattr(own, which)) is not None]
            return float(np.mean(defined)) if defined else None

        return [one(score.overlaps) for score in self.scores[approach]]

    def mean(self, approach: str, which: str, k: int | None) -> Interval:
        within = DICE if which == "dice" else HD95_MM
        return mean_over_sessions(self.of(approach, which, k), subjects=self._persons, seed=self._seed, within=within)

    def false_alarms(self, approach: str, k: int) -> tuple[int, int]:
        """In how many sessions there is a mask of class k, and of how many, those in which nothing of it was drawn."""
        told = [score.overlaps[k].is_false_alarm for score in self.scores[approach]]
        return sum(each is True for each in told), sum(each is not None for each in told)

    def above(self, other: str, k: int | None) -> Interval:
        """How much higher the model's Dice is."""
        ours, theirs = (self.of(name, "dice", k) for name in (MODEL, other))
        return mean_difference(ours, theirs, subjects=self._persons, seed=self._seed, within=DICE)


def results_of(
    spec: Finetune,
    material: Material,
    encoder: Mapping[str, Any],
    folds: Mapping[str, Sequence[FoldResult]],
    *,
    pictures: bool,
) -> Results:
    values = _Values(material, folds, seed=spec.seed)
    names = _names(encoder)
    classes = [(name, k) for k, name in enumerate(material.classes)]
    rivals = [name for name in folds if name != MODEL]
    native = sum(score.space == "native" for score in values.scores[MODEL])
    figures: dict[str, Cell] = {
        "sessions": len(material.study.sessions),
        "subjects": len(set(material.persons)),
        "left_out": sum(material.left_out.values()),
        "folds": spec.folds,
        "native": native,
    }
    for name, k in [("", None), *classes]:
        behind = f"_{name}" if name else ""
        figures |= _three(f"dice{behind}", values.mean(MODEL, "dice", k))
        figures |= _three(f"hd95_mm{behind}", values.mean(MODEL, "hd95_mm", k))
        for rival in rivals:
            figures |= _three(f"dice_{rival}{behind}", values.mean(rival, "dice", k))
            figures |= _three(f"above_{rival}{behind}", values.above(rival, k))
    for name, k in classes:
        figures[f"false_alarms_{name}"], figures[f"not_drawn_{name}"] = values.false_alarms(MODEL, k)
    blocks: list[Block] = [
        _by_class("Dice of each class", values, names, classes, folds, "dice", "Dice"),
        *([_differences(values, names, classes, rivals)] if rivals else []),
        _distances(values, names, classes),
        _sessions(material, values),
    ]
    if pictures:
        caption = (
            "The sessions with the lowest and the highest Dice, the plane with most labels, on the scan's own voxels. "
            "Blue: as it was drawn; yellow: as the decoder that did not see the subject predicts it. "
        )
        blocks.append(Picture("Worst and best cases", PICTURE, caption + orientation("axial")))
    store, decoder = material.store, material.task.decoder
    said = "; ".join(sorted({fold.said for name in rivals for fold in folds[name] if fold.said}))
    blocks += [
        Facts(
            "What was learned from what",
            [
                ("target", f"{material.task.target}: {', '.join(material.classes)}"),
                ("judged in native space", f"{native} of {counted(len(material.study.sessions), 'session')}"),
                ("left out", counted(sum(material.left_out.values()), "session")),
                ("store", f"{store.place}, snapshot {store.snapshot}"),
                ("preprocessing", store.fingerprint),
                ("stacks", material.index.num_rows),
                ("modalities shown", ", ".join(material.shown)),
                ("encoder", spec.encoder),
                ("architecture", f"{encoder['architecture']}, width {encoder['width']}, {encoder['depth']} blocks"),
                ("weights", encoder["weights"][:16]),
                ("decoder", f"{decoder.layers} layers, width {decoder.width}, {decoder.steps:,} steps"),
                ("loss, first and last", _losses(folds[MODEL])),
                *([("thresholds of the folds", said)] if said else []),
                ("folds", f"as in {spec.splits}" if spec.splits else "dealt by the seed, stratified by cohort"),
                ("seed", spec.seed),
            ],
        ),
        _methods(spec, material, encoder, rivals, native=native),
        Text("Limits", [LIMITS]),
    ]
    return Results(figures=figures, blocks=blocks)


def known_of(spec: Finetune, material: Material, *, met: str) -> Known:
    """For what TRIPOD+AI asks for. met: whom the encoder's pretraining had met."""
    store, study, decoder = material.store, material.study, material.task.decoder
    carried = {
        Key(row["cohort"], row["subject"], row["session"]): row["labels"]
        for row in store.sessions().to_pylist(maps_as_pydicts="strict")
    }
    dealt = f"as in {spec.splits}" if spec.splits else "stratified by cohort"
    return Known(
        spec=spec,
        store=store,
        index=material.index,
        shown=material.shown,
        sessions=study.sessions,
        labels=[carried.get(key, {}) for key in study.sessions],
        kinds=[],
        classes=[],
        folds=study.folds,
        left_out=material.left_out,
        outcome=f"{material.task.target} ({', '.join(material.classes)}), the masks that the cohorts brought",
        model=f"a convolutional decoder of {decoder.steps:,} steps on patch tokens of {spec.encoder}, which was not "
        "trained; nothing was chosen by its figures",
        dealt=f"{spec.folds} folds, grouped by subject, {dealt}",
        evaluated=evaluated(met),
        groups=[],
        measures={"dice": "Dice", "hd95_mm": "HD95 (mm)"},
        output="a mask on the scan's own voxels",
    )


def model_card(name: str, results: Results, material: Material) -> str:
    """The card in Markdown: what it is, how good, made how."""
    methods = next(block for block in results.blocks if isinstance(block, Text) and block.title == METHODS)
    listed = [
        f"- {each}: Dice {_text(results, f'dice_{each}')}, HD95 {_text(results, f'hd95_mm_{each}')} mm"
        for each in material.classes
    ]
    paragraphs = [
        f"# {name}: {material.task.target} in brain MRI",
        f"Classes: {', '.join(material.classes)}.",
        "Cross-validated, mean over sessions with its 95 % interval over subjects:",
        "\n".join(listed),
        LIMITS,
        *methods.paragraphs,
        "Segment with `bfp submit` and a spec of `kind: infer` whose `model` is this folder.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def write_pictures(run: Run, study: Segmented, folds: Sequence[FoldResult], masks: Masks) -> bool:
    """The worst and the best cases in native space; False where no scan of them can be had."""
    scores = [score for fold in folds for score in fold.scores if score.space == "native"]
    ranked = sorted(
        (
            (np.mean(dice), score)
            for score in scores
            if (dice := [o.dice for o in score.overlaps if o.dice is not None])
        ),
        key=lambda each: (each[0], each[1].session),
    )
    count = min(SHOWN_CASES, len(ranked) // 2)
    chosen = [("worst", *each) for each in ranked[:count]] + [("best", *each) for each in ranked[len(ranked) - count :]]
    slices = []
    for which, value, score in chosen:
        key = study.sessions[score.session]
        name = " ".join(filter(None, key))
        if (own := _outlined(f"{which}, {name}: Dice {value:.2f}", study, score.session, masks)) is not None:
            slices.append(own)
    if slices:
        (run.folder / PICTURE).write(outlines(slices))
    return bool(slices)


def _outlined(title: str, study: Segmented, session: int, masks: Masks) -> Outlined | None:
    """The plane of a session's scan with most labels; None where a file of it cannot be read."""
    key, where = study.sessions[session], study.drawn_on[session]
    stem = mask_stem(key, where.scan, segmentation=masks.segmentation)
    try:
        predicted = decode((masks.at / key.cohort / f"{stem}.nii.gz").read(), may_be_blank=True)
        drawn = decode(where.labels.read(), may_be_blank=True)
        scan = decode(place(where.scan).read(), volumes="first")
    except BfpError:
        return None
    classes = study.labels.classes_of(drawn.scaled(drawn.stored).astype(np.uint16))
    height = most_at(classes, on=drawn.grid)
    grey = axial_plane(scan.stored, of=scan.grid, on=drawn.grid, height=height, interpolation="linear")
    planes = [
        axial_plane(labels, of=drawn.grid, on=drawn.grid, height=height, interpolation="nearest")
        for labels in (predicted.stored.astype(np.uint8), classes)
    ]
    return Outlined(title, _as_bytes(grey), *planes)


def _as_bytes(plane: np.ndarray) -> np.ndarray:
    """Grey values to uint8, between their 1st and 99th percentile."""
    low, high = np.percentile(plane, [1, 99])
    return (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


# blocks --------------------------------------------------------------------------------------------------------------


def _names(encoder: Mapping[str, Any]) -> dict[str, str]:
    return {
        MODEL: "untrained encoder" if encoder["origin"] == "random" else "pretrained encoder",
        "untrained": "same encoder, untrained",
        "atlas": "atlas (position alone)",
        "threshold": "one grey threshold",
    }


def _by_class(
    title: str,
    values: _Values,
    names: Mapping[str, str],
    classes: Sequence[tuple[str, int]],
    folds: Mapping[str, Sequence[FoldResult]],
    which: str,
    label: str,
) -> Intervals:
    rows = []
    for name, k in classes:
        for approach in folds:
            dots = [_mean_of([getattr(s.overlaps[k], which) for s in fold.scores]) for fold in folds[approach]]
            rows.append(IntervalRow(f"{name}: {names[approach]}", *values.mean(approach, which, k), dots))
    return Intervals(
        title=title,
        rows=rows,
        axis_label=f"{label}, mean over sessions",
        note=f"Dots: the folds. Intervals are 95 %, from {INTERVALS}. Every session is predicted by a "
        f"decoder that did not see its subject, and compared in the voxels of the file in which it was drawn. {RULE}.",
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _differences(
    values: _Values, names: Mapping[str, str], classes: Sequence[tuple[str, int]], rivals: Sequence[str]
) -> Intervals:
    return Intervals(
        title=f"How much higher the Dice of the {names[MODEL]} is",
        rows=[
            IntervalRow(f"{name}: than {names[rival]}", *values.above(rival, k), [])
            for name, k in classes
            for rival in rivals
        ],
        axis_label="difference of Dice",
        reference=0.0,
        note="Paired: the same sessions and draws of subjects.",
    )


def _defined(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)


def _distances(values: _Values, names: Mapping[str, str], classes: Sequence[tuple[str, int]]) -> Table:
    rows: list[list[Cell]] = []
    for name, k in classes:
        for approach in values.scores:
            dice, hd95_mm = (values.of(approach, which, k) for which in ("dice", "hd95_mm"))
            rows.append(
                [
                    name,
                    names[approach],
                    interval_text(*values.mean(approach, "dice", k)),
                    f"{_defined(dice)} of {len(dice)}",
                    interval_text(*values.mean(approach, "hd95_mm", k)),
                    f"{_defined(hd95_mm)} of {len(hd95_mm)}",
                    "{} of {}".format(*values.false_alarms(approach, k)),
                ]
            )
    return Table(
        title="Dice and HD95",
        columns=["class", "approach", "Dice", "in sessions", "HD95, mm", "in sessions", "false alarms"],
        rows=rows,
        note="HD95: the larger of the two 95th percentiles of the distances from one surface to the other. "
        f"{RULE}: in so many of the sessions without the class there is a mask of it.",
    )


def _sessions(material: Material, values: _Values) -> Table:
    dice = values.of(MODEL, "dice", None)
    order = sorted(range(len(dice)), key=lambda number: (dice[number] is None, dice[number] or 0.0))
    rows: list[list[Cell]] = []
    for number in order[:SHOWN_ROWS]:
        score, key = values.scores[MODEL][number], material.study.sessions[number]
        volumes = ", ".join(f"{own.predicted_ml:.1f} for {own.drawn_ml:.1f}" for own in score.overlaps)
        rows.append([key.cohort, key.subject, key.session, dice[number], volumes, score.space])
    return Table(
        title="Sessions, worst first",
        columns=["cohort", "subject", "session", "Dice", "ml predicted for drawn", "space"],
        rows=rows,
        note="Dice: the mean of the classes that were drawn; where none was, it is undefined, and stands last. All, "
        "by class, stand in predictions/segmentations.parquet; the masks in derivatives/.",
    )


def _losses(folds: Sequence[FoldResult]) -> str:
    first, last = (np.mean([fold.losses[at] for fold in folds]) for at in (0, -1))
    return f"{first:.3f}, {last:.3f}"


def _three(name: str, interval: Interval) -> dict[str, Cell]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _text(results: Results, name: str) -> str:
    number: Callable[[Cell], float | None] = lambda cell: None if isinstance(cell, str) else cell  # noqa: E731
    value, low, high = (number(results.figures[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return interval_text(value, low, high)


def _methods(
    spec: Finetune, material: Material, encoder: Mapping[str, Any], rivals: Sequence[str], *, native: int
) -> Text:
    decoder, store, sessions = material.task.decoder, material.store, len(material.study.sessions)
    layers = "the last block" if decoder.layers == "last" else "four blocks at even distances"
    where = (
        "the voxels of the file in which it was drawn"
        if native == sessions
        else f"the voxels of the file in which it was drawn ({native} of {sessions} sessions) or in the stacks"
    )
    learned = (
        f"{material.task.target} ({', '.join(material.classes)}) was segmented slice by slice. "
        f"{store.slice_axis.capitalize()} slice stacks of {', '.join(material.shown)} were passed through a frozen "
        f"{encoder['architecture']} ({encoder['parameters'] / 1e6:.1f} million parameters; {spec.encoder}). A "
        f"convolutional decoder took the patch tokens of {layers}, the pixels, and the slice's height, and was trained "
        f"for {decoder.steps:,} steps of {decoder.batch_size} slices by the sum of Dice loss and cross-entropy "
        f"(MONAI; AdamW, rate {decoder.learning_rate:g}, cosine). Probabilities of all slices were carried back to the "
        "scan by linear interpolation, and the largest was taken."
    )
    baselines = {
        "untrained": "the same on the encoder with random weights",
        "atlas": "the training sessions' mean map at the same height",
        "threshold": "the grey threshold with the best Dice in training",
    }
    judged = (
        f"Performance was estimated by {spec.folds}-fold cross-validation, grouped by subject. Dice and HD95 of a "
        f"session were computed in {where}; their means over sessions have 95 % intervals from {INTERVALS}. {RULE}. "
        f"Baselines: {'; '.join(baselines[name] for name in rivals)}. Software: bfp {__version__}."
    )
    return Text(METHODS, [learned, judged])
