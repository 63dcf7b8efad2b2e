import numpy as np

from tests.campaigns.statistics import OF_SESSIONS, OF_SUBJECTS, OURS, designed, findings, intervals


def test_a_study_has_each_class_in_each_fold_and_a_subject_in_one():
    design = designed(np.random.default_rng(0), subjects=60)
    for fold in range(5):
        assert set(design.classes[design.folds == fold]) == {0, 1}
    for person in np.unique(design.whose):
        assert len(set(design.folds[design.whose == person])) == 1


def test_intervals_over_sessions_are_narrower_than_they_may_be():
    found = [intervals(seed, 60) for seed in range(6)]
    for name in {name for name, _ in found[0]}:
        ours, naive = (
            np.mean([each[name, way].high - each[name, way].low for each in found])
            for way in (OF_SUBJECTS, OF_SESSIONS)
        )
        assert ours > 1.05 * naive


def test_what_a_study_finds_is_told_by_its_kind():
    assert {kind for seed in range(12) for kind, _ in findings(seed, 60)} <= set(OURS)
