"""Residual tissue R²: nothing for the place, everything for the tissue, less what noise takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bfp.errors import InputError
from bfp.metrics.tissue import (
    fit_residuals,
    inside_brain,
    patch_shares,
    places,
    r2,
    r2_by_tissue,
    r2_difference,
    sorted_pixels,
)


@dataclass
class Study:
    """Patches of a cohort whose tissue is place + subject's own; signal is the subject's own part, (P, 2)."""

    place: np.ndarray
    subject: np.ndarray
    held_out: np.ndarray
    atlas: np.ndarray
    own: np.ndarray

    def fit(self, features: np.ndarray):
        shares = (self.atlas + self.own).astype(np.float32)
        return fit_residuals(
            features.astype(np.float32), shares, places=self.place, subjects=self.subject, held_out=self.held_out
        )


@pytest.fixture(scope="module")
def study() -> Study:
    rng = np.random.default_rng(0)
    subjects, per_subject, spots = 60, 80, 30
    place = rng.integers(0, spots, subjects * per_subject)
    number = np.repeat(np.arange(subjects), per_subject)
    atlas = 5 * rng.standard_normal((spots, 2))[place]
    own = rng.standard_normal((len(place), 2))
    return Study(place, np.array([f"s{n:02d}" for n in number]), number % 4 == 0, atlas, own)


def test_an_atlas_of_places_explains_nothing(study: Study) -> None:
    one_hot = np.eye(30)[study.place]
    assert abs(r2(study.fit(one_hot), seed=0).value) < 0.01


def test_features_that_hold_the_tissue_explain_it_whatever_their_place_adds(study: Study) -> None:
    rng = np.random.default_rng(1)
    features = study.own @ rng.standard_normal((2, 7)) + 10 * rng.standard_normal((30, 7))[study.place]
    value, low, high = r2(study.fit(features), seed=0)
    assert value > 0.99
    assert low <= value <= high


def test_noisy_features_explain_the_share_that_the_noise_leaves(study: Study) -> None:
    """Feature = signal + noise of equal variance: the best linear prediction explains half."""
    rng = np.random.default_rng(2)
    noisy = study.own + rng.standard_normal(study.own.shape)
    interval = r2(study.fit(noisy), seed=0)
    assert interval.value == pytest.approx(0.5, abs=0.05)
    assert interval.low < 0.5 < interval.high
    assert np.mean(r2_by_tissue(study.fit(noisy))) == pytest.approx(interval.value)


def test_many_useless_features_do_not_make_it_worse_than_nothing(study: Study) -> None:
    noise = np.random.default_rng(3).standard_normal((len(study.place), 300))
    assert r2(study.fit(noise), seed=0).value > -0.02


def test_the_scale_of_a_feature_does_not_matter_and_a_constant_one_is_ignored(study: Study) -> None:
    rng = np.random.default_rng(4)
    features = study.own + rng.standard_normal(study.own.shape)
    scaled = np.c_[features * [1e3, 1e-2], np.full(len(features), 7.0)]
    assert r2(study.fit(scaled), seed=0).value == pytest.approx(r2(study.fit(features), seed=0).value, abs=1e-3)


def test_a_difference_is_judged_on_the_same_subjects(study: Study) -> None:
    """Two readings of nearly the same features differ by far less than either is uncertain."""
    rng = np.random.default_rng(5)
    noisy = study.own + rng.standard_normal(study.own.shape)
    better = study.own + 0.95 * (noisy - study.own)
    one, other = study.fit(better), study.fit(noisy)
    difference = r2_difference(one, other, seed=0)
    assert difference.low > 0
    assert difference.high - difference.low < 0.3 * (r2(one, seed=0).high - r2(one, seed=0).low)


def test_the_shares_of_a_patch_count_its_pixels() -> None:
    labels = np.zeros((1, 4, 6), np.uint16)
    labels[0, :2, :2] = [[1, 1], [2, 3]]
    labels[0, 2:, 4:] = 9
    shares = patch_shares(labels, classes={"grey": [1], "rest": [2, 3]}, patch_px=2)
    assert shares.shape == (1, 6, 2)
    assert shares[0, 0].tolist() == [0.5, 0.5]
    assert inside_brain(shares)[0].tolist() == [True] + [False] * 5


def test_places_tell_positions_and_heights_apart() -> None:
    found = places(np.array([0.0, 0.04, 0.051, 1.0]), patches=6)
    assert np.array_equal(found[0], np.arange(6))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], 6 + np.arange(6))
    assert found[3, 0] == 19 * 6


def test_sorted_pixels_forget_where_a_grey_value_lies_but_not_its_channel() -> None:
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 256, (2, 3, 4, 6), dtype=np.uint8)
    features = sorted_pixels(pixels, patch_px=2)
    assert features.shape == (2, 6, 12)
    assert np.allclose(features[1, 5, 4:8], np.sort(pixels[1, 1, 2:, 4:].ravel()) / 255)
    assert np.array_equal(sorted_pixels(pixels[:, :, ::-1, ::-1], patch_px=2)[:, ::-1], features)


def test_patches_that_no_two_subjects_have_at_the_same_place_are_refused(study: Study) -> None:
    own_places = np.unique(study.subject, return_inverse=True)[1]
    with pytest.raises(InputError, match="at the same place of the head in 5 subjects"):
        fit_residuals(
            study.own.astype(np.float32),
            study.own.astype(np.float32),
            places=own_places,
            subjects=study.subject,
            held_out=study.held_out,
        )


def test_too_few_subjects_are_refused(study: Study) -> None:
    few = np.isin(study.subject, ["s00", "s01", "s02"])
    with pytest.raises(InputError, match="2 subjects to learn from and 1 held out have labels"):
        fit_residuals(
            study.own[few].astype(np.float32),
            study.own[few].astype(np.float32),
            places=study.place[few],
            subjects=study.subject[few],
            held_out=study.held_out[few],
        )
