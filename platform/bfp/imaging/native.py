"""From maps on stacks back to a scan: the way that `session` came, taken backwards.

A model predicts a map for each class on the centre slice of each stack. Here the slices become a volume again, which
is carried onto the scan's own voxels, through its registration, by linear interpolation. Probabilities travel, never
labels: the largest is taken at the end, on the scan's grid. Where no slice was predicted there is background.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bfp.imaging.grid import Grid
from bfp.imaging.resample import resample
from bfp.imaging.stacks import from_pixels


def to_native(
    maps: np.ndarray,
    *,
    slices: np.ndarray,
    working: Grid,
    native: Grid,
    reference_ras_from_scan_ras: np.ndarray,
) -> np.ndarray:
    """Probabilities on stacks (n, classes, size, size) to the scan's voxels: float32 (classes, i, j, k).

    Class 0 is the background: 1 wherever no slice lies. slices: the n indices along z of the working grid; working,
    native and the motion are those of the scan's `ScanFacts`.
    """
    carried = _carried(maps, slices, working, native, reference_ras_from_scan_ras)
    return np.stack(list(carried))


def labels_on(
    maps: np.ndarray,
    *,
    slices: np.ndarray,
    working: Grid,
    native: Grid,
    reference_ras_from_scan_ras: np.ndarray,
) -> np.ndarray:
    """The likeliest class at each of the scan's voxels: uint8 (i, j, k), of at most 256 classes.

    Arguments as of `to_native`, whose largest this is; of the probabilities two volumes are held, not all.
    """
    carried = _carried(maps, slices, working, native, reference_ras_from_scan_ras)
    most = next(carried)
    labels = np.zeros(native.shape, dtype=np.uint8, order="F")
    for label, probability in enumerate(carried, start=1):
        larger = probability > most
        labels[larger] = label
        most[larger] = probability[larger]
    return labels


def _carried(
    maps: np.ndarray, slices: np.ndarray, working: Grid, native: Grid, reference_ras_from_scan_ras: np.ndarray
) -> Iterator[np.ndarray]:
    """The probabilities of each class in turn, on the scan's voxels: float32 (i, j, k)."""
    for label in range(maps.shape[1]):
        background = float(label == 0)
        volume = np.full(working.shape, background, dtype=np.float32, order="F")
        volume[:, :, slices] = from_pixels(maps[:, label])
        yield resample(
            volume,
            source=working,
            target=native,
            source_ras_from_target_ras=reference_ras_from_scan_ras,
            interpolation="linear",
            outside=background,
        )
