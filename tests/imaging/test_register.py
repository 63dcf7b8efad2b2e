"""Registration: planted motions come back, across contrasts, and to the bit every time."""

from __future__ import annotations

import concurrent.futures
import multiprocessing

import numpy as np
import pytest

from bfp.imaging.foreground import find_foreground
from bfp.imaging.grid import Grid, apply
from bfp.imaging.nifti import Volume
from bfp.imaging.register import Alignment, align, glance, overview
from tests.imaging.makers import grid, head, motion, scan, volume

REFERENCE = grid(axes="LPS", shape=(84, 104, 90), spacing_mm=(2.0, 2.0, 2.0))
OTHER = grid(axes="PSR", shape=(92, 70, 80), spacing_mm=(2.2, 2.6, 2.1), tilt_deg=(4, 0, -3), centre_ras=(2, 5, -4))
INSIDE = np.random.default_rng(0).uniform(-55, 55, (200, 3))


def aligned(reference: Volume, other: Volume) -> Alignment:
    return align(overview(reference, find_foreground(reference)), overview(other, find_foreground(other)))


@pytest.mark.parametrize(
    ("turn_deg", "shift_mm"),
    [((0, 0, 0), (0, 0, 0)), ((0, 0, 0), (0, 12, -2)), ((7, -4, 5), (6, -9, 14)), ((0, 0, 14), (-20, 15, 18))],
)
@pytest.mark.parametrize("contrast", ["T1w", "FLAIR"])
def test_a_planted_motion_comes_back(turn_deg: tuple, shift_mm: tuple, contrast: str) -> None:
    planted = motion(turn_deg=turn_deg, shift_mm=shift_mm)
    found = aligned(scan(REFERENCE, noise=5), scan(OTHER, contrast=contrast, moved=planted, noise=5))
    error_mm = np.linalg.norm(apply(found.reference_ras_from_scan_ras @ planted, INSIDE) - INSIDE, axis=1)
    assert error_mm.mean() < 1.0
    assert error_mm.max() < 2.0  # the voxels are 2 to 2.6 mm large
    assert found.shift_mm == pytest.approx(np.linalg.norm(shift_mm), abs=1)
    if np.linalg.norm(shift_mm) > 5:
        assert found.similarity_after > found.similarity_before + 0.02


@pytest.mark.parametrize("shift_mm", [(0, 0, 0), (1, -1, 1), (0, 12, -2)])
def test_a_glance_tells_headers_that_are_right_from_those_that_are_off(shift_mm: tuple) -> None:
    moved = scan(OTHER, contrast="FLAIR", moved=motion(turn_deg=(0, 0, 0), shift_mm=shift_mm), noise=5)
    one, other = (overview(each, find_foreground(each)) for each in (scan(REFERENCE, noise=5), moved))
    found = glance(one, other)
    assert found is not None
    assert found.shift_mm == pytest.approx(np.linalg.norm(shift_mm), abs=2.4)
    assert found.similarity_after > align(one, other).similarity_after - 0.04


def _matrix() -> bytes:
    found = aligned(
        scan(REFERENCE), scan(OTHER, contrast="FLAIR", moved=motion(turn_deg=(3, 2, 1), shift_mm=(4, 5, 6)))
    )
    return found.reference_ras_from_scan_ras.tobytes()


def test_another_process_finds_the_same_matrix_to_the_bit() -> None:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_matrix).result() == _matrix() == _matrix()


def test_heads_a_metre_apart_by_header_are_brought_together() -> None:
    """Centres are a point of departure, so even a metre between the headers is no matter."""
    far = motion(turn_deg=(0, 0, 0), shift_mm=(900, -300, 50))
    moved = Grid(OTHER.shape, far @ OTHER.ras_from_voxel)
    found = aligned(scan(REFERENCE), volume(moved, head(OTHER, contrast="FLAIR")))
    error_mm = np.linalg.norm(apply(found.reference_ras_from_scan_ras @ far, INSIDE) - INSIDE, axis=1)
    assert error_mm.max() < 2.0
    assert found.similarity_before == 1.0
