import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from bfp.metrics.regression import absolute_error, bias, correlation, explained


@pytest.fixture
def ages():
    random = np.random.default_rng(0)
    true = random.uniform(45, 90, 60)
    return true, (0.4 * true + 40 + random.normal(0, 5, 60))[:, None], random.integers(0, 4, (5, 60)).astype(float)


def test_figures_are_those_of_scikit_learn_and_numpy_for_each_set_of_weights(ages):
    true, said, weights = ages
    for row, own in enumerate(weights):
        drawn = np.repeat(np.arange(60), own.astype(int))  # what a bootstrap's weights mean
        t, s = true[drawn], said[drawn, 0]
        assert absolute_error(true, said, weights)[row] == pytest.approx(mean_absolute_error(t, s), abs=1e-12)
        assert explained(true, said, weights)[row] == pytest.approx(r2_score(t, s), abs=1e-12)
        assert correlation(true, said, weights)[row] == pytest.approx(np.corrcoef(t, s)[0, 1], abs=1e-12)
        assert bias(true, said, weights)[row] == pytest.approx(np.mean(s - t), abs=1e-12)


def test_large_numbers_cost_no_digits(ages):
    true, said, weights = ages
    for figure in (explained, correlation):
        np.testing.assert_allclose(figure(true + 1e7, said + 1e7, weights), figure(true, said, weights), rtol=1e-6)


def test_what_does_not_vary_leaves_r2_and_r_undefined():
    once, same = np.ones((1, 3)), np.full(3, 70.0)
    said = np.array([[60.0], [70.0], [80.0]])
    assert np.isnan(explained(same, said, once)).all()
    assert np.isnan(correlation(same, said, once)).all()
    assert np.isnan(correlation(said[:, 0], same[:, None], once)).all()
    assert absolute_error(same, said, once) == pytest.approx(20 / 3)
