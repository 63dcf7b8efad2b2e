"""A cell of a benchmark: what was learned from one approach's vectors, with some labels and some modalities.

A head for each fold, fitted once, says what is asked of it: of the tested sessions as they are, of the same sessions
with fewer modalities shown, and of the sessions of outside cohorts, which nothing was learned from.

Letters: n sessions of J folds, m sessions of an outside cohort, K columns of what is said, F length of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from bfp.finetuning.crossvalidation import Study

_FEWER, _OUTSIDE = "fewer.", "outside."


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """said: float64 (n, K), of each session by the head that did not see its subject; fewer: the same with other
    modalities shown, by their name; outside: (J, m, K) by each fold's head, by the cohort's name.

    subjects, sessions: int64 (J,), how many each head learned from; seconds: of one CPU.
    """

    said: np.ndarray
    fewer: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]
    subjects: np.ndarray
    sessions: np.ndarray
    seconds: float


def run_cell(
    study: Study, vectors: np.ndarray, fewer: Mapping[str, np.ndarray], outside: Mapping[str, np.ndarray]
) -> Cell:
    """vectors: (n, F) of the study's sessions; fewer: (n, F) each; outside: (m, F) each."""
    began, whose = time.perf_counter(), np.asarray(study.persons)
    chosen = [study.learned_from(fold) for fold in range(study.fold_count)]
    fitted = [study.fit(vectors, own) for own in chosen]
    say = study.learner.say

    def of_tested(own: np.ndarray) -> np.ndarray:
        pieces = [say(each.head, own[study.folds == fold]) for fold, each in enumerate(fitted)]
        found = np.empty((len(own), pieces[0].shape[1]))
        for fold, piece in enumerate(pieces):
            found[study.folds == fold] = piece
        return found

    return Cell(
        said=of_tested(vectors),
        fewer={name: of_tested(own) for name, own in fewer.items()},
        outside={name: np.stack([say(each.head, own) for each in fitted]) for name, own in outside.items()},
        subjects=np.array([len(set(whose[own])) for own in chosen]),
        sessions=np.array([int(own.sum()) for own in chosen]),
        seconds=time.perf_counter() - began,
    )


def dump_cell(cell: Cell) -> bytes:
    tensors = {name: getattr(cell, name) for name in ("said", "subjects", "sessions")}
    tensors |= prefixed(cell.fewer, cell.outside)
    return safetensors.numpy.save({**tensors, "seconds": np.array([cell.seconds])})


def load_cell(data: bytes) -> Cell:
    tensors = safetensors.numpy.load(data)
    fewer, outside = parted(tensors)
    own = {name: tensors[name] for name in ("said", "subjects", "sessions")}
    return Cell(**own, fewer=fewer, outside=outside, seconds=float(tensors["seconds"][0]))


def prefixed(fewer: Mapping[str, np.ndarray], outside: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a cell says of less and of others, under names of tensors."""
    return {_FEWER + name: own for name, own in fewer.items()} | {_OUTSIDE + name: own for name, own in outside.items()}


def parted(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inverse of `prefixed`, among other tensors."""
    fewer, outside = (
        {name.removeprefix(start): own for name, own in tensors.items() if name.startswith(start)}
        for start in (_FEWER, _OUTSIDE)
    )
    return fewer, outside
