from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bfp.pretraining.draws import Draws


@given(total=st.integers(1, 12), cut=st.integers(0, 12), width=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_a_place_has_its_numbers_however_the_batch_is_split(total, cut, width, seed):
    cut = min(cut, total)
    whole = Draws(seed, 3, 0, total, total).uniform("crop", width)
    parts = [Draws(seed, 3, 0, cut, total), Draws(seed, 3, cut, total - cut, total)]
    assert np.array_equal(np.concatenate([part.uniform("crop", width) for part in parts]), whole)


def test_seed_step_and_name_each_make_other_numbers():
    drawn = [
        Draws(seed, step, 0, 50, 50).uniform(name, 20).ravel()
        for seed, step, name in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    correlation = np.corrcoef(drawn)
    assert np.abs(correlation - np.eye(4)).max() < 0.15


def test_numbers_are_uniform_below_one():
    drawn = Draws(4, 0, 0, 2000, 2000).uniform("x", 7)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
