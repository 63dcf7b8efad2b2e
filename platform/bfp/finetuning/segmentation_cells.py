"""A cell of a benchmark that segments, fold by fold: a decoder, learned with some labels and some modalities.

As of a session's vector (`cells`) it says what is asked of it: of the tested sessions as they are, of the same sessions
with fewer modalities shown, and of the sessions of outside cohorts. What is kept of each is not the mask but how well
it agrees with what was drawn, in native space: a row of numbers, NaN where one is undefined.

Letters: t tested sessions of n, m sessions of an outside cohort, J folds, K classes; a row holds 3·K columns
(`bfp.metrics.segmentation.columns_of`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from bfp.features.token_maps import open_maps
from bfp.finetuning.cells import Cell, parted, prefixed
from bfp.finetuning.segmentation import Approach, Recipe, Segmented, judge, learn
from bfp.metrics.segmentation import COLUMNS, columns_of
from bfp.models.tensor_files import header_of
from bfp.storage import Place


@dataclass(frozen=True, slots=True, eq=False)
class CellFold:
    """said: float64 (t, 3·K) of the sessions `tested`, int64 (t,); fewer: the same, by the set of modalities; outside:
    (m, 3·K), by cohort. subjects, sessions: that were learned from; seconds: of one CPU, or GPU.

    working: why sessions could not be compared in the drawn file, but in the stacks' grid alone; by their names.
    """

    tested: np.ndarray
    said: np.ndarray
    fewer: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]
    subjects: int
    sessions: int
    working: dict[str, str]
    seconds: float


def run_cell_fold(
    study: Segmented,
    approach: Approach,
    fold: int,
    chosen: np.ndarray,
    maps: Sequence[Place],
    fewer: Mapping[str, Sequence[Place]],
    outside: Mapping[str, tuple[Segmented, Sequence[Place]]],
    recipe: Recipe,
    device: str,
) -> CellFold:
    """Learn from the chosen sessions, bool (n,), none of which the fold tests.

    maps: the kept file of each session, all shown; fewer: the same sessions with less shown; outside: those of others.
    """
    began = time.perf_counter()
    learned_from, tested = np.flatnonzero(chosen), np.flatnonzero(study.folds == fold)
    training = [open_maps(maps[int(number)]) for number in learned_from]
    learned = learn(approach, training, recipe, class_count=study.class_count, device=device)
    working = dict[str, str]()

    def of(where: Segmented, files: Sequence[Place], *, cohort: str = "") -> np.ndarray:
        rows = []
        for number in range(len(where.sessions)) if cohort else tested.tolist():
            session = open_maps(files[number])
            score, _ = judge(where, number, session, learned.maps_of(session))
            rows.append(columns_of(score.overlaps))
            if score.space != "native":
                working[" ".join(filter(None, (cohort, *where.sessions[number])))] = score.why
        return np.array(rows).reshape(len(rows), COLUMNS * study.class_count)

    return CellFold(
        tested=tested,
        said=of(study, maps),
        fewer={name: of(study, files) for name, files in fewer.items()},
        outside={name: of(where, files, cohort=name) for name, (where, files) in outside.items()},
        subjects=len({(study.sessions[number].cohort, study.sessions[number].subject) for number in learned_from}),
        sessions=len(learned_from),
        working=working,
        seconds=time.perf_counter() - began,
    )


def whole(folds: Sequence[CellFold], *, count: int) -> Cell:
    """The folds of a cell as one, `count` sessions in their order."""

    def of_tested(pieces: Sequence[np.ndarray]) -> np.ndarray:
        found = np.empty((count, pieces[0].shape[1]))
        for fold, piece in zip(folds, pieces, strict=True):
            found[fold.tested] = piece
        return found

    return Cell(
        said=of_tested([fold.said for fold in folds]),
        fewer={name: of_tested([fold.fewer[name] for fold in folds]) for name in folds[0].fewer},
        outside={name: np.stack([fold.outside[name] for fold in folds]) for name in folds[0].outside},
        subjects=np.array([fold.subjects for fold in folds]),
        sessions=np.array([fold.sessions for fold in folds]),
        seconds=sum(fold.seconds for fold in folds),
    )


def dump_cell_fold(fold: CellFold) -> bytes:
    tensors = {"tested": fold.tested, "said": fold.said, **prefixed(fold.fewer, fold.outside)}
    tensors |= {"counts": np.array([fold.subjects, fold.sessions]), "seconds": np.array([fold.seconds])}
    return safetensors.numpy.save(tensors, metadata={"working": json.dumps(fold.working)})


def load_cell_fold(data: bytes) -> CellFold:
    tensors = safetensors.numpy.load(data)
    fewer, outside = parted(tensors)
    subjects, sessions = (int(each) for each in tensors["counts"])
    working = json.loads(header_of(data).metadata["working"])
    seconds = float(tensors["seconds"][0])
    return CellFold(tensors["tested"], tensors["said"], fewer, outside, subjects, sessions, working, seconds)
