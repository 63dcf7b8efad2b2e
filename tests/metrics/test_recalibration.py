import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from bfp.metrics.classification import sensitivity_at
from bfp.metrics.recalibration import platt, recalibration_of, temperature, threshold_of
from bfp.models.recalibration import Platt, Temperature


def too_sure(count, *, seed=0, slope=0.4, intercept=-0.5):
    """Classes, and the log odds of a model whose right ones are slope · odds + intercept."""
    random = np.random.default_rng(seed)
    odds = random.normal(scale=4, size=count)
    return random.random(count) < expit(slope * odds + intercept), odds


def test_a_model_that_is_too_sure_is_drawn_back_to_what_was_seen():
    positive, odds = too_sure(20_000)
    found = platt(positive, odds)
    assert (found.slope, found.intercept) == (pytest.approx(0.4, abs=0.02), pytest.approx(-0.5, abs=0.05))
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], positive)
    assert found.slope == pytest.approx(theirs.coef_[0, 0], abs=1e-3)
    assert found.intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_recalibrated_probabilities_are_seen_on_new_sessions_as_often_as_they_say():
    positive, odds = too_sure(400)
    said = np.stack([expit(-odds), expit(odds)], axis=1)
    new, new_odds = too_sure(20_000, seed=1)
    both = np.stack([expit(-new_odds), expit(new_odds)], axis=1)
    recalibrated = recalibration_of(positive.astype(int), said)(both)[:, 1]
    high = recalibrated > 0.7
    assert abs(new[high].mean() - recalibrated[high].mean()) < 0.05
    assert abs(new[high].mean() - both[high, 1].mean()) > 0.1


def test_an_order_is_never_turned_round():
    positive, odds = too_sure(500)
    found = platt(positive, -odds)
    assert found.slope == 0
    assert expit(found.intercept) == pytest.approx(positive.mean(), abs=0.01)


@pytest.mark.parametrize("gap", [0.0, 1e-3, 50.0])
def test_classes_that_are_wholly_apart_give_finite_probabilities_inside_0_and_1(gap):
    positive = np.arange(20) >= 10
    found = platt(positive, np.where(positive, gap, -gap))
    said = found(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]))
    assert np.isfinite(said).all()
    if gap:
        at = expit(found.slope * gap + found.intercept)
        assert at == pytest.approx(11 / 12, abs=1e-3)


def test_more_classes_have_one_temperature():
    random = np.random.default_rng(0)
    right = random.normal(scale=2, size=(20_000, 3))
    classes = np.array([random.choice(3, p=row) for row in softmax(right, axis=1)])
    assert temperature(classes, 3 * right).temperature == pytest.approx(3, rel=0.05)
    said = recalibration_of(classes, softmax(3 * right, axis=1))
    assert isinstance(said, Temperature)
    np.testing.assert_allclose(said(softmax(3 * right, axis=1)).sum(axis=1), 1)
    assert (said(softmax(3 * right, axis=1)).argmax(axis=1) == right.argmax(axis=1)).all()


def test_the_threshold_is_the_one_of_the_figure_sensitivity_at_90_percent_specificity():
    random = np.random.default_rng(0)
    for _ in range(50):
        positive = random.random(60) < 0.4
        scores = (random.normal(size=60) + positive).round(1)  # with ties
        found = threshold_of(positive, scores)
        called = scores >= found.probability
        assert (~called[~positive]).mean() == pytest.approx(found.specificity)
        assert found.specificity >= 0.9
        probabilities = np.stack([-scores, scores], axis=1)
        expected = sensitivity_at(positive.astype(int), probabilities, np.ones((1, 60)))[0]
        assert called[positive].mean() == pytest.approx(found.sensitivity) == pytest.approx(expected)


def test_where_no_threshold_keeps_the_specificity_nobody_is_called_positive():
    found = threshold_of(np.array([True, False, False]), np.array([0.5, 0.5, 0.5]))
    assert (found.specificity, found.sensitivity) == (1, 0)
    assert found.probability > 0.5


def test_what_is_kept_of_two_classes_is_their_slope_and_intercept():
    assert isinstance(recalibration_of(np.array([0, 1, 1]), np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])), Platt)
