"""The figures of a fine-tuning: how good each approach is, and by how much the model is better than its rivals.

For machines: `auroc` of the model, `auroc_<approach>` of each baseline, and `above_<approach>`, by how much the model
lies above it; the model's other figures (FURTHER), `calibration_slope` and `calibration_in_the_large`; each with `_low`
and `_high`, the ends of the 95 % interval. `p_delong_<approach>` is of the difference, as adjusted by Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.calibration import Calibration, calibration
from bfp.metrics.classification import (
    SPECIFICITY,
    average_precision,
    balanced_accuracy,
    brier,
    f1,
    sensitivity_at,
)
from bfp.metrics.over_folds import Figure, OverFolds, difference, over_folds
from bfp.metrics.paired import UNDEFINED, Test, corrected_t, delong, holm, plain_t

FURTHER: dict[str, tuple[str, Figure]] = {
    "average_precision": ("average precision", average_precision),
    "balanced_accuracy": ("balanced accuracy", balanced_accuracy),
    "f1": ("F1", f1),
    "sensitivity": (f"sensitivity at {SPECIFICITY:.0%} specificity", sensitivity_at),
    "brier": ("Brier score", brier),
}
"""Beside the AUROC: how people call a figure, and what computes it."""
BY_FOLD = ("average_precision",)
"""Figures of an order, which are means of folds as the AUROC is, since heads of different folds order differently. A
decision and a probability mean the same in each: figures of them are of all sessions at once, as a fold has too few."""


@dataclass(frozen=True, slots=True)
class Figures:
    """AUROC of each approach, by how much the model's lies above each rival's, and tests of that; all by approach.

    further: the other figures by their names in FURTHER, of each approach. calibration: of the model, for each class;
    with two classes of the second one alone.
    """

    auroc: dict[str, OverFolds]
    above: dict[str, OverFolds]
    tests: dict[str, PairedTests]
    further: dict[str, dict[str, OverFolds]]
    calibration: dict[str, Calibration]


@dataclass(frozen=True, slots=True)
class PairedTests:
    """Tests of one difference of AUROC (`bfp.metrics.paired`). delong: undefined with more than two classes."""

    delong: Test
    corrected_t: Test
    plain_t: Test


def figures_of(
    study: Study, judged: Mapping[str, Judged], *, class_names: Sequence[str], model: str, no_rivals: Sequence[str]
) -> Figures:
    """judged: by approach. model: the one in question; no_rivals: those that it is not compared with."""
    classes, folds, persons, seed = study.classes, study.folds, study.persons, study.seed
    said_of = {name: each.probabilities for name, each in judged.items()}
    ours, rivals = said_of[model], [name for name in said_of if name not in (model, *no_rivals)]

    def of_each(figure: Figure, folds: np.ndarray) -> dict[str, OverFolds]:
        return {
            name: over_folds(figure, classes, found, folds=folds, subjects=persons, seed=seed)
            for name, found in said_of.items()
        }

    above = {
        name: difference(weighted_auroc, classes, ours, said_of[name], folds=folds, subjects=persons, seed=seed)
        for name in rivals
    }
    named = list(enumerate(class_names))
    return Figures(
        auroc=of_each(weighted_auroc, folds),
        above=above,
        tests={name: _tests(study, ours, said_of[name], found.folds) for name, found in above.items()},
        further={
            name: of_each(figure, folds if name in BY_FOLD else np.zeros_like(folds))
            for name, (_, figure) in FURTHER.items()
        },
        calibration={
            name: calibration(classes == k, ours[:, k], subjects=persons, seed=seed)
            for k, name in (named[1:] if len(named) == 2 else named)
        },
    )


def _tests(study: Study, ours: np.ndarray, theirs: np.ndarray, differences: list[float | None]) -> PairedTests:
    two = study.class_count == 2
    return PairedTests(
        delong=delong(study.classes == 1, ours[:, 1], theirs[:, 1], folds=study.folds, subjects=study.persons)
        if two
        else UNDEFINED,
        corrected_t=corrected_t(differences, tested=1 / study.fold_count),
        plain_t=plain_t(differences),
    )


def numbers_of(figures: Figures, *, model: str) -> dict[str, float | None]:
    """For machines, by the names that the top of this file tells."""
    named = {"auroc" if name == model else f"auroc_{name}": each for name, each in figures.auroc.items()}
    named |= {f"above_{name}": each for name, each in figures.above.items()}
    named |= {name: each[model] for name, each in figures.further.items()}
    intervals = {key: each.mean for key, each in named.items()}
    if len(figures.calibration) == 1:
        (found,) = figures.calibration.values()
        intervals |= {"calibration_slope": found.slope, "calibration_in_the_large": found.in_the_large}
    numbers: dict[str, float | None] = {}
    for key, interval in intervals.items():
        numbers |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    adjusted = holm([each.delong.p for each in figures.tests.values()])
    return numbers | {f"p_delong_{name}": p for name, p in zip(figures.tests, adjusted, strict=True)}
