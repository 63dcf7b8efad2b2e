"""Whether intervals hold the truth, and tests find differences, as often as they say; in simulated studies.

    python -m tests.campaigns.statistics [--studies 2000] [--subjects 60] [--seed 0]

A study has so many subjects, about half of them patients, of one to three sessions each which are alike (70 % of the
variance is the subject's), in 5 folds by subject. Two kinds:

given      scores as of a model that stands, of a known AUROC, 0.85, and of two models of the same one. Counted: how
           often the interval of each figure holds its expectation, and how often each test finds a difference (0.05).
trained    two approaches, equally good by their making, each of whose models are fitted to the other folds' sessions.
           Counted: how often each test finds a difference. A test of two given models knows nothing of what training on
           other subjects would have made of them, and finds more than 5 %; the corrected t test is made for this.

Beside each way its naive one: sessions in place of subjects, folds as if they were independent. Exits 1 where an
interval of ours holds less than 93 % or more than 97 %, or a test of ours finds more than 6 %.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.bootstrap import standard_error
from bfp.metrics.classification import average_precision, balanced_accuracy, brier, f1, sensitivity_at
from bfp.metrics.over_folds import Figure, difference, over_folds
from bfp.metrics.paired import corrected_t, delong, plain_t, tested_beside

FOLDS, ALIKE, AUROC, LEVEL = 5, 0.7, 0.85, 0.05
FEATURES, SIGNAL, SHRINKAGE = 8, 0.45, 5.0
FIGURES: dict[str, Figure] = {
    "AUROC": weighted_auroc,
    "average precision": average_precision,
    "balanced accuracy": balanced_accuracy,
    "F1": f1,
    "sensitivity at 90 % specificity": sensitivity_at,
    "Brier score": brier,
}
RANKING = ("AUROC", "average precision")
OF_SUBJECTS, OF_SESSIONS = "over subjects", "over sessions (naive)"
OURS = {
    "given": ("bootstrap over subjects", "DeLong, subjects", "corrected t"),
    "trained": ("corrected t",),
}


class Design(NamedTuple):
    """Of n sessions: whose they are, their classes and their folds."""

    whose: np.ndarray
    classes: np.ndarray
    folds: np.ndarray

    @property
    def subjects(self) -> list[str]:
        return [f"s{number}" for number in self.whose]

    @property
    def sessions(self) -> list[str]:
        return [f"v{number}" for number in range(len(self.whose))]


def designed(random: np.random.Generator, *, subjects: int) -> Design:
    """Who is a patient is drawn too, as a cohort is; within each class subjects are dealt out over the folds."""
    ill = (random.random(subjects) < 0.5).astype(np.int64)
    fold = np.empty(subjects, np.int64)
    for k in (0, 1):
        fold[ill == k] = np.arange((ill == k).sum()) % FOLDS
    whose = np.repeat(np.arange(subjects), random.integers(1, 4, subjects))
    return Design(whose, ill[whose], fold[whose])


def noise(random: np.random.Generator, design: Design, *shape: int) -> np.ndarray:
    """Standard normal (n, …), alike within a subject."""
    own = random.normal(size=(design.whose.max() + 1, *shape))[design.whose]
    return np.sqrt(ALIKE) * own + np.sqrt(1 - ALIKE) * random.normal(size=(len(design.whose), *shape))


def as_probabilities(scores: np.ndarray) -> np.ndarray:
    return np.stack([1 - expit(scores), expit(scores)], axis=1)


def of_a_model(random: np.random.Generator, design: Design, shared: np.ndarray) -> np.ndarray:
    """Probabilities of a model of AUROC, half of whose noise is `shared` with another's."""
    distance = np.sqrt(2) * norm.ppf(AUROC)
    scores = distance * (design.classes - 0.5) + np.sqrt(0.5) * (shared + noise(random, design))
    return as_probabilities(scores * distance)  # which calibrates them


def of_trained_models(random: np.random.Generator, design: Design) -> np.ndarray:
    """Probabilities of ridge regression on features of its own, of each fold by the model that did not see it."""
    signal = SIGNAL * random.normal(size=FEATURES) / np.sqrt(FEATURES)
    features = 2 * (design.classes[:, None] - 0.5) * signal + noise(random, design, FEATURES)
    scores = np.empty(len(design.classes))
    for fold in range(FOLDS):
        train = design.folds != fold
        centre = features[train].mean(axis=0)
        x, y = features[train] - centre, design.classes[train] - design.classes[train].mean()
        weights = np.linalg.solve(x.T @ x + SHRINKAGE * np.eye(FEATURES), x.T @ y)
        scores[~train] = (features[~train] - centre) @ weights
    return as_probabilities(scores)


def intervals(seed: int, subjects: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    random = np.random.default_rng(seed)
    design = designed(random, subjects=subjects)
    said = of_a_model(random, design, noise(random, design))
    found = {}
    for name, figure in FIGURES.items():
        for way, units in ((OF_SUBJECTS, design.subjects), (OF_SESSIONS, design.sessions)):
            folds = design.folds if name in RANKING else np.zeros_like(design.folds)
            mean = over_folds(figure, design.classes, said, folds=folds, subjects=units, seed=seed).mean
            assert mean.value is not None
            assert mean.low is not None
            assert mean.high is not None
            found[name, way] = mean.value, mean.low, mean.high
    return found


def findings(seed: int, subjects: int) -> list[tuple[str, str]]:
    """Which tests found a difference, by the kind of study."""
    random = np.random.default_rng(seed)
    found = []
    for kind in OURS:
        design = designed(random, subjects=subjects)
        if kind == "given":
            shared = noise(random, design)
            ours, theirs = (of_a_model(random, design, shared) for _ in range(2))
        else:
            ours, theirs = (of_trained_models(random, design) for _ in range(2))
        found += [(kind, test) for test, is_found in tested(design, ours, theirs, seed=seed) if is_found]
    return found


def tested(design: Design, ours: np.ndarray, theirs: np.ndarray, *, seed: int) -> Iterator[tuple[str, bool]]:
    by_fold, error = list[float | None](), None
    for way, units in (
        ("bootstrap over subjects", design.subjects),
        ("bootstrap over sessions (naive)", design.sessions),
    ):
        found = difference(weighted_auroc, design.classes, ours, theirs, folds=design.folds, subjects=units, seed=seed)
        assert found.mean.low is not None
        assert found.mean.high is not None
        yield way, not found.mean.low <= 0 <= found.mean.high
        if units == design.subjects:
            by_fold, error = found.folds, standard_error(found.mean)
    for way, units in (("DeLong, subjects", design.subjects), ("DeLong, sessions (naive)", design.sessions)):
        test = delong(design.classes == 1, ours[:, 1], theirs[:, 1], folds=design.folds, subjects=units)
        yield way, test.p is not None and test.p < LEVEL
    corrected = corrected_t(by_fold, beside=tested_beside(design.folds), least_error=error)
    for way, test in (("corrected t", corrected), ("plain t (naive)", plain_t(by_fold))):
        yield way, test.p is not None and test.p < LEVEL


def spread(work: Callable[[int, int], object], *, seed: int, studies: int, subjects: int) -> list[object]:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, range(seed, seed + studies), [subjects] * studies, chunksize=20))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    found: list[dict] = spread(intervals, seed=given.seed, studies=given.studies, subjects=given.subjects)  # type: ignore[assignment, type-arg]
    print(f"{given.studies:,} studies of {given.subjects} subjects\nintervals of 95 % that hold the expectation")
    for name, way in found[0]:
        values, low, high = np.array([each[name, way] for each in found]).T
        held = float(np.mean((low <= values.mean()) & (values.mean() <= high)))
        ours = way == OF_SUBJECTS
        wrong += ours and not 0.93 <= held <= 0.97
        print(f"  {name:32} {way:24} {held:6.1%}   (expected {values.mean():.3f})")
    counted = Counter(
        key
        for each in spread(findings, seed=given.seed, studies=given.studies, subjects=given.subjects)
        for key in each  # type: ignore[attr-defined]
    )
    for kind, ours in OURS.items():
        print(f"differences found at {LEVEL} between equals, {kind}")
        for test in [test for other, test in sorted(counted) if other == kind]:
            share = counted[kind, test] / given.studies
            wrong += test in ours and share > 0.06
            print(f"  {test:32} {share:6.1%}{'' if test in ours else '   (naive, or not made for this)'}")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
