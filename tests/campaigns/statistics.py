"""Whether intervals hold the truth, and tests find differences, as often as they say; in simulated studies.

    python -m tests.campaigns.statistics [--studies 2000] [--subjects 60] [--seed 0]

A study has so many subjects, about half of them patients, of one to three sessions each which are alike (70 % of the
variance is the subject's), in 5 folds by subject.

Intervals  of every figure of a classification (a model that stands, AUROC 0.85), a regression (ages, R² about 0.6), a
           survival (a third are not followed to the event) and a segmentation (Dice, HD95; skewed, at times undefined).
           Counted: how often the interval holds the figure's expectation.
Tests      of two classifiers, in two kinds of studies. Counted: how often each finds a difference (0.05).
    given      both models stand, and have the same AUROC
    trained    two approaches, equally good by their making, each of whose models are fitted to the other folds'
               sessions. A test of two given models knows nothing of what training on other subjects would have made of
               them, and finds more than 5 %; the corrected t test is made for this.

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
from bfp.metrics.bootstrap import Interval, standard_error
from bfp.metrics.calibration import calibration
from bfp.metrics.measures import MEASURES
from bfp.metrics.over_folds import difference, over_folds
from bfp.metrics.paired import corrected_t, delong, plain_t, tested_beside
from bfp.metrics.segmentation import Overlap, columns_of

FOLDS, ALIKE, AUROC, LEVEL = 5, 0.7, 0.85, 0.05
FEATURES, SIGNAL, SHRINKAGE = 8, 0.45, 5.0
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


def classified(random: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray]:
    return design.classes, of_a_model(random, design, noise(random, design))


def aged(random: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Ages of 20 to 80 years, and what a model says that draws them to the mean and is 8 years off."""
    years = random.uniform(20, 80, design.whose.max() + 1)[design.whose]
    said = 50 + 0.7 * (years - 50) + 8 * noise(random, design)
    return years, said[:, None]


def followed(random: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Years from each session to the event, or to when the subject was last seen; sessions are half a year apart."""
    count = design.whose.max() + 1
    hazard, visit = random.normal(size=count), _visit_of(design)
    event_at, left_at = 2 + 5 * random.exponential(np.exp(-hazard)), 2 + random.uniform(0, 12, count)
    time = np.minimum(event_at, left_at)[design.whose] - 0.5 * visit
    said = hazard[design.whose] + noise(random, design)
    return np.stack([time, (event_at <= left_at)[design.whose]], axis=1), said[:, None]


def _visit_of(design: Design) -> np.ndarray:
    return np.arange(len(design.whose)) - np.searchsorted(design.whose, design.whose)


def overlapping(random: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Some structures are missed (Dice 0, no HD95), some are not there (neither; a mask is a false alarm)."""
    alike = noise(random, design)
    missed, absent = random.random((2, len(alike))) < [[0.05], [0.1]]
    found = [
        Overlap(
            dice=None if out else 0.0 if nothing else expit(1.2 + 0.7 * of),
            hd95_mm=None if out or nothing else np.exp(2 - 0.7 * of),
            predicted_ml=0.0 if nothing else 1.0,
            drawn_ml=0.0 if out else 1.0,
        )
        for of, nothing, out in zip(alike, missed, absent, strict=True)
    ]
    return design.classes, np.array([columns_of([each]) for each in found])


MADE = {"classification": classified, "regression": aged, "survival": followed, "segmentation": overlapping}


def intervals(seed: int, subjects: int) -> dict[tuple[str, str], Interval]:
    """By figure, and over whom the interval is."""
    random = np.random.default_rng(seed)
    design = designed(random, subjects=subjects)
    made = {task: make(random, design) for task, make in MADE.items()}
    found = dict[tuple[str, str], Interval]()
    for way, units in ((OF_SUBJECTS, design.subjects), (OF_SESSIONS, design.sessions)):
        for task, (truth, said) in made.items():
            for measure in (MEASURES[task].first, *MEASURES[task].further):
                folds = design.folds if measure.by_fold else np.zeros_like(design.folds)
                of_all = over_folds(measure.figure, truth, said, folds=folds, subjects=units, seed=seed)
                found[measure.label, way] = of_all.mean
        classes, said = made["classification"]
        of_patients = calibration(classes == 1, said[:, 1], subjects=units, seed=seed)
        found["calibration in the large", way] = of_patients.in_the_large
        found["calibration slope", way] = of_patients.slope
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
        values, low, high = np.array([each[name, way] for each in found], dtype=np.float64).T  # None: NaN
        said, expected = np.isfinite(low), np.nanmean(values)
        held = float(np.mean((low <= expected)[said] & (expected <= high)[said]))
        ours = way == OF_SUBJECTS
        wrong += ours and not 0.93 <= held <= 0.97
        silent = f"; no interval in {np.mean(~said):.1%}" if not said.all() else ""
        print(f"  {name:32} {way:24} {held:6.1%}   (expected {expected:.3f}{silent})")
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
