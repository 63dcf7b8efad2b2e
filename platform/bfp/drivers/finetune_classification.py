"""What a classification's report has of its own: ROC and reliability curves, the confusion, words for the methods."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bfp.drivers.finetune_figures import Figures
from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.auroc import mean_roc_curve, mean_roc_intervals
from bfp.metrics.classification import confusion_of
from bfp.reports.blocks import Block, Reliability, ReliabilityCurve, Roc, RocCurve, Table
from bfp.reports.numbers import interval_text

ROC_RATES = np.linspace(0, 1, 41)
"""False positive rates at which a curve has its interval."""

LIMITS = (
    "The probabilities are an order and no risks; how far they are from what was seen stands under Calibration in the "
    "report of the run that made the model. The recalibrated ones beside them, and the threshold, were fitted on "
    "held-out sessions of the same study: where the classes are rarer or commoner than there, or scans are others, "
    "they do not hold."
)


def blocks(
    study: Study,
    judged: Mapping[str, Judged],
    figures: Figures,
    *,
    classes: list[str],
    model: str,
    names: Mapping[str, str],
) -> list[Block]:
    """names: of each approach, for people."""
    return [
        Roc(
            title="ROC curves",
            curves=_roc_curves(study, judged, classes=classes, model=model, names=names),
            note="The mean of the folds' curves, each session judged by the head that did not see its subject; its "
            f"intervals, of the {names[model]}, by bootstrap over subjects.",
        ),
        _reliability(figures, model=names[model]),
        _confusion(judged[model], classes=classes, model=names[model]),
    ]


def _roc_curves(
    study: Study, judged: Mapping[str, Judged], *, classes: list[str], model: str, names: Mapping[str, str]
) -> list[RocCurve]:
    """Two classes: one curve for each approach. More: the model's curve for each class against the rest."""
    if len(classes) == 2:
        scored = [(names[name], 1, each) for name, each in judged.items()]
    else:
        scored = [(f"{name} against the rest", k, judged[model]) for k, name in enumerate(classes)]
    curves = []
    for label, k, each in scored:
        positive, scores = each.targets == k, each.said[:, k]
        points = mean_roc_curve(positive, scores, folds=study.folds)
        curve = RocCurve(label, points.false_positive.tolist(), points.true_positive.tolist())
        if each is judged[model]:
            found = mean_roc_intervals(
                positive, scores, folds=study.folds, subjects=study.persons, rates=ROC_RATES, seed=study.seed
            )
            low, high = [each.low for each in found], [each.high for each in found]
            curve = curve._replace(rates=ROC_RATES.tolist(), low=low, high=high)
        curves.append(curve)
    return curves


def _reliability(figures: Figures, *, model: str) -> Reliability:
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
        note=f"Sessions in order of the probability that the {model}'s head gave, in bins of equally "
        f"many. {'; '.join(told)} (a slope below 1: too extreme; above 0 in the large: too high).",
    )


def _confusion(judged: Judged, *, classes: list[str], model: str) -> Table:
    once = np.ones((1, len(judged.targets)))
    counts = confusion_of(judged.targets, judged.said, once)[0].astype(int).tolist()
    return Table(
        title="Confusion",
        columns=["is", *(f"taken for {name}" for name in classes)],
        rows=[[name, *row] for name, row in zip(classes, counts, strict=True)],
        note=f"Sessions, by the likelier class of the {model}; each judged by the head that did not see its subject.",
    )


def further_note(classes: list[str]) -> str:
    return (
        "With 95 % intervals over subjects; average precision is the mean of folds, the others are of all sessions at "
        "once, each judged by the head that did not see its subject (the threshold for the sensitivity is chosen on "
        "them, too). "
        + ("Of each class against the rest, averaged" if len(classes) > 2 else f"Of {classes[1]}")
        + "; the decision is the likelier class. Brier score: squared error of the probabilities, 0 is best."
    )
