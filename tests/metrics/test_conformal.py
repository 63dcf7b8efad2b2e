"""Intervals around predicted numbers hold as many new subjects as they say."""

import numpy as np
import pytest

from bfp.finetuning.crossvalidation import Study, gather, run_fold
from bfp.finetuning.ridge import Ridge
from bfp.metrics.conformal import half_width


@pytest.mark.parametrize(("count", "expected"), [(8, None), (9, 9.0), (18, 18.0), (19, 18.0), (99, 90.0)])
def test_of_one_session_a_subject_it_is_the_published_order_statistic(count, expected):
    errors = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert half_width(errors, subjects=[str(n) for n in range(count)]) == expected


def test_a_subject_weighs_one_however_many_sessions_it_has():
    subjects = [str(n) for n in range(20)]
    errors = np.arange(1.0, 21)
    once = half_width(errors, subjects=subjects)
    assert half_width(np.repeat(errors, 3), subjects=list(np.repeat(subjects, 3))) == once
    crowded = half_width(np.concatenate([errors, np.full(99, 0.5)]), subjects=[*subjects, *["0"] * 99])
    assert crowded == once  # sessions of one subject alone would have halved it


def a_study(random, *, subjects, visits, length=5):
    """Ages that vectors tell, but for an error of which a subject's visits share most."""
    own = np.repeat(np.arange(subjects), random.integers(1, visits + 1, subjects) if visits > 1 else 1)
    vectors = random.normal(size=(subjects, length))[own] + 0.2 * random.normal(size=(len(own), length))
    shared, each = random.normal(0, 6, subjects)[own], random.normal(0, 2, len(own))
    return vectors, 60 + vectors @ np.linspace(3, 1, length) + shared + each, own


@pytest.mark.parametrize("visits", [1, 5])
def test_nine_of_ten_new_subjects_lie_within(visits):
    """Of 100 made studies, each with a cross-validation and 40 new subjects."""
    random, held = np.random.default_rng(visits), []
    for _ in range(100):
        vectors, ages, own = a_study(random, subjects=50, visits=visits)
        study = Study(Ridge(), ages, [str(n) for n in own], own % 5, [0.1], 0)
        judged = gather([run_fold(study, vectors, fold) for fold in range(5)], study)
        width = half_width(np.abs(judged.said[:, 0] - ages), subjects=study.persons)
        head, _ = study.fit(vectors, np.ones(len(ages), dtype=bool))
        fresh, truth, whose = a_study(random, subjects=40, visits=visits)
        inside = np.abs(study.learner.say(head, fresh)[:, 0] - truth) <= width
        held.append(np.mean([inside[whose == subject].mean() for subject in np.unique(whose)]))
    error = np.std(held) / np.sqrt(len(held))
    assert 0.9 - 3 * error < np.mean(held) < 0.94, np.mean(held)
