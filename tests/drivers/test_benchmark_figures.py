import csv
import io

import numpy as np
import pytest
from scipy.stats import ttest_rel

from bfp.drivers.benchmark_figures import (
    Row,
    Said,
    Where,
    adjusted,
    dump_judged,
    judge,
    load_judged,
    results_csv,
    results_markdown,
)
from bfp.metrics.auroc import auroc

SUBJECTS, FOLDS, SEEDS = 60, 5, 2


def said_by(signal, seed):
    """What heads said over two deals of the same subjects."""
    random, classes = np.random.default_rng(seed), np.arange(SUBJECTS) % 2
    deals = [np.random.default_rng(deal).permutation(SUBJECTS) % FOLDS for deal in range(SEEDS)]
    folds = np.concatenate([own + deal * FOLDS for deal, own in enumerate(deals)])
    targets = np.tile(classes, SEEDS)
    one = 1 / (1 + np.exp(-random.normal(size=len(targets)) - signal * (targets - 0.5)))
    subjects = [f"a/{n}" for n in range(SUBJECTS)] * SEEDS
    return Said(targets, np.stack([1 - one, one], axis=1), folds, np.repeat(np.arange(SEEDS), SUBJECTS), subjects)


def test_a_row_is_the_mean_over_the_folds_of_all_seeds_and_its_test_is_corrected():
    ours, theirs = said_by(2.0, 1), said_by(0.5, 2)
    found = judge("classification", [], theirs, ours, 0.25, 0)
    by_fold = [
        [auroc(own.targets[own.folds == fold], own.said[own.folds == fold]) for fold in range(FOLDS * SEEDS)]
        for own in (ours, theirs)
    ]
    assert found.figure.folds == pytest.approx(by_fold[1])
    assert found.better.mean.value == pytest.approx(np.mean(by_fold[0]) - np.mean(by_fold[1]))
    assert found.p_plain_t == pytest.approx(ttest_rel(*by_fold).pvalue)
    assert found.p_plain_t < found.p_corrected_t < 0.05


def test_judging_the_same_subjects_twice_does_not_make_an_interval_of_twice_as_many():
    once = Said(*(part[:SUBJECTS] for part in said_by(1.0, 3)))
    twice = Said(
        np.tile(once.targets, 2),
        np.tile(once.said, (2, 1)),
        np.r_[once.folds, once.folds + FOLDS],
        np.r_[once.rounds, once.rounds + 1],
        once.subjects * 2,
    )
    one, two = (judge("classification", [], own, None, None, 0) for own in (once, twice))
    for least, most in [(one.figure, two.figure), (one.further["brier"], two.further["brier"])]:
        assert most.mean.high - most.mean.low == pytest.approx(least.mean.high - least.mean.low, rel=0.05)


def test_further_figures_are_of_all_sessions_of_a_seed_where_a_fold_has_no_say():
    own = said_by(1.0, 3)
    found = judge("classification", [], own, None, None, 0).further
    by_seed = [np.mean((own.said[own.rounds == seed, 1] - own.targets[own.rounds == seed]) ** 2) for seed in (0, 1)]
    assert found["brier"].folds == pytest.approx(by_seed)
    assert len(found["average_precision"].folds) == FOLDS * SEEDS


def test_an_outside_cohort_is_compared_by_its_interval_alone():
    found = judge("classification", [], said_by(0.5, 2), said_by(2.0, 1), None, 0)
    assert found.better.mean.low > 0
    assert found.p_corrected_t is found.p_plain_t is None


def overlapping(dice, hd95_mm, alarms):
    """Of six sessions of as many subjects in two folds."""
    folds = np.arange(6) % 2
    rows = np.array([dice, hd95_mm, alarms], dtype=float).T
    return Said(np.zeros(6), rows, folds, np.zeros(6, int), list("abcdef"))


N = None


def test_a_segmentation_is_compared_where_something_was_drawn_and_says_in_how_many_sessions_that_is():
    """Ours says nothing where there is nothing, theirs a voxel: neither is better for it."""
    ours = overlapping([0.5, 0.6, 0.4, 0.0, N, N], [3, 4, 5, N, N, N], [N, N, N, N, 0, 0])
    theirs = overlapping([0.6, 0.7, 0.5, 0.1, N, N], [3, 4, 5, 6, N, N], [N, N, N, N, 1, 1])
    found = judge("segmentation", ["lesion"], theirs, ours, 1.0, 0)
    assert found.better.mean.value == pytest.approx(-0.1)
    row = Row(Where("lesion", "", "T1w", "T1w", 1.0, "theirs"), "segmentation", 6, 6, 3.0, found)
    told = {each["measure"]: each for each in csv.DictReader(io.StringIO(results_csv([row]).decode()))}
    assert {name: (each["value"], each["defined_sessions"]) for name, each in told.items()} == {
        "dice": ("0.475", "4.0"),
        "hd95_mm": ("4.5", "4.0"),
        "dice_lesion": ("0.475", "4.0"),
        "false_alarms_lesion": ("1.0", "2.0"),
    }
    assert "| theirs | 0.47 [0.06, 0.89] | 4 of 6 |" in results_markdown([row], ours="ours").decode()
    own = judge("segmentation", ["lesion"], ours, None, None, 0)
    assert (own.further["hd95_mm"].defined, own.further["false_alarms_lesion"].mean.value) == (3, 0.0)


def test_what_is_judged_comes_back_from_its_file():
    found = judge("classification", [], said_by(0.5, 2), said_by(2.0, 1), 0.25, 0)
    assert load_judged(dump_judged(found)) == found
    alone = judge("classification", [], said_by(0.5, 2), None, None, 0)
    assert load_judged(dump_judged(alone)) == alone


def rows():
    ours, theirs = said_by(2.0, 1), said_by(0.5, 2)
    made = []
    for task in ("diagnosis", "sex"):
        for approach, own, rival in (("theirs", theirs, ours), ("also", theirs, ours), ("ours", ours, None)):
            judged = judge("classification", [], own, rival, 0.25 if rival else None, 0)
            made.append(Row(Where(task, "", "T1w", "T1w", 1.0, approach), "classification", 60, 60, 48.0, judged))
    return made


def test_p_values_are_adjusted_over_the_rows_of_each_task():
    found = adjusted(rows())
    raw = [row.judged.p_corrected_t for row in found]
    assert [row.p_holm for row in found] == pytest.approx([2 * raw[0], 2 * raw[1], None, 2 * raw[3], 2 * raw[4], None])


def test_the_table_holds_every_digit_and_the_one_for_people_few():
    found = adjusted(rows())
    read = list(csv.DictReader(io.StringIO(results_csv(found).decode())))
    first = [row for row in read if row["measure"] == "auroc"]
    assert [float(row["value"]) for row in first] == [row.judged.figure.mean.value for row in found]
    assert first[2]["ours_better_by"] == first[2]["p_holm"] == ""
    brier = [row for row in read if row["measure"] == "brier"]
    assert [float(row["low"]) for row in brier] == [row.judged.further["brier"].mean.low for row in found]
    assert {row["p_holm"] for row in brier} == {""}
    text = results_markdown(found, ours="ours").decode()
    assert "## diagnosis" in text
    assert "| cross-validation | T1w | T1w | 100% (48) | ours |" in text
