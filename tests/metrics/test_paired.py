import numpy as np
import pauc
import pytest
from scipy.stats import ttest_rel

from bfp.metrics import paired
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.bootstrap import standard_error
from bfp.metrics.over_folds import difference
from bfp.metrics.paired import UNDEFINED, corrected_t, delong, holm, plain_t
from tests.metrics.test_auroc import as_probabilities


def a_case(seed: int, *, sessions: int = 80):
    random = np.random.default_rng(seed)
    positive = random.random(sessions) < 0.4
    shared = random.normal(size=sessions) + positive
    ours, theirs = (np.round(shared + random.normal(size=sessions), 1) for _ in range(2))  # ties
    return positive, ours, theirs


def test_with_a_session_a_subject_and_one_fold_it_is_delongs_test():
    for seed in range(20):
        positive, ours, theirs = a_case(seed)
        one = np.zeros(80, int)
        found = delong(positive, ours, theirs, folds=one, subjects=[str(n) for n in range(80)])
        rocs = [pauc.ROC(positive.astype(int), scores, direction="<") for scores in (ours, theirs)]
        expected = pauc.compare(*rocs, method="delong", paired=True)
        assert found.difference == pytest.approx(expected.estimate, abs=1e-9)
        assert found.difference / found.error == pytest.approx(expected.stat, abs=1e-9)
        assert found.p == pytest.approx(expected.p_value, abs=1e-9)


def test_folds_are_averaged_and_their_variances_add_up():
    parts = [a_case(seed) for seed in (1, 2, 3)]
    alone = [delong(*part, folds=np.zeros(80, int), subjects=[str(n) for n in range(80)]) for part in parts]
    positive, ours, theirs = (np.concatenate(own) for own in zip(*parts, strict=True))
    found = delong(positive, ours, theirs, folds=np.repeat([0, 1, 2], 80), subjects=[str(n) for n in range(240)])
    assert found.difference == pytest.approx(np.mean([each.difference for each in alone]))
    assert found.error == pytest.approx(np.sqrt(sum(each.error**2 for each in alone)) / 3)


def test_the_same_session_twice_makes_nothing_surer():
    positive, ours, theirs = a_case(4)
    once = delong(positive, ours, theirs, folds=np.zeros(80, int), subjects=[str(n) for n in range(80)])
    twice = delong(
        *(np.repeat(values, 2) for values in (positive, ours, theirs)),
        folds=np.zeros(160, int),
        subjects=[str(n // 2) for n in range(160)],
    )
    assert twice == pytest.approx(once)


def test_people_who_fall_ill_between_two_visits_are_in_both_classes_and_count_once():
    random = np.random.default_rng(8)
    whose = np.repeat(np.arange(200), 2)
    ill = np.arange(400) % 2 == 1
    own = random.normal(size=(200, 2))[whose]  # what each model makes of a person
    ours, theirs = (ill[:, None] + 2 * own + random.normal(size=(400, 2))).T
    found = delong(ill, ours, theirs, folds=np.zeros(400, int), subjects=[str(n) for n in whose])
    pair = [as_probabilities(1 / (1 + np.exp(-scores))) for scores in (ours, theirs)]
    drawn = difference(
        weighted_auroc, ill.astype(int), *pair, folds=np.zeros(400, int), subjects=[str(n) for n in whose], seed=0
    )
    assert found.difference == pytest.approx(drawn.mean.value)
    assert found.error == pytest.approx(standard_error(drawn.mean), rel=0.1)


def test_a_fold_of_one_class_is_left_out_and_a_single_subject_of_one_leaves_nothing_to_test():
    positive, ours, theirs = a_case(5)
    subjects = [str(n) for n in range(80)]
    whole = delong(positive, ours, theirs, folds=np.zeros(80, int), subjects=subjects)
    folds, with_more = np.r_[np.zeros(80, int), 1, 1, 1], [*subjects, "a", "b", "c"]

    def with_a_fold(classes):
        added = ((positive, classes), (ours, [1, 2, 3]), (theirs, [3, 2, 1]))
        return delong(*(np.r_[values, more] for values, more in added), folds=folds, subjects=with_more)

    assert with_a_fold([False, False, False]) == whole
    assert with_a_fold([True, True, False]) == UNDEFINED


def test_a_difference_without_any_variance_has_no_p():
    positive = np.array([True, True, False, False] * 2)
    perfect, nothing = positive.astype(float), np.zeros(8)
    found = delong(positive, perfect, nothing, folds=np.repeat([0, 1], 4), subjects=[str(n) for n in range(8)])
    assert found.difference == 0.5
    assert found.p is None
    assert plain_t([0.5, 0.5]).p is None


def test_equal_scores_differ_by_nothing():
    positive, ours, _ = a_case(6)
    found = delong(positive, ours, ours, folds=np.zeros(80, int), subjects=[str(n) for n in range(80)])
    assert found == (0, 0, 1)


def test_the_plain_t_is_scipys_and_the_corrected_one_is_wider_by_what_training_sets_share():
    ours, theirs = np.random.default_rng(7).random((2, 5))
    folds = np.repeat(np.arange(5), 12)
    differences = list(ours - theirs)
    beside = paired.tested_beside(folds)
    plain, corrected = plain_t(differences), corrected_t(differences, beside=beside, least_error=0.01)
    assert plain.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert corrected.error / plain.error == pytest.approx(np.sqrt((1 / 5 + 1 / 4) / (1 / 5)))
    assert corrected.p > plain.p
    assert corrected_t(differences, beside=beside, least_error=9.0).error == 9
    unequal = np.repeat(np.arange(5), [40, 5, 5, 5, 5])
    assert corrected_t(differences, beside=paired.tested_beside(unequal), least_error=None).error > corrected.error
    assert plain_t([*differences, None]) == plain
    assert plain_t([0.1, None]) == UNDEFINED


def test_holm_adjusts_for_the_tests_of_a_table_and_keeps_their_order():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
