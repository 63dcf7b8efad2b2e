"""A made cohort with a ball drawn in each head, on grids that differ in orientation, obliqueness and voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bfp.imaging.grid import Grid
from bfp.imaging.nifti import encode
from tests.imaging.makers import grid, head

RADIUS_MM = 17.0

GRIDS = [
    grid(axes="LPS", shape=(44, 52, 40), spacing_mm=(3.9, 4.0, 4.2)),
    grid(axes="PSR", shape=(52, 42, 44), spacing_mm=(4.0, 4.2, 4.0), tilt_deg=(8, -6, 11)),
    grid(axes="RAI", shape=(60, 70, 30), spacing_mm=(2.8, 2.8, 6.0), tilt_deg=(10, 0, 3)),
    grid(axes="SAL", shape=(40, 52, 44), spacing_mm=(4.3, 3.9, 4.0)),
]


def ball(at: Grid, centre_ras: np.ndarray) -> np.ndarray:
    """bool of the grid's shape."""
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    return np.linalg.norm(points - centre_ras, axis=-1) < RADIUS_MM


def write_cohort(
    bids: Path, *, subjects: int = 6, seed: int = 0, hidden_in: str | None = None
) -> dict[str, np.ndarray]:
    """A BIDS dataset of T1w, each with a bright ball somewhere and its mask in derivatives; the balls' centres.

    hidden_in: another modality, in which the ball does not show.
    """
    random, centres = np.random.default_rng(seed), {}
    for number in range(subjects):
        at, centre = GRIDS[number % len(GRIDS)], random.uniform(-24, 24, 3)
        inside = ball(at, centre)
        grey = head(at, noise=6.0) + np.random.default_rng([seed, number]).normal(0, 3, at.shape)
        plain = np.rint(grey).astype(np.int16)
        grey[inside] = 420 + random.normal(0, 10, int(inside.sum()))
        subject = f"{number:02}"
        scan = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
        mask = bids / "derivatives" / "drawn" / f"sub-{subject}" / "anat" / f"sub-{subject}_label-ball_mask.nii.gz"
        files = [(scan, np.rint(grey).astype(np.int16)), (mask, inside.astype(np.uint8))]
        if hidden_in:
            files.append((scan.with_name(scan.name.replace("T1w", hidden_in)), plain))
        for file, voxels in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(voxels, grid=at))
        centres[subject] = centre
    (bids / "dataset_description.json").write_text('{"Name": "balls", "BIDSVersion": "1.10.0"}')
    return centres


def cohort_spec(bids: Path) -> dict:
    ball_spec = {"name": "ball", "suffix": "label-ball_mask", "drawn_on": "T1w", "classes": {"ball": [1]}}
    return {"name": "balls", "bids": str(bids), "segmentations": [ball_spec]}
