import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from bfp.metrics.segmentation import (
    Overlap,
    columns_of,
    dice_of,
    false_alarms_of,
    mean_dice,
    mean_difference,
    mean_hd95_mm,
    mean_over_sessions,
    overlaps,
)


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


def test_a_class_is_judged_where_it_was_drawn_and_a_mask_elsewhere_is_a_false_alarm():
    nothing, there = box((0, 0, 0), (0, 0, 0)), box((4, 5, 6), (12, 15, 12))
    voxel = box((4, 5, 6), (5, 6, 7))

    def judged(predicted, drawn):
        (own,) = overlaps(predicted, drawn, class_count=1, spacing_mm=(1, 1, 1))
        one_hot = [torch.from_numpy(np.stack([each == k for k in range(2)]))[None] for each in (predicted, drawn)]
        monais = compute_dice(*one_hot, include_background=False, ignore_empty=True).item()
        assert own.dice == (None if np.isnan(monais) else monais)
        return own.dice, own.hd95_mm, own.is_false_alarm

    assert judged(nothing, there) == (0.0, None, None)
    assert judged(nothing, nothing) == (None, None, False)
    assert judged(voxel, nothing) == judged(there, nothing) == (None, None, True)


def test_a_session_has_a_row_of_dice_hd95_and_false_alarms_and_a_share_of_those_is_of_the_sessions_without():
    rows = np.array(
        [
            columns_of([Overlap(0.5, 3.0, 1.0, 2.0), Overlap(None, None, 0.5, 0.0)]),
            columns_of([Overlap(0.0, None, 0.0, 2.0), Overlap(None, None, 0.0, 0.0)]),
        ]
    )
    np.testing.assert_array_equal(rows[0], [0.5, np.nan, 3.0, np.nan, np.nan, 1.0])
    once = np.ones((1, 2))
    assert mean_dice(None, rows, once) == pytest.approx([0.25])
    assert mean_hd95_mm(None, rows, once) == pytest.approx([3.0])
    assert dice_of(0)(None, rows, once) == pytest.approx([0.25])
    assert false_alarms_of(1)(None, rows, once) == pytest.approx([0.5])
    assert np.isnan(false_alarms_of(0)(None, rows, once))


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
