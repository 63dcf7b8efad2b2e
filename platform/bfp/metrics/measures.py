"""What a task is judged by: the figure that its tables lead with, and those beside it.

    classification   AUROC          average precision, balanced accuracy, F1, sensitivity at 90 % specificity, Brier
    regression       mean error     R², Pearson's r, bias
    survival         concordance
    segmentation     Dice           HD95; of each class its Dice, and the share of false alarms

A figure that orders sessions is the mean of the folds', whose heads differ and are not compared; a decision, a
probability and a number mean the same in every fold, and are judged on all sessions at once: at a specificity of 90 % a
fold of twelve has no say (as means of such folds, intervals of balanced accuracy, sensitivity and Brier score held the
truth in 84 to 91 % of 200 simulated studies), and a fold's R² hangs on how its few ages are spread. The absolute error
is the same either way, but for the folds' sizes, and as their mean it has folds to test. Dice and HD95 are means over
all sessions, whatever the fold, and have folds to test too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.classification import SPECIFICITY, average_precision, balanced_accuracy, brier, f1, sensitivity_at
from bfp.metrics.over_folds import Figure, MeanOverSessions
from bfp.metrics.regression import absolute_error, bias, correlation, explained
from bfp.metrics.segmentation import dice_of, false_alarms_of, mean_dice, mean_hd95_mm
from bfp.metrics.survival import concordance

FALSE_ALARMS = "false_alarms_"
"""Before the name of a class: the share of sessions with a mask, of those in which nothing of it was drawn."""


class Measure(NamedTuple):
    """name: for machines; label: for people; by_fold: whether it is the mean of folds."""

    name: str
    label: str
    figure: Figure
    by_fold: bool = False

    @property
    def averaged(self) -> str:
        """Over what its mean is taken, where it is one of folds."""
        return "mean over sessions" if isinstance(self.figure, MeanOverSessions) else "mean of folds"


class Measures(NamedTuple):
    """first: what approaches are compared by; sign: 1 where more of it is better, -1 where less is; further: what is
    told beside it; chance: its value where nothing is told, None where that depends on the sessions. telling: the first
    of all of them that has such a value, and that: whether anything is told at all; None where none has."""

    first: Measure
    sign: int
    further: tuple[Measure, ...]
    chance: float | None

    @property
    def telling(self) -> tuple[Measure, float] | None:
        if self.chance is not None:
            return self.first, self.chance
        return (R2, 0.0) if R2 in self.further else None

    @property
    def compared(self) -> str:
        """How a difference in favour is called."""
        return "above" if self.sign > 0 else "below"


R2 = Measure("r2", "R²", explained)

MEASURES = {
    "classification": Measures(
        Measure("auroc", "AUROC", weighted_auroc, by_fold=True),
        1,
        (
            Measure("average_precision", "average precision", average_precision, by_fold=True),
            Measure("balanced_accuracy", "balanced accuracy", balanced_accuracy),
            Measure("f1", "F1", f1),
            Measure("sensitivity", f"sensitivity at {SPECIFICITY:.0%} specificity", sensitivity_at),
            Measure("brier", "Brier score", brier),
        ),
        0.5,
    ),
    "regression": Measures(
        Measure("mae", "mean absolute error", absolute_error, by_fold=True),
        -1,
        (
            R2,
            Measure("correlation", "Pearson's r", correlation),
            Measure("bias", "bias", bias),
        ),
        None,
    ),
    "survival": Measures(Measure("c_index", "concordance", concordance, by_fold=True), 1, (), 0.5),
    "segmentation": Measures(
        Measure("dice", "Dice", mean_dice, by_fold=True),
        1,
        (Measure("hd95_mm", "HD95 (mm)", mean_hd95_mm, by_fold=True),),
        None,
    ),
}
"""By the type of the task."""


def of_each_class(classes: Sequence[str]) -> list[Measure]:
    """Further ones of a segmentation."""
    return [
        measure
        for k, name in enumerate(classes)
        for measure in (
            Measure(f"dice_{name}", f"Dice of {name}", dice_of(k), by_fold=True),
            Measure(f"{FALSE_ALARMS}{name}", f"false alarms of {name}", false_alarms_of(k), by_fold=True),
        )
    ]
