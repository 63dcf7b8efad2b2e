"""What a fine-tuning came to: its figures (`finetune_figures`), as blocks of the report and as the model card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bfp import __version__
from bfp.drivers.finetune_figures import FURTHER, Figures, figures_of, numbers_of
from bfp.finetuning.crossvalidation import Judged, Study
from bfp.finetuning.groups import groups_of
from bfp.finetuning.labels import Labelled
from bfp.metrics.auroc import mean_roc_curve, weighted_auroc
from bfp.metrics.bootstrap import REPLICATES
from bfp.metrics.classification import confusion_of
from bfp.metrics.over_folds import over_folds
from bfp.reports.blocks import (
    Block,
    Cell,
    Facts,
    IntervalRow,
    Intervals,
    Reliability,
    ReliabilityCurve,
    Results,
    Roc,
    RocCurve,
    Table,
    Text,
)
from bfp.reports.numbers import interval_text
from bfp.words import counted

LIMITS = (
    "For research; not a medical device: nothing here was tested for use on patients. The probabilities are an order "
    "and no risks; how far they are from what was seen stands under Calibration in the report of the run that made the "
    "model. The recalibrated ones beside them, and the threshold, were fitted on held-out sessions of the same study: "
    "where the classes are rarer or commoner than there, or scans are others, they do not hold."
)


@dataclass(frozen=True, slots=True)
class Said:
    """What the report must know of the study, in words.

    model: the approach that is the model; no_rivals: those that it is not to be better than (the oracle, permuted
    labels). names: of each approach, for people. per_class: what there is of each class. groups: text of each session
    by column, for figures by group. facts: of store, encoder and settings. methods: how sessions became vectors and
    heads. dealt: how subjects came into folds, as the end of a clause.
    """

    target: str
    classes: list[str]
    model: str
    no_rivals: tuple[str, ...]
    names: dict[str, str]
    per_class: dict[str, str]
    groups: dict[str, list[str]]
    facts: list[tuple[str, Cell]]
    methods: str
    dealt: str


def results_of(study: Study, judged: dict[str, Judged], labelled: Labelled, said: Said) -> Results:
    figures = figures_of(study, judged, class_names=said.classes, model=said.model, no_rivals=said.no_rivals)
    left_out = sum(labelled.left_out.values())
    numbers: dict[str, Cell] = {
        "sessions": len(study.classes),
        "subjects": len(set(study.persons)),
        "left_out": left_out,
        "folds": study.fold_count,
    }
    numbers |= numbers_of(figures, model=said.model)
    per_class = [(f"class {name}", text) for name, text in said.per_class.items()]
    blocks: list[Block] = [_aurocs(figures, said)]
    if figures.above:
        blocks += [_differences(figures, said), _paired_tests(figures, said)]
    blocks += [
        _further(figures, said),
        Roc(
            title="ROC curves",
            curves=_roc_curves(study, judged, said),
            note="The mean of the folds' curves, each session judged by the head that did not see its subject.",
        ),
        _reliability(figures, said),
        _confusion(study, judged, said),
        *([_by_group(study, judged, said)] if said.groups else []),
        _folds(study, judged, figures, said),
        _further_in_folds(study, figures, said),
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


def _paired_tests(figures: Figures, said: Said) -> Table:
    two = len(said.classes) == 2
    rows: list[list[Cell]] = []
    for name, each in figures.tests.items():
        adjusted = figures.adjusted[name]
        p = [adjusted.corrected_t, *([adjusted.delong] if two else []), each.plain_t.p]
        rows.append([said.names[name], *map(_p_text, p)])
    of_heads = (
        "DeLong's test, which allows for several sessions of a subject, is of these heads alone: from other subjects "
        "others would have come, of which it knows nothing. "
    )
    return Table(
        title="Is the difference more than chance?",
        columns=["above", "corrected t", *(["DeLong"] if two else []), "plain t"],
        rows=rows,
        note="Two-sided p values of the differences above. The corrected t test (Nadeau and Bengio) is over folds and "
        f"allows for what their training sets share. {of_heads if two else ''}"
        f"{'Both are' if two else 'It is'} adjusted (Holm) for the rows of this table. The plain t test is what papers "
        "print; it finds differences where there are none.",
    )


def _p_text(p: float | None) -> Cell:
    return p if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _further(figures: Figures, said: Said) -> Table:
    return Table(
        title="Further figures",
        columns=["approach", *(label for label, _ in FURTHER.values())],
        rows=[
            [said.names[name], *(interval_text(*figures.further[figure][name].mean) for figure in FURTHER)]
            for name in figures.auroc
        ],
        note="With 95 % intervals over subjects; average precision is the mean of folds, the others are of all "
        "sessions at once, each judged by the head that did not see its subject (the threshold for the sensitivity is "
        "chosen on them, too). "
        + ("Of each class against the rest, averaged" if len(said.classes) > 2 else f"Of {said.classes[1]}")
        + "; the decision is the likelier class. Brier score: squared error of the probabilities, 0 is best.",
    )


def _reliability(figures: Figures, said: Said) -> Reliability:
    curves = [
        ReliabilityCurve(
            name,
            [part.said for part in each.curve],
            *([getattr(part.seen, end) for part in each.curve] for end in ("value", "low", "high")),
        )
        for name, each in figures.calibration.items()
    ]
    told = [
        f"{name}: slope {interval_text(*each.slope)}, in the large {interval_text(*each.in_the_large)}"
        for name, each in figures.calibration.items()
    ]
    return Reliability(
        title="Calibration",
        curves=curves,
        note=f"Sessions in order of the probability that the {said.names[said.model]}'s head gave, in bins of equally "
        f"many. {'; '.join(told)} (a slope below 1: too extreme; above 0 in the large: too high).",
    )


def _confusion(study: Study, judged: dict[str, Judged], said: Said) -> Table:
    once = np.ones((1, len(study.classes)))
    counts = confusion_of(study.classes, judged[said.model].probabilities, once)[0].astype(int).tolist()
    return Table(
        title="Confusion",
        columns=["is", *(f"taken for {name}" for name in said.classes)],
        rows=[[name, *row] for name, row in zip(said.classes, counts, strict=True)],
        note=f"Sessions, by the likelier class of the {said.names[said.model]}; each judged by the head that did not "
        "see its subject.",
    )


def _by_group(study: Study, judged: dict[str, Judged], said: Said) -> Table:
    ours, persons, rows = judged[said.model].probabilities, np.array(study.persons, dtype=object), []
    for column, values in said.groups.items():
        for name, own in groups_of(values):
            classes, folds, whose = study.classes[own], study.folds[own], persons[own].tolist()
            found = over_folds(weighted_auroc, classes, ours[own], folds=folds, subjects=whose, seed=study.seed).mean
            counts = np.bincount(classes, minlength=study.class_count).tolist()
            rows.append([column, name, *counts, len(set(whose)), interval_text(*found)])
    return Table(
        title="In whom it is right",
        columns=["by", "group", *said.classes, "subjects", "AUROC"],
        rows=rows,
        note=f"Sessions of each class, and AUROC of the {said.names[said.model]} within the group, by the same heads: "
        "the mean of the folds in which it has sessions of each class, with its 95 % interval. Groups are small and "
        "many: one that stands out may do so by chance.",
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


def _further_in_folds(study: Study, figures: Figures, said: Said) -> Table:
    return Table(
        title=f"Further figures of the {said.names[said.model]} in each fold",
        columns=["figure", *(f"fold {number + 1}" for number in range(study.fold_count))],
        rows=[[label, *figures.in_folds[name]] for name, (label, _) in FURTHER.items()],
    )


def _roc_curves(study: Study, judged: dict[str, Judged], said: Said) -> list[RocCurve]:
    """Two classes: one curve for each approach. More: the model's curve for each class against the rest."""
    if study.class_count == 2:
        scored = [(said.names[name], 1, each) for name, each in judged.items()]
    else:
        scored = [(f"{name} against the rest", k, judged[said.model]) for k, name in enumerate(said.classes)]
    curves = []
    for label, k, each in scored:
        points = mean_roc_curve(each.classes == k, each.probabilities[:, k], folds=study.folds)
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
    tested = (
        "differences of AUROC were tested over folds by the corrected resampled t test (Nadeau and Bengio, 2003), its "
        "standard error being at least the bootstrap's"
    )
    if study.class_count == 2:
        tested += (
            ", and of the trained heads by DeLong's test for clustered data within folds (DeLong et al., 1988; "
            "Obuchowski, 1997)"
        )
    tested += "; p values were adjusted by Holm's procedure, and "
    judged = (
        f"Performance was estimated by {study.fold_count}-fold cross-validation, grouped by subject{said.dealt}. "
        f"The area under the ROC curve{several} is the mean over folds; 95 % intervals are from "
        f"{REPLICATES:,} bootstrap replicates over subjects (bias-corrected and accelerated). Baselines were judged on "
        f"the same folds, by the same procedure; {tested}are two-sided. Software: bfp {__version__}."
    )
    return Text(title="Methods", paragraphs=[learned, judged])
