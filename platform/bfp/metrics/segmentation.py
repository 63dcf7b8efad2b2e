"""How well a segmentation agrees with what was drawn: Dice and HD95 of each class, session by session.

    Dice      2 |P ∩ T| / (|P| + |T|), of voxels
    HD95      mm: the larger of the two 95th percentiles of the distances from each surface to the other (MONAI's)

What is and is not defined, of a class in one session:

    drawn and predicted      both
    drawn alone              Dice is 0; HD95 is undefined, since there is no surface to be far from
    not drawn                both are undefined, whatever was predicted (MONAI's ignore_empty); a mask is a false alarm

So the Dice of every approach is of the same sessions, those in which there was something to be found, and differences
are paired; were an empty mask undefined and a voxel 0 where nothing was drawn, whoever says nothing would be judged on
other sessions than whoever says a little. What is said of the others is a figure of its own: in how many of them there
is a mask. An undefined value is None, is left out of means, and how many were defined is said: the mean HD95 of a model
that misses a class in half of the sessions tells of the other half alone. Of several classes a session's Dice is the
mean of those that were drawn in it, which are the same for every approach.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bfp.metrics.bootstrap import ANY, FEW, REPLICATES, Interval, subject_bootstrap_of_mean
from bfp.metrics.over_folds import MeanOverSessions

PERCENTILE = 95
DICE, HD95_MM, SHARE = (0.0, 1.0), (0.0, np.inf), (0.0, 1.0)
"""The ranges of values."""
INTERVALS = (
    f"{REPLICATES:,} bootstrap replicates over subjects (bootstrap-t; of fewer than {FEW} subjects, or of values of "
    "which most are equal, from Student's t with a standard error over subjects)"
)
"""What the intervals of their means are from."""
RULE = (
    "The Dice of a class is of the sessions in which something of it was drawn (where nothing is found of that it is "
    "0, and HD95 is undefined); of several classes a session's is the mean of those that were drawn in it. A mask of a "
    "class of which nothing was drawn is a false alarm, and counted by itself"
)
"""What is judged on which sessions."""


class Overlap(NamedTuple):
    """Of one class in one session; predicted_ml, drawn_ml: its volumes."""

    dice: float | None
    hd95_mm: float | None
    predicted_ml: float
    drawn_ml: float

    @property
    def is_false_alarm(self) -> bool | None:
        """Whether there is a mask where nothing was drawn; None where something was."""
        return self.predicted_ml > 0 if self.drawn_ml == 0 else None


def overlaps(
    predicted: np.ndarray, drawn: np.ndarray, *, class_count: int, spacing_mm: tuple[float, float, float]
) -> list[Overlap]:
    """Of the classes 1 … class_count, in their order. predicted, drawn: integers (i, j, k), 0 is background."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return [_overlap(predicted == k, drawn == k, spacing_mm, voxel_ml) for k in range(1, class_count + 1)]


def _overlap(predicted: np.ndarray, drawn: np.ndarray, spacing_mm: Sequence[float], voxel_ml: float) -> Overlap:
    found, there = int(predicted.sum()), int(drawn.sum())
    dice = 2 * int((predicted & drawn).sum()) / (found + there) if there else None
    hd95_mm = _distance_mm(predicted, drawn, spacing_mm) if found and there else None
    return Overlap(dice, hd95_mm, found * voxel_ml, there * voxel_ml)


def _distance_mm(predicted: np.ndarray, drawn: np.ndarray, spacing_mm: Sequence[float]) -> float:
    import torch

    box = tuple(slice(low, high + 1) for low, high in _box(predicted | drawn))
    one, other = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (predicted, drawn))
    measured = _monai().compute_hausdorff_distance(
        one, other, include_background=True, percentile=PERCENTILE, spacing=list(spacing_mm)
    )
    return float(measured[0, 0])


def _box(mask: np.ndarray) -> list[tuple[int, int]]:
    """The first and last index along each axis at which there is anything, and one more to each side."""
    ends = []
    for axis in range(mask.ndim):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ends.append((max(int(along[0]) - 1, 0), min(int(along[-1]) + 1, mask.shape[axis] - 1)))
    return ends


@functools.cache
def _monai() -> Any:
    import monai.metrics  # seconds

    return monai.metrics


# figures of many sessions, as `bfp.metrics.over_folds.Figure`: rows of said hold the Dice of K classes, then their
# HD95, then whether they are false alarms, NaN where undefined, (n, 3·K). Of a session Dice and HD95 are the mean of
# those classes in which they are defined.

COLUMNS = 3


def columns_of(found: Sequence[Overlap]) -> list[float]:
    """The row of a session, (3·K,)."""
    told = [[each.dice, each.hd95_mm, each.is_false_alarm] for each in found]
    return [np.nan if value is None else float(value) for column in zip(*told, strict=True) for value in column]


def _dice(targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    return _mean_of_classes(np.split(said, COLUMNS, axis=1)[0])


def _hd95_mm(targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    return _mean_of_classes(np.split(said, COLUMNS, axis=1)[1])


def _of_class(targets: np.ndarray, said: np.ndarray, *, column: int, k: int) -> np.ndarray:
    return np.split(said, COLUMNS, axis=1)[column][:, k]


def _mean_of_classes(values: np.ndarray) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=1) / counts  # NaN where there is none: 0 / 0


mean_dice = MeanOverSessions(_dice, DICE)
mean_hd95_mm = MeanOverSessions(_hd95_mm, HD95_MM)


def dice_of(k: int) -> MeanOverSessions:
    return MeanOverSessions(functools.partial(_of_class, column=0, k=k), DICE)


def false_alarms_of(k: int) -> MeanOverSessions:
    """The share of sessions with a mask, of those in which nothing of the class was drawn."""
    return MeanOverSessions(functools.partial(_of_class, column=2, k=k), SHARE)


def mean_over_sessions(
    values: Sequence[float | None], *, subjects: Sequence[str], seed: int, within: tuple[float, float] = ANY
) -> Interval:
    """The mean of what is defined, with its 95 % interval over subjects. subjects: whose each value is; within: the
    range of values."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return subject_bootstrap_of_mean(numbers, subjects=subjects, seed=seed, within=within)


def mean_difference(
    values: Sequence[float | None],
    others: Sequence[float | None],
    *,
    subjects: Sequence[str],
    seed: int,
    within: tuple[float, float] = ANY,
) -> Interval:
    """How much higher the first are in the mean, over the sessions in which both are defined. within: the range of
    values, not of differences."""
    differences = [
        None if one is None or other is None else one - other for one, other in zip(values, others, strict=True)
    ]
    return mean_over_sessions(
        differences, subjects=subjects, seed=seed, within=(within[0] - within[1], within[1] - within[0])
    )
