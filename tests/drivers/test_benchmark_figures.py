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
    return Said(targets, np.stack([1 - one, one], axis=1), folds, [f"a/{n}" for n in range(SUBJECTS)] * SEEDS)


def test_a_row_is_the_mean_over_the_folds_of_all_seeds_and_its_test_is_corrected():
    ours, theirs = said_by(2.0, 1), said_by(0.5, 2)
    found = judge("classification", theirs, ours, 0.25, 0)
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
        np.tile(once.targets, 2), np.tile(once.said, (2, 1)), np.r_[once.folds, once.folds + FOLDS], once.subjects * 2
    )
    one, two = (judge("classification", own, None, None, 0).figure.mean for own in (once, twice))
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.05)


def test_an_outside_cohort_is_compared_by_its_interval_alone():
    found = judge("classification", said_by(0.5, 2), said_by(2.0, 1), None, 0)
    assert found.better.mean.low > 0
    assert found.p_corrected_t is found.p_plain_t is None


def test_what_is_judged_comes_back_from_its_file():
    found = judge("classification", said_by(0.5, 2), said_by(2.0, 1), 0.25, 0)
    assert load_judged(dump_judged(found)) == found
    alone = judge("classification", said_by(0.5, 2), None, None, 0)
    assert load_judged(dump_judged(alone)) == alone


def rows():
    ours, theirs = said_by(2.0, 1), said_by(0.5, 2)
    made = []
    for task in ("diagnosis", "sex"):
        for approach, own, rival in (("theirs", theirs, ours), ("also", theirs, ours), ("ours", ours, None)):
            judged = judge("classification", own, rival, 0.25 if rival else None, 0)
            made.append(Row(Where(task, "", "T1w", "T1w", 1.0, approach), "classification", 60, 60, 48.0, judged))
    return made


def test_p_values_are_adjusted_over_the_rows_of_each_task():
    found = adjusted(rows())
    raw = [row.judged.p_corrected_t for row in found]
    assert [row.p_holm for row in found] == pytest.approx([2 * raw[0], 2 * raw[1], None, 2 * raw[3], 2 * raw[4], None])


def test_the_table_holds_every_digit_and_the_one_for_people_few():
    found = adjusted(rows())
    read = list(csv.DictReader(io.StringIO(results_csv(found).decode())))
    assert [float(row["value"]) for row in read] == [row.judged.figure.mean.value for row in found]
    assert read[2]["ours_better_by"] == read[2]["p_holm"] == ""
    text = results_markdown(found, ours="ours").decode()
    assert "## diagnosis" in text
    assert "| cross-validation | T1w | T1w | 100% (48) | ours |" in text
