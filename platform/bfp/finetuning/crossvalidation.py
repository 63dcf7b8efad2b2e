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
import safetensors.numpy

from bfp.finetuning.heads import FittedHead, Learner, fit_head
from bfp.finetuning.side_by_side import Job, side_by_side
from bfp.finetuning.splits import few
from bfp.models.linear import LinearHead
from bfp.storage import Place

FORMAT = 2
"""Of what is kept of a study: raised where the same inputs come to something else."""


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What every approach is judged on: n sessions, each tested in one fold.

    targets: what is learned of each, as `learner` takes it, (n,) or (n, …); persons: whose session it is; folds: int64
    (n,); strengths: the values of C to choose from; fraction: of the training subjects, whose labels are used.
    """

    learner: Learner
    targets: np.ndarray
    persons: list[str]
    folds: np.ndarray
    strengths: list[float]
    seed: int
    fraction: float = 1.0

    @property
    def fold_count(self) -> int:
        return int(self.folds.max()) + 1

    def learned_from(self, fold: int) -> np.ndarray:
        """bool (n,): the sessions that the head of a fold learns from."""
        others = self.folds != fold
        if self.fraction == 1:
            return others
        kept = few(
            self.learner.dealt(self.targets), persons=self.persons, among=others, fraction=self.fraction, seed=self.seed
        )
        return others & kept

    def fit(self, vectors: np.ndarray, chosen: np.ndarray) -> FittedHead:
        """A head for some of the sessions. vectors: (n, F) of all; chosen: bool (n,)."""
        return fit_head(
            self.learner,
            vectors[chosen],
            self.targets[chosen],
            persons=[self.persons[n] for n in np.flatnonzero(chosen)],
            strengths=self.strengths,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class FoldResult:
    """One fold of one approach. tested: int64 (t,), which sessions; said: float64 (t, K), what the head says of
    them."""

    head: LinearHead
    strength: float
    tested: np.ndarray
    said: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One approach over all folds.

    targets: (n, …), what it is judged against; said: float64 (n, K), of each session by the head that did not see its
    subject.
    """

    targets: np.ndarray
    said: np.ndarray
    folds: list[FoldResult]


def run_fold(study: Study, vectors: np.ndarray, fold: int) -> FoldResult:
    """Fit without one fold and predict it."""
    tested = study.folds == fold
    head, strength = study.fit(vectors, study.learned_from(fold))
    return FoldResult(head, strength, np.flatnonzero(tested), study.learner.say(head, vectors[tested]))


def permuted(study: Study) -> Study:
    """The same study of targets for which the subjects of each fold have drawn lots.

    A subject whose sessions are all alike takes the target of another such subject; one of several targets takes those
    of another one with as many sessions. So sessions stay as alike as they were, and each fold keeps its subjects of
    each class. Heads learn the drawn targets and are judged against them: whatever they tell of those is chance, or a
    fault of the study.
    """
    random = np.random.default_rng([study.seed, study.fold_count])
    whose = np.unique(np.asarray(study.persons), return_inverse=True)[1]
    sessions_of = [np.flatnonzero(whose == person) for person in range(whose.max() + 1)]
    alike: dict[tuple[int, int], list[int]] = {}
    for person, own in enumerate(sessions_of):
        several = len(np.unique(study.targets[own], axis=0)) > 1
        alike.setdefault((int(study.folds[own[0]]), len(own) if several else 0), []).append(person)
    targets = study.targets.copy()
    for people in alike.values():
        for person, other in zip(people, random.permutation(people), strict=True):
            own, theirs = sessions_of[person], sessions_of[other]
            targets[own] = study.targets[theirs[np.arange(len(own)) % len(theirs)]]
    return replace(study, targets=targets)


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
    jobs = {
        (name, fold): Job(kept / f"{name}-{fold}-{digest}.safetensors", (studies[name], vectors, fold))
        for name, vectors in approaches.items()
        for digest in [digest_of(studies[name], vectors)]
        for fold in range(study.fold_count)
    }
    done = side_by_side(
        run_fold,
        jobs,
        dump=dump_fold,
        load=load_fold,
        unit="fold",
        on_done=on_done,
        stopping=stopping,
        at_once=at_once,
    )
    return {name: gather([done[name, fold] for fold in range(study.fold_count)], studies[name]) for name in approaches}


def gather(folds: Sequence[FoldResult], study: Study) -> Judged:
    """The folds' predictions in the order of the sessions."""
    said = np.full((len(study.persons), folds[0].said.shape[1]), np.nan)
    for fold in folds:
        said[fold.tested] = fold.said
    assert np.isfinite(said).all(), "a session was tested in no fold"
    return Judged(study.targets, said, list(folds))


def dump_fold(fold: FoldResult) -> bytes:
    own = {"tested": fold.tested, "said": fold.said, "strength": np.array([fold.strength])}
    return safetensors.numpy.save({**fold.head.tensors(), **own})


def load_fold(data: bytes) -> FoldResult:
    tensors = safetensors.numpy.load(data)
    head = LinearHead.from_tensors(tensors)
    return FoldResult(head, float(tensors["strength"][0]), tensors["tested"], tensors["said"])


def digest_of(study: Study, *arrays: np.ndarray, told: Sequence[str] = ()) -> str:
    """A hash of all that comes of a study on these vectors. told: what else names them."""
    digest = hashlib.sha256()
    for array in (*arrays, study.targets, study.folds):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    plain = [FORMAT, study.persons, repr(study.learner), study.strengths, study.seed, study.fraction, *told]
    digest.update(json.dumps(plain).encode())
    return digest.hexdigest()[:16]
