"""The cells of a benchmark: which there are, the study of each, and running them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bfp.drivers.benchmark_material import Material, SegmentationMaterial, TaskMaterial
from bfp.drivers.finetune_material import learner_of
from bfp.finetuning.cells import Cell, dump_cell, load_cell, run_cell
from bfp.finetuning.covariates import covariate_vectors
from bfp.finetuning.crossvalidation import Study, digest_of, permuted
from bfp.finetuning.side_by_side import Job, side_by_side
from bfp.finetuning.site import SiteProbe, dump_probe, load_probe, numbered, probe_site
from bfp.runs import Run
from bfp.specs.benchmark import ATLAS, COVARIATES, HISTOGRAMS, PERMUTED, SITE, THRESHOLD, Benchmark

NOTHING_SHOWN = ""
"""The set of modalities of what sees no image."""


class CellKey(NamedTuple):
    """Which cell: of a task, of the seed with this number, learned with a share of the labels and a set of modalities,
    by its name."""

    approach: str
    task: str
    seed: int
    fraction: float
    shown: str


class Cost(NamedTuple):
    """Of what one approach made of the stacks for a set of modalities: how many stacks, and seconds of one worker."""

    stacks: int
    seconds: float


class Given(NamedTuple):
    """The vectors of a cell: of its sessions, (n, F); of the same with fewer modalities; of outside cohorts, (m, F)."""

    own: np.ndarray
    fewer: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """All that was computed. sites: by approach and task; costs: by approach and what was made, its vectors or the maps
    of a segmentation, for which set of modalities."""

    cells: dict[CellKey, Cell] = field(default_factory=dict)
    sites: dict[tuple[str, str], SiteProbe] = field(default_factory=dict)
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)


def beside(spec: Benchmark, material: Material) -> list[str]:
    """The approaches beside the encoders."""
    asked = {
        HISTOGRAMS: spec.baselines.histograms,
        COVARIATES: bool(spec.baselines.covariates),
        SITE: True,
        PERMUTED: spec.baselines.permuted,
        ATLAS: True,
        THRESHOLD: True,
    }
    return [name for name, wanted in asked.items() if wanted and any(_goes_with(name, task) for task in material.tasks)]


def _goes_with(approach: str, task: TaskMaterial) -> bool:
    """Whether there is such an approach to the task."""
    if isinstance(task, SegmentationMaterial):
        one_class = len(task.classes) == 1
        return approach not in (HISTOGRAMS, COVARIATES, SITE, PERMUTED) and (approach != THRESHOLD or one_class)
    return approach not in (ATLAS, THRESHOLD) and (approach != SITE or bool(task.site))


def keys_of(spec: Benchmark, material: Material, approach: str, *, of: Sequence[TaskMaterial]) -> Iterator[CellKey]:
    """The cells of an approach, of these tasks. Lots and sites are judged with the most labels only."""
    fractions = sorted(spec.label_fractions)
    if approach in (PERMUTED, SITE):
        fractions = fractions[-1:]
    shown = [NOTHING_SHOWN] if approach in (COVARIATES, SITE, ATLAS) else [own.name for own in material.sets]
    for task in of:
        if not _goes_with(approach, task):
            continue
        for seed in range(spec.seeds):
            for fraction in fractions:
                for name in shown:
                    yield CellKey(approach, task.name, seed, fraction, name)


def study_of(spec: Benchmark, material: Material, key: CellKey) -> Study:
    task = material.task(key.task)
    study = Study(
        learner=learner_of(task.learned),
        targets=task.labelled.targets,
        persons=task.labelled.persons,
        folds=task.folds[key.seed],
        strengths=list(spec.regularisation),
        seed=spec.seed + key.seed,
        fraction=key.fraction,
    )
    return permuted(study) if key.approach == PERMUTED else study


def targets_of(spec: Benchmark, material: Material, key: CellKey) -> np.ndarray:
    """What a cell is judged against, (n, …): lots against what was drawn."""
    drawn_lots = key.approach == PERMUTED
    return study_of(spec, material, key).targets if drawn_lots else material.task(key.task).labelled.targets


def run_cells(
    spec: Benchmark,
    run: Run,
    material: Material,
    keys: list[CellKey],
    given: Mapping[tuple[str, str], Given],
    *,
    at_once: int,
) -> dict[CellKey, Cell]:
    """given: by the name of the task and of the set of modalities that is learned with."""
    jobs = {}
    for key in keys:
        study, own = study_of(spec, material, key), given[key.task, key.shown]
        told = [*own.fewer, *own.outside]
        digest = digest_of(study, own.own, *own.fewer.values(), *own.outside.values(), told=told)
        jobs[key] = Job(run.folder / "cells" / f"{key.approach}-{digest}.safetensors", (study, *own))
    return side_by_side(
        run_cell,
        jobs,
        dump=dump_cell,
        load=load_cell,
        unit="cell",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=at_once,
    )


def without_images(task: TaskMaterial, approach: str) -> Given:
    """The vectors of covariates or of the site."""
    columns = task.covariates if approach == COVARIATES else task.site
    return Given(covariate_vectors(columns), {}, {})


def probe_sites(
    spec: Benchmark,
    run: Run,
    material: Material,
    approach: str,
    vectors: Mapping[str, np.ndarray],
    *,
    at_once: int,
) -> dict[tuple[str, str], SiteProbe]:
    """vectors: by task, with all modalities. On the folds of the first seed, with all labels."""
    jobs = {}
    for name, own in vectors.items():
        key = CellKey(approach, name, 0, 1.0, material.everything.name)
        study, (sites, _) = study_of(spec, material, key), numbered(*material.task(name).site.values())
        digest = digest_of(study, own, sites)
        jobs[approach, name] = Job(run.folder / "sites" / f"{approach}-{digest}.safetensors", (study, sites, own))
    return side_by_side(
        probe_site,
        jobs,
        dump=dump_probe,
        load=load_probe,
        unit="probe",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=at_once,
    )
