"""What is head: noise around it, zeros around it, values of both signs, a mask."""

from __future__ import annotations

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.foreground import STEP_MM, coarse, find_foreground, masked_foreground, otsu
from bfp.imaging.nifti import Volume
from tests.imaging.makers import grid, head, scan, volume

NATIVE = grid()


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def truth_for(of: Volume) -> np.ndarray:
    return head(coarse(of, step_mm=STEP_MM)[1]) > 0


@pytest.mark.parametrize("noise", [0.0, 8.0, 15.0])
@pytest.mark.parametrize("contrast", ["T1w", "T2w"])
def test_the_head_is_found_with_noise_in_the_air_and_without(noise: float, contrast: str) -> None:
    found = scan(NATIVE, contrast=contrast, noise=noise)
    assert overlap(find_foreground(found).mask, truth_for(found)) > 0.98


def test_a_brain_in_a_sea_of_zeros_is_whole() -> None:
    values = head(NATIVE)
    values[values == 100] = 0  # the skull
    found = find_foreground(volume(NATIVE, values))
    truth = head(found.grid)
    assert overlap(found.mask, (truth > 0) & (truth != 100)) > 0.99


def test_standardised_values_of_both_signs_keep_their_dark_half() -> None:
    values = head(NATIVE)
    inside = values > 0
    values[inside] = (values[inside] - values[inside].mean()) / values[inside].std()
    assert overlap(find_foreground(volume(NATIVE, values)).mask, truth_for(volume(NATIVE, values))) > 0.98


def test_specks_beside_the_head_do_not_count() -> None:
    values = head(NATIVE)
    random = np.random.default_rng(0)
    values[(values == 0) & (random.random(values.shape) < 0.02)] = 400
    found = volume(NATIVE, values)
    assert overlap(find_foreground(found).mask, truth_for(found)) > 0.95


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR"])
def test_the_centre_and_the_crown_lie_where_the_head_does(axes: str) -> None:
    found = find_foreground(scan(grid(axes=axes, shape=(90, 92, 94), tilt_deg=(7, 4, -11))))
    np.testing.assert_allclose(found.centre_ras, 0, atol=3)
    assert found.crown_mm == pytest.approx(66, abs=4)


def test_a_neck_does_not_pull_the_centre_down() -> None:
    native = grid(shape=(70, 86, 120), centre_ras=(0, 0, -70))
    values = head(native)
    x, y, z = np.moveaxis(native.ras(np.moveaxis(np.indices(native.shape), 0, -1)), -1, 0)
    values[(x**2 + y**2 < 50**2) & (z < -40)] = 150
    assert abs(find_foreground(volume(native, values)).centre_ras[2]) < 6


def test_a_mask_decides_where_there_is_one_wherever_it_is_placed() -> None:
    found = scan(NATIVE)
    brain = volume(grid(axes="RSA", shape=(70, 70, 80), spacing_mm=(2, 2, 2)), np.ones((70, 70, 80), np.uint8))
    shifted = np.eye(4)
    shifted[0, 3] = 50
    inside = masked_foreground(found, mask=brain, mask_ras_from_volume_ras=np.eye(4))
    moved = masked_foreground(found, mask=brain, mask_ras_from_volume_ras=shifted)
    assert np.abs(inside.centre_ras[:2]).max() < 3
    assert moved.centre_ras[0] < -10
    shifted[0, 3] = 900
    with pytest.raises(Unusable) as caught:
        masked_foreground(found, mask=brain, mask_ras_from_volume_ras=shifted)
    assert caught.value.reason is Reason.NO_BRAIN_MASK


def test_otsu_splits_two_peaks_half_way_between_them() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(10, 3, 4000), random.normal(100, 10, 2000)])
    assert 35 < otsu(values) < 60
    assert otsu(np.full(9, 4.0)) == 4.0
