import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from bfp.finetuning.heads import fit_head
from bfp.finetuning.ridge import Ridge


def ages(length, count=60, signal=8.0):
    random = np.random.default_rng(0)
    years = random.uniform(45, 90, count)
    vectors = random.normal(size=(count, length)) * random.uniform(0.1, 10, length) + 3
    vectors[:, 0] += signal * (years - 67) / 13
    return vectors, years, [f"s{n}" for n in range(count)]


@pytest.mark.parametrize("length", [5, 300])
def test_the_head_is_the_ridge_regression_of_scikit_learn_in_the_unit_of_the_number(length):
    vectors, years, _ = ages(length)
    (head,) = Ridge().fit(vectors, years, [0.01])
    x, deviation = StandardScaler().fit_transform(vectors), years.std()
    model = SklearnRidge(alpha=100).fit(x, years / deviation)
    np.testing.assert_allclose(Ridge().say(head, vectors)[:, 0], deviation * model.predict(x), atol=1e-6)


def test_the_strength_with_the_smallest_error_inside_is_chosen():
    vectors, years, persons = ages(200, signal=0.0)
    told = fit_head(Ridge(), *ages(200, signal=60.0)[:2], persons=persons, strengths=[1e-6, 1.0], seed=0)
    noise = fit_head(Ridge(), vectors, years, persons=persons, strengths=[1e-6, 1.0], seed=0)
    assert (told.strength, noise.strength) == (1.0, 1e-6)


def test_numbers_that_are_all_the_same_are_said_back():
    vectors, years, persons = ages(5)
    head = fit_head(Ridge(), vectors, np.full(len(years), 70.0), persons=persons, strengths=[0.1], seed=0).head
    np.testing.assert_allclose(Ridge().say(head, vectors), 70.0)
