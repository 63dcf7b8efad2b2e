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


@pytest.mark.parametrize(
    "values",
    [
        [0.6, 0.8],
        [0.6, 0.65, 0.8],
        [0.61, 0.6101, 0.8],
        [0.7, 0.7, 0.7, 0.3, 0.9],
        [2**0.5] * 5 + [5**0.5, 3.0],  # distances in steps of voxels
        [0.7] * 8 + [0.3, 0.9],  # subjects enough, but of three kinds
    ],
)
def test_the_interval_of_few_subjects_or_of_ties_is_students(values):
    found = subject_bootstrap_of_mean(np.array(values), subjects=[f"s{n}" for n in range(len(values))], seed=0)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert found[1:] == pytest.approx(t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error))


def test_few_subjects_with_several_sessions_are_as_many_as_there_are_people():
    found = subject_bootstrap_of_mean(np.array([0.2, 0.4, 0.9, 0.8]), subjects=list("aabb"), seed=0)
    assert found[1:] == pytest.approx(t.interval(0.95, 1, loc=0.575, scale=0.55 / 2))


def test_one_subject_far_off_puts_no_end_beyond_itself():
    """A third of the replicates go without it, and have next to no error."""
    distances_mm = np.array([3.0, 3.1, 2.9, 3.05, 2.95, 3.2, 2.8, 100.0])
    found = subject_bootstrap_of_mean(distances_mm, subjects=list("abcdefgh"), seed=0)
    assert 2.8 <= found.low < found.value < found.high <= 100
