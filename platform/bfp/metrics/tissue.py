"""Residual tissue R²: how well patch tokens tell what tissue lies in a patch, beyond where the patch lies.

For every patch inside the brain the shares of the tissues in it (grey matter, white matter, fluid) are predicted
linearly from its token. The place of a patch alone predicts most of that: an atlas without any image reaches an R² of
0.8. So the mean of each place (position in the slice, and height of the slice) is taken off first, from features and
targets alike; what is left to predict is how this subject differs from others at that place.

    places    position in the slice × one of HEIGHT_BINS heights; their means come from the training subjects
    ridge     on standardised residuals, the penalty chosen by cross-validation inside the training subjects
    R²        on held-out subjects: 1 - squared error / squared residuals, the mean over the tissues
    interval  by bootstrap over the held-out subjects; two sets of features are compared on the same replicates

Letters: n stacks, N patches of each, P patches inside the brain over all stacks, F features, C tissues, S subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bfp.errors import InputError
from bfp.metrics.bootstrap import Interval, subject_bootstrap
from bfp.words import counted

HEIGHT_BINS = 20  # of the head's height: about 7 mm each
BRAIN_SHARE = 0.5  # a patch counts when at least half of it is one of the tissues
PLACE_SUBJECTS = 5  # a place counts when so many training subjects have a patch there
FOLDS = 5
PENALTIES = np.logspace(-5, 2, 15)  # per patch, of standardised features


def check_subjects(training: int, held_out: int) -> None:
    """Raise InputError where there are too few to learn from or to judge on."""
    if training < max(FOLDS, PLACE_SUBJECTS) or held_out < 2:
        raise InputError(
            f"{counted(training, 'subject')} to learn from and {held_out} held out have labels; residual tissue R² "
            f"needs at least {max(FOLDS, PLACE_SUBJECTS)} and 2"
        )


def patch_shares(labels: np.ndarray, *, classes: Mapping[str, Sequence[int]], patch_px: int) -> np.ndarray:
    """The share of each tissue in each patch: float32 (n, N, C), in the order of the classes.

    labels: integers (n, H, W). classes: the label values of each tissue; any other value is none of them.
    """
    shares = [_by_patch(np.isin(labels, list(values)), patch_px).mean(axis=2) for values in classes.values()]
    return np.stack(shares, axis=2).astype(np.float32)


def inside_brain(shares: np.ndarray) -> np.ndarray:
    """The patches that count: bool (n, N) from shares (n, N, C)."""
    return shares.sum(axis=2) >= BRAIN_SHARE


def places(height: np.ndarray, *, patches: int) -> np.ndarray:
    """The place of every patch, a number: int (n, N). height: of each slice, 0 to 1, (n,)."""
    bins = np.minimum((height * HEIGHT_BINS).astype(np.int64), HEIGHT_BINS - 1)
    return bins[:, None] * patches + np.arange(patches)


def sorted_pixels(pixels: np.ndarray, *, patch_px: int) -> np.ndarray:
    """Features without any encoder: the pixels of each channel of a patch in rising order.

    Returns float32 (n, N, C · patch_px²), 0 to 1. pixels: uint8 (n, C, H, W). Sorting forgets where in the
    patch a grey value lies and keeps how much of it there is, which is what the share of a tissue asks for.
    """
    by_channel = [np.sort(_by_patch(pixels[:, channel], patch_px), axis=2) for channel in range(pixels.shape[1])]
    return (np.concatenate(by_channel, axis=2) / np.float32(255)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ResidualFit:
    """What a fit leaves unexplained in each held-out subject.

    squared_error, squared: float64 (S, C), summed over the subject's patches: of the prediction, of the residual.
    patches: how many were learned from and judged on.
    """

    subjects: list[str]
    squared_error: np.ndarray
    squared: np.ndarray
    patches: tuple[int, int]


def fit_residuals(
    features: np.ndarray, shares: np.ndarray, *, places: np.ndarray, subjects: np.ndarray, held_out: np.ndarray
) -> ResidualFit:
    """Learn the shares from the features on the other subjects, and judge on the held-out ones.

    features: float32 (P, F); shares: float32 (P, C); places: int (P,); subjects: text (P,), unique over cohorts;
    held_out: bool (P,), equal for all patches of a subject. Raises InputError with too few subjects on either side.
    """
    train = ~held_out
    check_subjects(len(np.unique(subjects[train])), len(np.unique(subjects[held_out])))
    known = _known_places(places[train], subjects[train])
    kept = np.isin(places, known)
    features, shares, places = features[kept], shares[kept], places[kept]
    subjects, train = subjects[kept], train[kept]
    if len(np.unique(subjects[~train])) < 2:
        raise InputError(
            f"too few patches of brain lie at the same place of the head in {PLACE_SUBJECTS} subjects and in one held "
            "out: residual tissue R² has nothing to compare"
        )

    residual_features = _without_place(features, places, train)
    residual_shares = _without_place(shares, places, train).astype(np.float64)
    scale = residual_features[train].std(axis=0)
    residual_features = residual_features / np.where(scale > 1e-6, scale, np.inf)  # what never varies says nothing

    fold_of = _folds(subjects[train])
    sums = [
        _sums(residual_features[train][fold_of == fold], residual_shares[train][fold_of == fold])
        for fold in range(FOLDS)
    ]
    weights = _ridge(_total(sums), [_best_penalty(sums)])[0]  # (F, C)

    error = residual_shares[~train] - residual_features[~train] @ weights
    names, subject_of = np.unique(subjects[~train], return_inverse=True)
    return ResidualFit(
        subjects=[str(name) for name in names],
        squared_error=_by_subject(error**2, subject_of, len(names)),
        squared=_by_subject(residual_shares[~train] ** 2, subject_of, len(names)),
        patches=(int(train.sum()), int((~train).sum())),
    )


def r2(fit: ResidualFit, *, seed: int) -> Interval:
    """The mean over the tissues of R² on the held-out subjects, with its 95 % interval."""
    return subject_bootstrap(lambda weights: _r2(fit, weights), subjects=fit.subjects, seed=seed)


def r2_difference(fit: ResidualFit, other: ResidualFit, *, seed: int) -> Interval:
    """How much higher the R² of `fit` is than that of `other`, on the same patches."""
    assert fit.subjects == other.subjects, "both are judged on the same subjects"
    return subject_bootstrap(lambda weights: _r2(fit, weights) - _r2(other, weights), subjects=fit.subjects, seed=seed)


def r2_by_tissue(fit: ResidualFit) -> list[float]:
    """R² of each tissue, in the order of the classes."""
    return [float(value) for value in 1 - fit.squared_error.sum(axis=0) / fit.squared.sum(axis=0)]


def _r2(fit: ResidualFit, weights: np.ndarray) -> np.ndarray:
    return (1 - (weights @ fit.squared_error) / (weights @ fit.squared)).mean(axis=1)


def _by_patch(images: np.ndarray, patch_px: int) -> np.ndarray:
    """(n, H, W) -> (n, N, patch_px²), patches in rows from the top."""
    n, H, W = images.shape
    tiles = images.reshape(n, H // patch_px, patch_px, W // patch_px, patch_px).swapaxes(2, 3)
    return tiles.reshape(n, -1, patch_px * patch_px)


def _known_places(places: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """The places where enough of these subjects have a patch."""
    _, number = np.unique(subjects, return_inverse=True)
    pairs = np.unique(np.stack([places, number], axis=1), axis=0)
    known, subjects_there = np.unique(pairs[:, 0], return_counts=True)
    return known[subjects_there >= PLACE_SUBJECTS]


def _without_place(values: np.ndarray, places: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The values (P, …) less the training patches' mean at their place."""
    _, place_of = np.unique(places, return_inverse=True)
    order = np.flatnonzero(train)[np.argsort(place_of[train], kind="stable")]
    first = np.flatnonzero(np.diff(place_of[order], prepend=-1))
    counts = np.diff(np.append(first, len(order)))
    means = np.add.reduceat(values[order], first, axis=0) / counts[:, None].astype(values.dtype)
    return values - means[place_of]


def _folds(subjects: np.ndarray) -> np.ndarray:
    """Whole subjects to FOLDS folds in turn: int (P,)."""
    _, number = np.unique(subjects, return_inverse=True)
    return number % FOLDS


class _Sums(NamedTuple):
    """Everything that ridge regression needs of some patches: XᵀX (F, F), XᵀY (F, C), ΣY² (C,), and their number."""

    gram: np.ndarray
    cross: np.ndarray
    squares: np.ndarray
    patches: int


def _sums(X: np.ndarray, Y: np.ndarray) -> _Sums:
    return _Sums((X.T @ X).astype(np.float64), X.T.astype(np.float64) @ Y, (Y**2).sum(axis=0), len(X))


def _total(sums: Sequence[_Sums]) -> _Sums:
    grams, crosses, squares, patches = zip(*sums, strict=True)
    return _Sums(np.sum(grams, axis=0), np.sum(crosses, axis=0), np.sum(squares, axis=0), sum(patches))


def _ridge(sums: _Sums, penalties: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """The weights (F, C) for each penalty."""
    values, vectors = np.linalg.eigh(sums.gram)
    turned = vectors.T @ sums.cross
    return [vectors @ (turned / (np.maximum(values, 0) + penalty * sums.patches)[:, None]) for penalty in penalties]


def _best_penalty(folds: Sequence[_Sums]) -> float:
    """The penalty with the highest mean R² when each fold is predicted from the others."""
    gained = np.zeros(len(PENALTIES))
    for number, judged in enumerate(folds):
        others = _total([part for other, part in enumerate(folds) if other != number])
        for index, weights in enumerate(_ridge(others, PENALTIES)):
            explained = 2 * (weights * judged.cross).sum(axis=0) - (weights * (judged.gram @ weights)).sum(axis=0)
            gained[index] += (explained / judged.squares).mean()
    return float(PENALTIES[gained.argmax()])


def _by_subject(values: np.ndarray, subject_of: np.ndarray, subjects: int) -> np.ndarray:
    return np.stack([np.bincount(subject_of, column, minlength=subjects) for column in values.T], axis=1)
