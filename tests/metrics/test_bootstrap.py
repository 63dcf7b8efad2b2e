import numpy as np
import pytest
from scipy.stats import t

from bfp.metrics import bootstrap
from bfp.metrics.bootstrap import subject_bootstrap, subject_bootstrap_of_mean

VALUES = np.random.default_rng(0).exponential(size=300)
SUBJECTS = [f"s{number // 2}" for number in range(300)]


def mean(weights):
    return (weights @ VALUES) / weights.sum(axis=1)


def test_a_large_cohort_goes_through_in_pieces_to_the_same_interval(monkeypatch):
    whole = subject_bootstrap(mean, subjects=SUBJECTS, seed=1)
    heard = []
    monkeypatch.setattr(bootstrap, "_CELLS", 7 * 300)
    pieces = subject_bootstrap(lambda weights: heard.append(len(weights)) or mean(weights), subjects=SUBJECTS, seed=1)
    assert pieces == pytest.approx(whole, rel=1e-12)
    assert max(heard) == 7


def test_leaving_out_parts_of_many_subjects_tells_the_same_skewness(monkeypatch):
    each = subject_bootstrap(mean, subjects=SUBJECTS, seed=1)
    monkeypatch.setattr(bootstrap, "LEFT_OUT", 50)
    parts = subject_bootstrap(mean, subjects=SUBJECTS, seed=1)
    assert parts != each
    assert parts == pytest.approx(each, abs=0.1 * (each.high - each.low))


def test_the_interval_of_a_mean_is_students_where_values_are_normal_and_wider_where_few_are_skewed():
    random = np.random.default_rng(0)
    normal = random.normal(3, 2, size=200)
    found = subject_bootstrap_of_mean(normal, subjects=[f"s{n}" for n in range(200)], seed=0)
    expected = t.interval(0.95, 199, loc=normal.mean(), scale=normal.std(ddof=1) / np.sqrt(200))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)
    skewed = np.exp(random.normal(size=11))
    found = subject_bootstrap_of_mean(skewed, subjects=list("abcdefghijk"), seed=0)
    _, high = t.interval(0.95, 10, loc=skewed.mean(), scale=skewed.std(ddof=1) / np.sqrt(11))
    assert found.high > high


def test_the_interval_of_a_mean_is_of_subjects_and_keeps_to_the_range_of_its_values():
    dice, subjects = np.array([0.99, 0.97, 0.2, 0.98, 0.96]), list("abcde")
    found = subject_bootstrap_of_mean(dice, subjects=subjects, seed=0, within=(0, 1))
    assert 0 <= found.low < found.value < found.high <= 1
    twice = subject_bootstrap_of_mean(np.tile(dice, 2), subjects=subjects * 2, seed=0, within=(0, 1))
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))
    assert subject_bootstrap_of_mean(dice, subjects=["a"] * 5, seed=0) == (pytest.approx(0.82), None, None)
    assert subject_bootstrap_of_mean(np.full(5, 0.5), subjects=subjects, seed=0) == (0.5, 0.5, 0.5)
