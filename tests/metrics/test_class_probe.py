"""Asking features for a class: what they hold is found, what they do not hold is not, whatever is common to all."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.metrics.auroc import auroc
from bfp.metrics.class_probe import logistic, nearest


def make_sessions(*, apart: float, classes: int = 3, each: int = 40, width: int = 24, seed: int = 0):
    """Vectors (n, F) of classes whose means lie `apart` standard deviations out, around a point far from zero."""
    random = np.random.default_rng(seed)
    of = np.tile(np.arange(classes), each)
    means = np.eye(classes, width) * apart
    return 50 + means[of] + random.normal(size=(len(of), width)), of


def judge(way: str, vectors: np.ndarray, of: np.ndarray) -> float:
    half = len(of) // 2
    known, classes, judged = vectors[:half], of[:half], vectors[half:]
    count = len(np.unique(of))
    said = nearest(known, classes, judged, class_count=count) if way == "nearest" else logistic(known, classes, judged)
    assert said.shape == (len(judged), count)
    assert said.sum(axis=1) == pytest.approx(1)
    value = auroc(of[half:], said)
    assert value is not None
    return value


@pytest.mark.parametrize("way", ["nearest", "logistic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_found_where_features_hold_them_and_nowhere_else(way: str, classes: int) -> None:
    assert judge(way, *make_sessions(apart=4.0, classes=classes)) > 0.95
    assert abs(judge(way, *make_sessions(apart=0.0, classes=classes, each=100)) - 0.5) < 0.1


@pytest.mark.parametrize("way", ["nearest", "logistic"])
def test_features_that_are_all_alike_tell_nothing(way: str) -> None:
    _, of = make_sessions(apart=0.0)
    assert judge(way, np.full((len(of), 8), 3.5), of) == 0.5


@pytest.mark.parametrize("way", [lambda *given: nearest(*given, class_count=3), logistic], ids=["nearest", "logistic"])
def test_what_all_sessions_have_in_common_changes_nothing(way) -> None:
    vectors, of = make_sessions(apart=1.0)
    said, shifted = (way(each[:60], of[:60], each[60:]) for each in (vectors, vectors + np.linspace(0, 900, 24)))
    assert shifted == pytest.approx(said, abs=1e-3)
