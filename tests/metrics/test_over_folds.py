"""Figures that are means over sessions; those of single folds: test_auroc."""

import numpy as np
import pytest

from bfp.metrics.measures import MEASURES
from bfp.metrics.over_folds import difference, over_folds
from bfp.metrics.segmentation import DICE, HD95_MM, mean_difference, mean_over_sessions

SUBJECTS = [f"s{number // 2}" for number in range(22)]
FOLDS = np.arange(22) // 2 % 4
OURS, THEIRS = (np.random.default_rng(seed).beta(4, 2, size=(22, 3)) for seed in (0, 1))
OURS[3, 0] = OURS[5, 1] = THEIRS[7, 0] = np.nan
"""Rows of one class: Dice, HD95, false alarms."""


def listed(values):
    return [None if np.isnan(value) else float(value) for value in values]


def test_dice_and_its_interval_are_the_same_in_a_benchmark_and_in_a_fine_tuning():
    measures, truth = MEASURES["segmentation"], np.zeros(22)
    for column, (measure, within) in enumerate([(measures.first, DICE), (measures.further[0], HD95_MM)]):
        found = over_folds(measure.figure, truth, OURS, folds=FOLDS, subjects=SUBJECTS, seed=0)
        own = listed(OURS[:, column])
        assert found.mean == mean_over_sessions(own, subjects=SUBJECTS, seed=0, within=within)
        assert found.defined == 21
        assert found.folds == pytest.approx([np.nanmean(OURS[fold == FOLDS, column]) for fold in range(4)])
    found = difference(measures.first.figure, truth, OURS, THEIRS, folds=FOLDS, subjects=SUBJECTS, seed=0)
    ours, theirs = listed(OURS[:, 0]), listed(THEIRS[:, 0])
    assert found.mean == mean_difference(ours, theirs, subjects=SUBJECTS, seed=0, within=DICE)


def test_a_difference_of_dice_is_paired_and_lies_between_minus_one_and_one():
    own, other = np.array([[0.9, 3, np.nan], [np.nan, 3, 0]]), np.array([[0.2, 5, np.nan], [0.1, 5, np.nan]])
    once = {"folds": np.array([0, 1]), "subjects": ["a", "b"], "seed": 0}
    found = difference(MEASURES["segmentation"].first.figure, np.zeros(2), own, other, **once)
    assert found.mean == (pytest.approx(0.7), None, None)
    assert found.folds == [pytest.approx(0.7), None]
    own[1, 0] = 0.9
    found = difference(MEASURES["segmentation"].first.figure, np.zeros(2), own, other, **once)
    assert found.mean == pytest.approx((0.75, 0.11469, 1.0), abs=1e-5)
    assert mean_difference([0.9, 0.9], [0.2, 0.1], subjects=["a", "b"], seed=0, within=DICE) == found.mean
