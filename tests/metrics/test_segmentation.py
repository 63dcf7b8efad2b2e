import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from bfp.metrics.segmentation import mean_difference, mean_over_sessions, overlaps


def box(low, high, shape=(20, 24, 18)):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return mask


def test_a_shifted_box_is_off_by_its_shift_in_millimetres_along_each_axis():
    drawn = box((4, 5, 6), (12, 15, 12))
    for axis, spacing_mm in enumerate((1.0, 2.0, 3.5)):
        predicted = np.roll(drawn, 2, axis=axis)
        (found,) = overlaps(predicted, drawn, class_count=1, spacing_mm=(1.0, 2.0, 3.5))
        assert found.hd95_mm == pytest.approx(2 * spacing_mm)
        extent = (8, 10, 6)[axis]
        assert found.dice == pytest.approx((extent - 2) / extent)


def test_dice_is_monais_and_volumes_are_in_millilitres():
    random = np.random.default_rng(0)
    predicted, drawn = random.integers(0, 3, (2, 9, 8, 7))
    found = overlaps(predicted, drawn, class_count=2, spacing_mm=(1.0, 2.0, 5.0))
    one_hot = [torch.from_numpy(np.stack([each == k for k in range(3)]))[None] for each in (predicted, drawn)]
    assert [own.dice for own in found] == pytest.approx(compute_dice(*one_hot, include_background=False)[0].tolist())
    assert found[0].predicted_ml == pytest.approx((predicted == 1).sum() / 100)
    assert found[1].drawn_ml == pytest.approx((drawn == 2).sum() / 100)


def test_distances_do_not_depend_on_what_is_far_from_both():
    drawn, predicted = box((4, 5, 6), (12, 15, 12)), box((5, 5, 6), (12, 14, 13))
    (small,) = overlaps(predicted, drawn, class_count=1, spacing_mm=(1, 1, 1))
    wide = [np.pad(each, 15) for each in (predicted, drawn)]
    (large,) = overlaps(*wide, class_count=1, spacing_mm=(1, 1, 1))
    assert small.hd95_mm == large.hd95_mm


def test_what_is_not_there_is_undefined_and_what_is_missed_counts_nothing():
    nothing, there = box((0, 0, 0), (0, 0, 0)), box((4, 5, 6), (12, 15, 12))
    absent = overlaps(nothing, nothing, class_count=1, spacing_mm=(1, 1, 1))[0]
    assert (absent.dice, absent.hd95_mm) == (None, None)
    for predicted, drawn in ((nothing, there), (there, nothing)):
        missed = overlaps(predicted, drawn, class_count=1, spacing_mm=(1, 1, 1))[0]
        assert (missed.dice, missed.hd95_mm) == (0.0, None)


def test_means_leave_out_what_is_undefined_and_their_intervals_are_over_subjects():
    values = [0.2, None, 0.4, 0.6, 0.8, None]
    subjects = ["a", "a", "b", "c", "d", "e"]
    found = mean_over_sessions(values, subjects=subjects, seed=0)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert mean_over_sessions([None, None], subjects=["a", "b"], seed=0) == (None, None, None)
    twice = mean_over_sessions(values * 2, subjects=subjects * 2, seed=0)
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))  # no more people than before


def test_a_difference_is_of_the_sessions_in_which_both_are_defined():
    found = mean_difference([0.5, 0.9, None, 0.7], [0.3, None, 0.2, 0.5], subjects=list("abcd"), seed=0)
    assert found.value == pytest.approx(0.2)
