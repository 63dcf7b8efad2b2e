"""What a fine-tuning came to: its figures, as blocks of the report and as the model card.

The figures for machines: `auroc` of the model, `auroc_<approach>` of each baseline, and `above_<approach>`, by how much
the model lies above it; each with `_low` and `_high`, the ends of the 95 % interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from bfp import __version__
from bfp.finetuning.crossvalidation import Judged, Study
from bfp.finetuning.labels import Labelled
from bfp.metrics.auroc import CrossValidated, auroc_difference, cross_validated_auroc, mean_roc_curve
from bfp.metrics.bootstrap import REPLICATES
from bfp.reports.blocks import Block, Cell, Facts, IntervalRow, Intervals, Results, Roc, RocCurve, Table, Text
from bfp.reports.numbers import interval_text
from bfp.words import counted

LIMITS = (
    "For research; not a medical device: nothing here was tested for use on patients. The probabilities are not "
    "calibrated: they put sessions in an order, which is what the AUROC judges, and are no risks."
)


@dataclass(frozen=True, slots=True)
class Said:
    """What the report must know of the study, in words.

    model: the approach that is the model; truth: the one that is no rival (the oracle), or None. names: of each
    approach, for people. per_class: what there is of each class. facts: of store, encoder and settings. methods: how
    sessions became vectors and heads.
    """

    target: str
    classes: list[str]
    model: str
    truth: str | None
    names: dict[str, str]
    per_class: dict[str, str]
    facts: list[tuple[str, Cell]]
    methods: str


@dataclass(frozen=True, slots=True)
class Figures:
    """AUROC of each approach, and by how much the model's lies above each other one's."""

    auroc: dict[str, CrossValidated]
    above: dict[str, CrossValidated]


def figures_of(study: Study, judged: dict[str, Judged], said: Said) -> Figures:
    classes, folds, persons, seed = study.classes, study.folds, study.persons, study.seed
    said_of = {name: each.probabilities for name, each in judged.items()}
    ours, rivals = said_of[said.model], said_of.keys() - {said.model, said.truth}
    auroc = {
        name: cross_validated_auroc(classes, found, folds=folds, subjects=persons, seed=seed)
        for name, found in said_of.items()
    }
    above = {
        name: auroc_difference(classes, ours, found, folds=folds, subjects=persons, seed=seed)
        for name, found in said_of.items()
        if name in rivals
    }
    return Figures(auroc, above)


def results_of(study: Study, judged: dict[str, Judged], labelled: Labelled, said: Said) -> Results:
    figures = figures_of(study, judged, said)
    left_out = sum(labelled.left_out.values())
    numbers: dict[str, Cell] = {
        "sessions": len(study.classes),
        "subjects": len(set(study.persons)),
        "left_out": left_out,
        "folds": study.fold_count,
    }
    named = {"auroc" if name == said.model else f"auroc_{name}": each for name, each in figures.auroc.items()}
    for key, each in {**named, **{f"above_{name}": each for name, each in figures.above.items()}}.items():
        numbers |= {key: each.mean.value, f"{key}_low": each.mean.low, f"{key}_high": each.mean.high}

    per_class = [(f"class {name}", text) for name, text in said.per_class.items()]
    blocks: list[Block] = [_aurocs(figures, said)]
    if figures.above:
        blocks.append(_differences(figures, said))
    blocks += [
        Roc(
            title="ROC curves",
            curves=_roc_curves(study, judged, said),
            note="The mean of the folds' curves, each session judged by the head that did not see its subject.",
        ),
        _folds(study, judged, figures, said),
        Facts(
            title="What was learned from what",
            rows=[("target", said.target), *per_class, ("left out", counted(left_out, "session")), *said.facts],
        ),
    ]
    if left_out:
        rows: list[list[Cell]] = [[reason, count] for reason, count in labelled.left_out.items()]
        blocks.append(Table(title="Sessions left out", columns=["reason", "sessions"], rows=rows))
    blocks += [_methods(study, said), Text("Limits", [LIMITS])]
    return Results(figures=numbers, blocks=blocks)


def model_card(name: str, results: Results, said: Said) -> str:
    """The card in Markdown: what it is, how good, made how."""
    value, low, high = (results.figures[key] for key in ("auroc", "auroc_low", "auroc_high"))
    assert not isinstance(value, str)
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    methods = next(block for block in results.blocks if isinstance(block, Text))
    paragraphs = [
        f"# {name}: {said.target} from brain MRI",
        f"Classes: {', '.join(said.classes)}.",
        f"Cross-validated AUROC {interval_text(value, low, high)} (mean of folds, 95 % interval over subjects).",
        LIMITS,
        *methods.paragraphs,
        "Predict with `bfp submit` and a spec of `kind: infer` whose `model` is this folder.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _aurocs(figures: Figures, said: Said) -> Intervals:
    return Intervals(
        title="AUROC of each approach",
        rows=[IntervalRow(said.names[name], *each.mean, each.folds) for name, each in figures.auroc.items()],
        axis_label="AUROC, mean of folds",
        reference=0.5,
        note="Intervals are 95 %, by bootstrap over subjects (BCa) of the mean of the folds. All "
        "approaches were judged on the same sessions and folds.",
    )


def _differences(figures: Figures, said: Said) -> Intervals:
    return Intervals(
        title=f"How much higher the AUROC of the {said.names[said.model]} is",
        rows=[IntervalRow(f"than {said.names[name]}", *each.mean, each.folds) for name, each in figures.above.items()],
        axis_label="difference of AUROC",
        reference=0.0,
        note="Paired: both approaches on the same draws of subjects.",
    )


def _folds(study: Study, judged: dict[str, Judged], figures: Figures, said: Said) -> Table:
    folds = [f"fold {number + 1}" for number in range(study.fold_count)]
    return Table(
        title="Folds",
        columns=["approach", *folds, "mean", "low", "high", "C of each fold"],
        rows=[
            [said.names[name], *each.folds, *each.mean, ", ".join(f"{fold.strength:g}" for fold in judged[name].folds)]
            for name, each in figures.auroc.items()
        ],
        note="AUROC; low and high are the ends of the 95 % interval; C is the inverse strength of regularisation.",
    )


def _roc_curves(study: Study, judged: dict[str, Judged], said: Said) -> list[RocCurve]:
    """Two classes: one curve for each approach. More: the model's curve for each class against the rest."""
    if study.class_count == 2:
        scored = [(said.names[name], 1, each.probabilities) for name, each in judged.items()]
    else:
        ours = judged[said.model].probabilities
        scored = [(f"{name} against the rest", k, ours) for k, name in enumerate(said.classes)]
    curves = []
    for label, k, probabilities in scored:
        points = mean_roc_curve(study.classes == k, probabilities[:, k], folds=study.folds)
        curves.append(RocCurve(label, points.false_positive.tolist(), points.true_positive.tolist()))
    return curves


def _methods(study: Study, said: Said) -> Text:
    classes = "; ".join(f"{name}: {text}" for name, text in said.per_class.items())
    several = " (one-vs-rest, macro-averaged)" if study.class_count > 2 else ""
    strengths = ", ".join(f"{value:g}" for value in study.strengths)
    learned = (
        f"Sessions were classified by {said.target} ({classes}). {said.methods} A standardised, L2-regularised "
        f"logistic regression was fitted; its inverse strength (C of {strengths}) was chosen by AUROC in a "
        "cross-validation inside each fold's training subjects."
    )
    judged = (
        f"Performance was estimated by {study.fold_count}-fold cross-validation, grouped by subject and stratified by "
        f"class and cohort. The area under the ROC curve{several} is the mean over folds; 95 % intervals are from "
        f"{REPLICATES:,} bootstrap replicates over subjects (bias-corrected and accelerated). Baselines were judged on "
        f"the same folds, by the same procedure. Software: bfp {__version__}."
    )
    return Text(title="Methods", paragraphs=[learned, judged])
