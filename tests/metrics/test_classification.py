import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, f1_score, roc_curve

from bfp.metrics.calibration import calibration, slopes
from bfp.metrics.classification import average_precision, balanced_accuracy, brier, confusion_of, f1, sensitivity_at

ONCE = np.ones((1, 60))


def a_case(seed: int, *, count: int = 2, levels: int | None = None):
    """60 sessions of `count` classes, rows of probabilities (rounded to so many levels: ties)."""
    random = np.random.default_rng(seed)
    classes = np.r_[np.arange(count), random.integers(0, count, 60 - count)]
    odds = random.normal(size=(60, count)) + 1.2 * np.eye(count)[classes]
    probabilities = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    if levels:
        second = (probabilities[:, 1] * levels).round() / levels
        probabilities = np.stack([1 - second, second], axis=1)
    return classes, probabilities


def least_false_alarms(classes, scores):
    false, true, _ = roc_curve(classes, scores, drop_intermediate=False)
    return true[false <= 0.1 + 1e-12].max()


@pytest.mark.parametrize("levels", [None, 5], ids=["distinct", "ties"])
def test_two_classes_as_scikit_learn_has_them(levels):
    for seed in range(20):
        classes, probabilities = a_case(seed, levels=levels)
        said, second = probabilities.argmax(axis=1), probabilities[:, 1]
        for figure, expected in (
            (average_precision, average_precision_score(classes, second)),
            (balanced_accuracy, balanced_accuracy_score(classes, said)),
            (f1, f1_score(classes, said)),
            (sensitivity_at, least_false_alarms(classes, second)),
            (brier, brier_score_loss(classes, second)),
        ):
            assert figure(classes, probabilities, ONCE)[0] == pytest.approx(expected, abs=1e-12), figure.__name__


def test_several_classes_are_each_against_the_rest_averaged():
    for seed in range(20):
        classes, probabilities = a_case(seed, count=4)
        said, each = probabilities.argmax(axis=1), np.eye(4)[classes]
        for figure, expected in (
            (average_precision, average_precision_score(each, probabilities, average="macro")),
            (balanced_accuracy, balanced_accuracy_score(classes, said)),
            (f1, f1_score(classes, said, average="macro")),
            (sensitivity_at, np.mean([least_false_alarms(each[:, k], probabilities[:, k]) for k in range(4)])),
            (brier, ((probabilities - each) ** 2).sum(axis=1).mean()),
        ):
            assert figure(classes, probabilities, ONCE)[0] == pytest.approx(expected, abs=1e-12), figure.__name__


@pytest.mark.parametrize("figure", [average_precision, balanced_accuracy, f1, sensitivity_at, brier])
@pytest.mark.parametrize("count", [2, 3])
def test_a_weight_is_how_often_a_session_counts(figure, count):
    classes, probabilities = a_case(1, count=count, levels=20 if count == 2 else None)
    weights = np.random.default_rng(0).integers(0, 4, (5, 60)).astype(float)
    repeated = [np.repeat(np.arange(60), row.astype(int)) for row in weights]
    expected = [figure(classes[own], probabilities[own], np.ones((1, len(own))))[0] for own in repeated]
    assert figure(classes, probabilities, weights) == pytest.approx(np.array(expected), abs=1e-12)


def test_a_class_that_is_not_there_leaves_figures_undefined_and_the_brier_score_alone():
    classes, probabilities = np.zeros(60, int), a_case(2)[1]
    for figure in (average_precision, balanced_accuracy, f1, sensitivity_at):
        assert np.isnan(figure(classes, probabilities, ONCE)[0]), figure.__name__
    assert brier(classes, probabilities, ONCE)[0] == pytest.approx((probabilities[:, 1] ** 2).mean())
    assert np.isnan(brier(classes, probabilities, 0 * ONCE)[0])


def test_the_confusion_counts_what_was_taken_for_what():
    classes, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    assert confusion_of(classes, probabilities, np.array([[1.0, 2.0, 3.0]])).tolist() == [[[1, 2], [0, 3]]]


def test_the_slope_is_that_of_a_logistic_regression_on_log_odds():
    classes, probabilities = a_case(3)
    weights = np.random.default_rng(1).integers(0, 3, (4, 60)).astype(float)
    odds = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    fits = [LogisticRegression(C=np.inf, tol=1e-10).fit(odds, classes, sample_weight=row) for row in weights]
    assert slopes(classes == 1, probabilities[:, 1], weights) == pytest.approx(
        np.array([fit.coef_[0, 0] for fit in fits]), abs=1e-5
    )


def test_the_slope_of_classes_wholly_apart_is_undefined_and_no_number_however_large():
    apart = np.linspace(0.1, 0.9, 60)
    for positive, probability in ((apart > 0.5, apart), (apart > 2, apart), (apart > 0.5, np.full(60, 0.5))):
        assert np.isnan(slopes(positive, probability, ONCE)[0])


def test_calibration_tells_right_probabilities_from_extreme_and_from_high_ones():
    random = np.random.default_rng(5)
    true = random.beta(2, 2, 3000)
    positive, subjects = random.random(3000) < true, [f"s{n // 2}" for n in range(3000)]
    right = calibration(positive, true, subjects=subjects, seed=0)
    assert right.slope.low < 1 < right.slope.high
    assert right.in_the_large.low < 0 < right.in_the_large.high
    assert [bin.sessions for bin in right.curve] == [300] * 10
    assert sum(bin.seen.low <= bin.said <= bin.seen.high for bin in right.curve) >= 8
    odds = np.log(true / (1 - true))
    extreme = calibration(positive, 1 / (1 + np.exp(-3 * odds)), subjects=subjects, seed=0)
    assert extreme.slope.value == pytest.approx(right.slope.value / 3, rel=1e-3)  # none of them beyond 1e-6
    assert extreme.slope.high < 0.5
    high = calibration(positive, np.minimum(true + 0.1, 1), subjects=subjects, seed=0)
    assert high.in_the_large.low > 0.05


def test_few_sessions_make_few_bins():
    found = calibration(np.arange(45) % 2 == 0, np.linspace(0, 1, 45), subjects=[str(n) for n in range(45)], seed=0)
    assert [bin.sessions for bin in found.curve] == [23, 22]


def test_what_is_alike_in_a_whole_bin_has_no_interval_and_a_slope_that_is_hardly_one_has_no_ends():
    probability = np.linspace(0.01, 0.99, 60)
    positive = probability > 0.5
    positive[28:31] = ~positive[28:31]
    found = calibration(positive, probability, subjects=[str(n) for n in range(60)], seed=0)
    assert [(bin.seen.value, bin.seen.low) for bin in found.curve][::2] == [(0, None), (1, None)]
    assert found.curve[1].seen.low is not None
    assert found.slope.value > 1
    assert found.slope.high is None
