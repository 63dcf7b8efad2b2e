"""The figures of a fine-tuning: how good each approach is, and by how much the model is better than its rivals.

For machines: `auroc` of the model, `auroc_<approach>` of each baseline, and `above_<approach>`, by how much the model
lies above it; the model's other figures (FURTHER), `calibration_slope` and `calibration_in_the_large`; each with `_low`
and `_high`, the ends of the 95 % interval. `p_corrected_t_<approach>` and, with two classes, `p_delong_<approach>` are
of the difference, as adjusted by Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.bootstrap import standard_error
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
"""Which are means of folds, as the AUROC is. The others are of all sessions at once: a decision and a probability mean
the same in every fold, and at a specificity of 90 % a fold of twelve has no say (as means of such folds, intervals of
balanced accuracy, sensitivity and Brier score held the truth in 84 to 91 % of 200 simulated studies)."""


@dataclass(frozen=True, slots=True)
class Figures:
    """AUROC of each approach, by how much the model's lies above each rival's, and tests of that; all by approach.

    adjusted: p values of the tests by Holm, over the rivals. further: the other figures by their names in FURTHER, of
    each approach; in_folds: the same of the model in each fold. calibration: of the model, for each class; with two
    classes of the second one alone.
    """

    auroc: dict[str, OverFolds]
    above: dict[str, OverFolds]
    tests: dict[str, PairedTests]
    adjusted: dict[str, PairedP]
    further: dict[str, dict[str, OverFolds]]
    in_folds: dict[str, list[float | None]]
    calibration: dict[str, Calibration]


@dataclass(frozen=True, slots=True)
class PairedTests:
    """Tests of one difference of AUROC (`bfp.metrics.paired`). delong: undefined with more than two classes."""

    delong: Test
    corrected_t: Test
    plain_t: Test


class PairedP(NamedTuple):
    """p values; None where undefined."""

    corrected_t: float | None
    delong: float | None


def figures_of(
    study: Study, judged: Mapping[str, Judged], *, class_names: Sequence[str], model: str, no_rivals: Sequence[str]
) -> Figures:
    """judged: by approach. model: the one in question; no_rivals: those that it is not compared with."""
    classes, folds, persons, seed = study.classes, study.folds, study.persons, study.seed
    ours = judged[model].probabilities
    rivals = {name: each.probabilities for name, each in judged.items() if name not in (model, *no_rivals)}

    def of_each(figure: Figure, folds: np.ndarray) -> dict[str, OverFolds]:
        return {
            name: over_folds(figure, each.classes, each.probabilities, folds=folds, subjects=persons, seed=seed)
            for name, each in judged.items()
        }

    above = {
        name: difference(weighted_auroc, classes, ours, theirs, folds=folds, subjects=persons, seed=seed)
        for name, theirs in rivals.items()
    }
    tests = {name: _tests(study, ours, rivals[name], found) for name, found in above.items()}
    named = list(enumerate(class_names))
    return Figures(
        auroc=of_each(weighted_auroc, folds),
        above=above,
        tests=tests,
        adjusted=_adjusted(tests),
        further={
            name: of_each(figure, folds if name in BY_FOLD else np.zeros_like(folds))
            for name, (_, figure) in FURTHER.items()
        },
        in_folds={
            name: over_folds(figure, classes, ours, folds=folds, subjects=persons, seed=seed, replicates=1).folds
            for name, (_, figure) in FURTHER.items()
        },
        calibration={
            name: calibration(classes == k, ours[:, k], subjects=persons, seed=seed)
            for k, name in (named[1:] if len(named) == 2 else named)
        },
    )


def _tests(study: Study, ours: np.ndarray, theirs: np.ndarray, found: OverFolds) -> PairedTests:
    of_heads = UNDEFINED
    if study.class_count == 2:
        of_heads = delong(study.classes == 1, ours[:, 1], theirs[:, 1], folds=study.folds, subjects=study.persons)
    return PairedTests(
        delong=of_heads,
        corrected_t=corrected_t(found.folds, folds=study.folds, least_error=standard_error(found.mean)),
        plain_t=plain_t(found.folds),
    )


def _adjusted(tests: Mapping[str, PairedTests]) -> dict[str, PairedP]:
    columns = (holm([getattr(each, name).p for each in tests.values()]) for name in PairedP._fields)
    return {name: PairedP(*p) for name, *p in zip(tests, *columns, strict=True)}


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
    for name, p in figures.adjusted.items():
        numbers |= {f"p_corrected_t_{name}": p.corrected_t}
        numbers |= {f"p_delong_{name}": p.delong} if len(figures.calibration) == 1 else {}
    return numbers
