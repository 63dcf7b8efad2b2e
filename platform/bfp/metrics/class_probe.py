"""Two quick ways to ask features for a class: nearest neighbours, and one logistic regression of a fixed strength.

Neither chooses anything, so that figures of the same sessions at different steps differ by the features alone.

    nearest    the vectors less the training mean, cosine; the NEIGHBOURS nearest vote with exp(cosine / TEMPERATURE)
               (Wu et al. 2018, arXiv 1805.01978, as in DINO). The mean goes off first, since it is most of what
               pooled tokens have in common.
    logistic   on standardised vectors, L2, C = STRENGTH: the middle of what fine-tuning tries

Letters: n training and m judged sessions, F features, K classes.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

NEIGHBOURS = 20
TEMPERATURE = 0.07
STRENGTH = 0.01


def nearest(training: np.ndarray, classes: np.ndarray, judged: np.ndarray, *, class_count: int) -> np.ndarray:
    """Probabilities float64 (m, K). training: float (n, F); classes: int (n,); judged: float (m, F)."""
    return nearest_mean(training, np.eye(class_count)[classes], judged)


def nearest_mean(training: np.ndarray, values: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """The mean of the nearest's values as they vote, float64 (m, V). values: float (n, V)."""
    centre = training.mean(axis=0)
    ours, theirs = (_unit(vectors.astype(np.float64) - centre) for vectors in (judged, training))
    cosines = ours @ theirs.T  # (m, n)
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.exp((np.take_along_axis(cosines, near, axis=1) - 1) / TEMPERATURE)
    votes /= votes.sum(axis=1, keepdims=True)
    return np.einsum("mk,mkv->mv", votes, values[near])


def logistic(training: np.ndarray, classes: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Probabilities float64 (m, K), of the K classes that `classes` holds; arguments as in `nearest`."""
    centre, scale = training.mean(axis=0), training.std(axis=0)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(centre), 1e-6), scale, np.inf)  # what never varies says nothing
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit((training - centre) / scale, classes)
    said: np.ndarray = model.predict_proba((judged - centre) / scale)
    return said


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
