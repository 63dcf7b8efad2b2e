"""Cross-validation: a head for each fold, fitted without the subjects that it is tested on, side by side on Ray.

Several approaches (the encoder, the same one untrained, histograms, covariates) are judged on the same sessions and
folds. A fold that is done is kept under the hash of everything that went into it, so that a stopped run goes on with
the next one and a changed input is never mistaken for an old one:

    <kept>/<approach>-<fold>-<hash>.safetensors    the head, the sessions it was tested on, and what it said of them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray
import safetensors.numpy

from bfp.errors import Interrupted
from bfp.finetuning.logistic import FittedHead, fit_head
from bfp.models.linear import LinearHead
from bfp.storage import Place


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What every approach is judged on: n sessions of class_count classes, each tested in one fold.

    classes: int64 (n,); persons: whose session it is; folds: int64 (n,); strengths: the values of C to choose from.
    """

    classes: np.ndarray
    persons: list[str]
    folds: np.ndarray
    class_count: int
    strengths: list[float]
    seed: int

    @property
    def fold_count(self) -> int:
        return int(self.folds.max()) + 1

    def fit(self, vectors: np.ndarray, chosen: np.ndarray) -> FittedHead:
        """A head for some of the sessions. vectors: (n, F) of all; chosen: bool (n,)."""
        return fit_head(
            vectors[chosen],
            self.classes[chosen],
            persons=[self.persons[n] for n in np.flatnonzero(chosen)],
            class_count=self.class_count,
            strengths=self.strengths,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class FoldResult:
    """One fold of one approach. tested: int64 (t,), which sessions; probabilities: float64 (t, K)."""

    head: LinearHead
    strength: float
    tested: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One approach over all folds.

    classes: int64 (n,), what it is judged against; probabilities: float64 (n, K), each session's from the head that did
    not see its subject.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    folds: list[FoldResult]


def run_fold(study: Study, vectors: np.ndarray, fold: int) -> FoldResult:
    """Fit without one fold and predict it."""
    tested = study.folds == fold
    head, strength = study.fit(vectors, ~tested)
    return FoldResult(head, strength, np.flatnonzero(tested), head.probabilities(vectors[tested]))


def permuted(study: Study) -> Study:
    """The same study of classes for which the subjects of each fold have drawn lots.

    A subject of one class takes that of another such subject; one of several classes takes those of another one with as
    many sessions. So sessions stay as alike as they were, and each fold keeps its subjects of each class. Heads learn
    the drawn classes and are judged against them: whatever they tell of those is chance, or a fault of the study.
    """
    random = np.random.default_rng([study.seed, study.fold_count])
    whose = np.unique(np.asarray(study.persons), return_inverse=True)[1]
    sessions_of = [np.flatnonzero(whose == person) for person in range(whose.max() + 1)]
    alike: dict[tuple[int, int], list[int]] = {}
    for person, own in enumerate(sessions_of):
        several = len(set(study.classes[own].tolist())) > 1
        alike.setdefault((int(study.folds[own[0]]), len(own) if several else 0), []).append(person)
    classes = study.classes.copy()
    for people in alike.values():
        for person, other in zip(people, random.permutation(people), strict=True):
            classes[sessions_of[person]] = np.resize(study.classes[sessions_of[other]], len(sessions_of[person]))
    return replace(study, classes=classes)


def cross_validate(
    study: Study,
    approaches: Mapping[str, np.ndarray],
    *,
    by_lot: Collection[str] = (),
    kept: Place,
    on_done: Callable[[int], None],
    stopping: Callable[[], bool],
    at_once: int,
) -> dict[str, Judged]:
    """Every fold of every approach, `at_once` of them at a time, one CPU each.

    approaches: name -> vectors (n, F); by_lot: those that are of the `permuted` study. on_done hears how many
    folds are done.
    Raises Interrupted, with what stands kept, when `stopping` says so.
    """
    studies = {name: permuted(study) if name in by_lot else study for name in approaches}
    files = {
        (name, fold): kept / f"{name}-{fold}-{digest}.safetensors"
        for name, vectors in approaches.items()
        for digest in [_digest(studies[name], vectors)]
        for fold in range(study.fold_count)
    }
    done = {key: load_fold(file.read()) for key, file in files.items() if file.exists()}
    on_done(len(done))
    waiting = [key for key in files if key not in done]
    shared_studies = {name: ray.put(own) for name, own in studies.items()}
    shared_vectors = {name: ray.put(approaches[name]) for name in dict.fromkeys(name for name, _ in waiting)}
    remote_fold = ray.remote(num_cpus=1)(run_fold)
    running: dict[ray.ObjectRef, tuple[str, int]] = {}
    while waiting or running:
        if stopping():
            raise Interrupted(f"stopped after {len(done)} of {len(files)} folds; submit it again to go on")
        while waiting and len(running) < at_once:
            name, fold = waiting.pop(0)
            running[remote_fold.remote(shared_studies[name], shared_vectors[name], fold)] = (name, fold)
        ready, _ = ray.wait(list(running), timeout=0.5)
        for reference in ready:
            key = running.pop(reference)
            done[key] = ray.get(reference)
            files[key].write(dump_fold(done[key]))
            on_done(len(done))
    return {name: gather([done[name, fold] for fold in range(study.fold_count)], studies[name]) for name in approaches}


def gather(folds: Sequence[FoldResult], study: Study) -> Judged:
    """The folds' predictions in the order of the sessions."""
    probabilities = np.full((len(study.classes), study.class_count), np.nan)
    for fold in folds:
        probabilities[fold.tested] = fold.probabilities
    assert np.isfinite(probabilities).all(), "a session was tested in no fold"
    return Judged(study.classes, probabilities, list(folds))


def dump_fold(fold: FoldResult) -> bytes:
    own = {"tested": fold.tested, "probabilities": fold.probabilities, "strength": np.array([fold.strength])}
    return safetensors.numpy.save({**fold.head.tensors(), **own})


def load_fold(data: bytes) -> FoldResult:
    tensors = safetensors.numpy.load(data)
    head = LinearHead.from_tensors(tensors)
    return FoldResult(head, float(tensors["strength"][0]), tensors["tested"], tensors["probabilities"])


def _digest(study: Study, vectors: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (vectors, study.classes, study.folds):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps([study.persons, study.class_count, study.strengths, study.seed]).encode())
    return digest.hexdigest()[:16]
