"""From what a model said of held-out sessions: probabilities that hold, and a threshold of known specificity.

    two classes     Platt's recalibration: the log odds times a slope plus an intercept, by logistic regression
                    (Platt 1999). His targets, a little inside 0 and 1, keep it finite where the classes are apart
    more classes    one temperature by which the logits are divided (Guo et al. 2017, arXiv 1706.04599)

A slope below 0 would turn the order of sessions round: it is 0, and everyone gets the share of the class. The
recalibrated probabilities are those of a population with as many of each class as the training sessions. Letters:
n sessions, K classes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit

from bfp.metrics.classification import SPECIFICITY, above
from bfp.models.recalibration import Platt, Recalibration, Temperature, Threshold, log_odds, logits_of

_STEPS, _CLOSE = 100, 1e-10
_COLDEST, _HOTTEST = np.log(0.05), np.log(100.0)


def recalibration_of(classes: np.ndarray, probabilities: np.ndarray) -> Recalibration:
    """classes: int (n,), each of 0 … K-1 there; probabilities: float (n, K), each session's held out."""
    if probabilities.shape[1] == 2:
        return platt(classes == 1, log_odds(probabilities))
    return temperature(classes, logits_of(probabilities))


def platt(positive: np.ndarray, odds: np.ndarray) -> Platt:
    """positive: bool (n,), both there; odds: float (n,), log odds of being positive."""
    there, others = positive.sum(), (~positive).sum()
    targets = np.where(positive, (there + 1) / (there + 2), 1 / (others + 2))
    fitted = _logistic(odds, targets)
    return fitted if fitted.slope > 0 else Platt(0.0, float(logit(targets.mean())))


def _logistic(odds: np.ndarray, targets: np.ndarray) -> Platt:
    """By Newton's method, on log odds in units of their own spread."""
    unit = odds.std() or 1.0
    design = np.stack([odds / unit, np.ones(len(odds))], axis=1)
    at = np.array([0.0, logit(targets.mean())])
    for _ in range(_STEPS):
        said = expit(design @ at)
        curvature = (design * (said * (1 - said))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), design.T @ (targets - said))
        step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))  # a far step overshoots where sessions are apart
        at = at + step
        if np.abs(step).max() < _CLOSE:
            break
    return Platt(float(at[0] / unit), float(at[1]))


def temperature(classes: np.ndarray, logits: np.ndarray) -> Temperature:
    """classes: int (n,); logits: float (n, K). Targets are drawn inside 0 and 1 as Platt's are."""
    count = logits.shape[1]
    sizes = np.bincount(classes, minlength=count)
    own = ((sizes + 1) / (sizes + 2))[classes]
    targets = np.full(logits.shape, 1.0) * ((1 - own) / (count - 1))[:, None]
    targets[np.arange(len(classes)), classes] = own

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(_COLDEST, _HOTTEST), method="bounded", options={"xatol": 1e-6})
    return Temperature(float(np.exp(found.x)))


def threshold_of(positive: np.ndarray, scores: np.ndarray) -> Threshold:
    """The lowest score from which on sessions are called positive with a specificity of SPECIFICITY or more.

    positive: bool (n,), both there; scores: float (n,), of held-out sessions. Where too many others share the highest
    score, no session is called positive.
    """
    hits, others = (count[0] for count in above(positive, scores, np.ones((1, len(scores)))))
    distinct = np.unique(scores)[::-1]
    allowed = np.flatnonzero(others <= (1 - SPECIFICITY + 1e-9) * others[-1])
    if not len(allowed):
        return Threshold(float(np.nextafter(distinct[0], np.inf)), 1.0, 0.0)
    last = allowed[-1]
    return Threshold(float(distinct[last]), float(1 - others[last] / others[-1]), float(hits[last] / hits[-1]))
