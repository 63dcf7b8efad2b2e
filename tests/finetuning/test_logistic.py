import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bfp.finetuning.heads import fit_head
from bfp.finetuning.logistic import Logistic


def sessions(random, *, count, length, signal, classes=2):
    whose = np.arange(count)
    truth = whose % classes
    vectors = random.normal(size=(count, length)) * random.uniform(0.1, 10, length) + 3
    vectors[:, 0] += signal * truth
    return vectors, truth, [f"s{n}" for n in whose]


def fit(vectors, truth, persons, strengths=(0.01,), classes=2):
    return fit_head(Logistic(classes), vectors, truth, persons=persons, strengths=list(strengths), seed=0)


@pytest.mark.parametrize(("length", "classes"), [(5, 2), (300, 2), (300, 3)])
def test_the_head_is_the_logistic_regression_of_scikit_learn(length, classes):
    vectors, truth, persons = sessions(np.random.default_rng(0), count=60, length=length, signal=5, classes=classes)
    head = fit(vectors, truth, persons, classes=classes).head
    scaler = StandardScaler().fit(vectors)
    model = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(scaler.transform(vectors), truth)
    np.testing.assert_allclose(head.probabilities(vectors), model.predict_proba(scaler.transform(vectors)), atol=2e-4)


def test_a_signal_below_a_large_nuisance_asks_for_weaker_regularisation():
    random = np.random.default_rng(1)
    _, truth, persons = sessions(random, count=120, length=1, signal=0)
    nuisance = random.normal(size=(120, 1)) + 0.3 * random.normal(size=(120, 200))
    signal = 3 * (truth - 0.5)[:, None] + random.normal(size=(120, 2))
    assert fit(np.hstack([nuisance, signal]), truth, persons, (1e-5, 1e-1)).strength == 1e-1


def test_of_strengths_that_rank_alike_the_best_calibrated_is_taken():
    vectors, truth, persons = sessions(np.random.default_rng(2), count=200, length=1, signal=10)
    assert fit(vectors, truth, persons, (1e-4, 1.0, 1e-2)).strength == 1.0


def test_what_a_session_lacks_counts_as_the_training_mean():
    vectors, truth, persons = sessions(np.random.default_rng(2), count=60, length=5, signal=5)
    vectors[::7, 1] = np.nan
    vectors[:, 2] = np.nan
    vectors[:, 3] = 8.0
    head = fit(vectors, truth, persons).head
    with_mean = np.where(np.isfinite(vectors), vectors, np.nanmean(vectors[:, [0, 1, 1, 3, 4]], axis=0))
    np.testing.assert_allclose(head.probabilities(vectors), head.probabilities(with_mean))
    with_mean[:, 3] = -5.0
    np.testing.assert_allclose(head.probabilities(vectors), head.probabilities(with_mean))


def test_a_class_with_one_subject_leaves_nothing_to_choose_by_and_the_most_cautious_is_taken():
    vectors, truth, persons = sessions(np.random.default_rng(3), count=10, length=3, signal=5)
    truth = np.r_[1, np.zeros(9, int)]
    assert fit(vectors, truth, persons, (1.0, 0.1)).strength == 0.1
