import numpy as np
import pytest

from bfp.metrics import bootstrap
from bfp.metrics.bootstrap import subject_bootstrap

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
