"""The figures of a fine-tuning: how good each approach is, and by how much the model is better than its rivals.

For machines, `first` being what the task is judged by (`bfp.metrics.measures`: auroc, mae, c_index): `<first>` of the
model, `<first>_<approach>` of each baseline, and `above_<approach>`, by how much the model lies above it (`below_…`
where less is better); the model's further figures, and of a regression `r2_<approach>`, which says whether anything is
told; of a classification of two classes `calibration_slope` and
`calibration_in_the_large`; each with `_low` and `_high`, the ends of the 95 % interval. `p_corrected_t_<approach>` and,
with two classes, `p_delong_<approach>` are of the difference, as adjusted by Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.bootstrap import Interval, standard_error
from bfp.metrics.calibration import Calibration, calibration
from bfp.metrics.measures import Measure, Measures
from bfp.metrics.over_folds import OverFolds, difference, over_folds
from bfp.metrics.paired import UNDEFINED, Test, corrected_t, delong, holm, plain_t, tested_beside


@dataclass(frozen=True, slots=True)
class Figures:
    """What the task is judged by, of each approach; by how much the model is better than each rival, and tests of that;
    all by approach.

    better: larger is better, whatever the measure. adjusted: p values of the tests by Holm, over the rivals. further:
    the other figures by their names, of each approach; in_folds: the same of the model in each fold. calibration: of a
    classifier, for each class; with two classes of the second one alone.
    """

    first: dict[str, OverFolds]
    better: dict[str, OverFolds]
    tests: dict[str, PairedTests]
    adjusted: dict[str, PairedP]
    further: dict[str, dict[str, OverFolds]]
    in_folds: dict[str, list[float | None]]
    calibration: dict[str, Calibration]


@dataclass(frozen=True, slots=True)
class PairedTests:
    """Tests of one difference (`bfp.metrics.paired`). delong: defined for AUROCs of two classes."""

    delong: Test
    corrected_t: Test
    plain_t: Test


class PairedP(NamedTuple):
    """p values; None where undefined."""

    corrected_t: float | None
    delong: float | None


def figures_of(
    study: Study,
    judged: Mapping[str, Judged],
    *,
    measures: Measures,
    class_names: Sequence[str],
    model: str,
    no_rivals: Sequence[str],
) -> Figures:
    """judged: by approach. class_names: of a classification, else none. model: the one in question; no_rivals: those
    that it is not compared with."""
    ours = judged[model].said
    rivals = {name: each.said for name, each in judged.items() if name not in (model, *no_rivals)}
    persons, seed = study.persons, study.seed

    def of_each(measure: Measure) -> dict[str, OverFolds]:
        folds = study.folds if measure.by_fold else np.zeros_like(study.folds)
        return {
            name: over_folds(measure.figure, each.targets, each.said, folds=folds, subjects=persons, seed=seed)
            for name, each in judged.items()
        }

    better = {
        name: better_than(measures, study.targets, ours, theirs, folds=study.folds, subjects=persons, seed=seed)
        for name, theirs in rivals.items()
    }
    two = len(class_names) == 2
    tests = {name: _tests(study, ours, rivals[name], found, two=two) for name, found in better.items()}
    named = list(enumerate(class_names))
    return Figures(
        first=of_each(measures.first),
        better=better,
        tests=tests,
        adjusted=_adjusted(tests),
        further={measure.name: of_each(measure) for measure in measures.further},
        in_folds={
            measure.name: over_folds(
                measure.figure, study.targets, ours, folds=study.folds, replicates=1, subjects=persons, seed=seed
            ).folds
            for measure in measures.further
        },
        calibration={
            name: calibration(study.targets == k, ours[:, k], subjects=persons, seed=seed)
            for k, name in (named[1:] if two else named)
        },
    )


def better_than(
    measures: Measures,
    targets: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    folds: np.ndarray,
    subjects: Sequence[str],
    seed: int,
) -> OverFolds:
    """By how much what we say is better than what they do: above 0 is in our favour."""
    found = difference(measures.first.figure, targets, ours, theirs, folds=folds, subjects=subjects, seed=seed)
    if measures.sign > 0:
        return found
    value, low, high = (None if end is None else -end for end in found.mean)
    turned = [None if each is None else -each for each in found.folds]
    return replace(found, mean=Interval(value, high, low), folds=turned)


def _tests(study: Study, ours: np.ndarray, theirs: np.ndarray, found: OverFolds, *, two: bool) -> PairedTests:
    of_heads = UNDEFINED
    if two:
        of_heads = delong(study.targets == 1, ours[:, 1], theirs[:, 1], folds=study.folds, subjects=study.persons)
    return PairedTests(
        delong=of_heads,
        corrected_t=corrected_t(found.folds, beside=tested_beside(study.folds), least_error=standard_error(found.mean)),
        plain_t=plain_t(found.folds),
    )


def _adjusted(tests: Mapping[str, PairedTests]) -> dict[str, PairedP]:
    columns = (holm([getattr(each, name).p for each in tests.values()]) for name in PairedP._fields)
    return {name: PairedP(*p) for name, *p in zip(tests, *columns, strict=True)}


def numbers_of(figures: Figures, *, measures: Measures, model: str) -> dict[str, float | None]:
    """For machines, by the names that the top of this file tells."""
    first = measures.first.name
    named = {first if name == model else f"{first}_{name}": each for name, each in figures.first.items()}
    named |= {f"{measures.compared}_{name}": each for name, each in figures.better.items()}
    named |= {name: each[model] for name, each in figures.further.items()}
    if measures.telling and (telling := measures.telling[0].name) != first:
        named |= {f"{telling}_{name}": each for name, each in figures.further[telling].items() if name != model}
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
