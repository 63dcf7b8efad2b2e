"""The segmentations of a benchmark: what sessions give a decoder, kept for all of an encoder's cells, and the cells.

A cell is a cross-validation by decoders (`bfp.finetuning.segmentation_cells`), each of whose folds is a job of its own:
one takes minutes, where that of a head takes less than a second. Beside the encoders stand the atlas and, of one class,
the best grey threshold; they read pixels and labels alone, from the files of whichever encoder comes first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np

from bfp.drivers.benchmark_cells import NOTHING_SHOWN, CellKey, Cost, Found
from bfp.drivers.benchmark_material import Material, SegmentationMaterial
from bfp.drivers.segmentation_material import labels_seen
from bfp.features.kept import Extraction
from bfp.features.token_maps import TokenMaps
from bfp.finetuning.cells import Cell
from bfp.finetuning.segmentation import Approach, Recipe
from bfp.finetuning.segmentation_cells import dump_cell_fold, load_cell_fold, run_cell_fold, whole
from bfp.finetuning.side_by_side import Job, side_by_side
from bfp.finetuning.splits import few
from bfp.models.decoder import blocks_of
from bfp.models.encoder import LoadedEncoder
from bfp.runs import Run
from bfp.specs.benchmark import ATLAS, THRESHOLD, Benchmark
from bfp.storage import Place

FORMAT = 2
"""Of kept folds."""

Maps = dict[tuple[str, str, str], list[Place]]
"""The kept files of sessions, by task, set of modalities and cohort ("": the store)."""


def token_maps(
    run: Run, material: Material, found: Found, extraction: Extraction, name: str, encoder: LoadedEncoder
) -> Maps:
    """The files of an encoder, for every set of modalities."""
    wanted = {
        (task.name, shown.name, cohort): task.showing(shown, cohort)
        for task in material.segmentations
        for shown in material.sets
        for cohort in task.studies
    }
    run.phase(f"maps: {name}", total=sum(index.num_rows for index in wanted.values()), unit="stacks")
    maps, before = Maps(), 0
    for task in material.segmentations:
        described = TokenMaps(encoder, blocks_of(task.task.decoder.layers, depth=encoder.description["depth"]))
        for shown in material.sets:
            for cohort, study in task.studies.items():
                index = wanted[task.name, shown.name, cohort]
                maps[task.name, shown.name, cohort] = extraction.token_maps(
                    material.all_stacks[cohort].store,
                    index,
                    described,
                    study.labels,
                    shown=shown.modalities,
                    kept=run.folder / "features",
                    on_done=lambda done, before=before: run.progress(before + done),  # type: ignore[misc]
                    stopping=lambda: run.stopping,
                )
                before += index.num_rows
            stacks = sum(wanted[task.name, shown.name, cohort].num_rows for cohort in task.studies)
            found.costs[name, f"{task.name}: {shown.name}"] = Cost(stacks, None)
    return maps


def run_segmentations(
    spec: Benchmark, run: Run, material: Material, keys: list[CellKey], maps: Maps, *, at_once: int, gpus: float
) -> dict[CellKey, Cell]:
    """The cells of an approach; warns of sessions that could not be compared in native space."""
    jobs = {
        (key, fold): _job(spec, run, material, key, fold, maps, device="cuda" if gpus else "cpu")
        for key in keys
        for fold in range(spec.folds)
    }
    done = side_by_side(
        run_cell_fold,
        jobs,
        dump=dump_cell_fold,
        load=load_cell_fold,
        unit="fold",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=at_once,
        gpus_each=gpus,
    )
    found = {}
    for key in keys:
        folds = [done[key, fold] for fold in range(spec.folds)]
        found[key] = whole(folds, count=len(material.task(key.task).labelled.sessions))
    if working := sum(fold.working for fold in done.values()):
        run.warn(
            f"{keys[0].approach}: {working:,} comparisons were made in the working grid of the stacks, not in native "
            "space: the file of the labels is not there any more, or has changed since the store was made"
        )
    return found


def _job(spec: Benchmark, run: Run, material: Material, key: CellKey, fold: int, maps: Maps, *, device: str) -> Job:
    task = material.task(key.task)
    assert isinstance(task, SegmentationMaterial)
    learned = next((shown for shown in material.sets if shown.name == key.shown), material.everything)
    approach: Approach = key.approach if key.approach in (ATLAS, THRESHOLD) else "encoder"  # type: ignore[assignment]
    study = replace(task.studies[""], folds=task.folds[key.seed])
    chosen = few(
        task.labelled.targets,
        persons=task.labelled.persons,
        among=study.folds != fold,
        fraction=key.fraction,
        seed=spec.seed + key.seed,
    )
    fewer = {
        shown.name: maps[task.name, shown.name, ""]
        for shown in material.sets
        if key.shown != NOTHING_SHOWN and shown.is_part_of(learned)
    }
    outside = {
        cohort: (other, maps[task.name, learned.name, cohort]) for cohort, other in task.studies.items() if cohort
    }
    recipe = Recipe(**task.task.decoder.model_dump(), seed=spec.seed + key.seed)
    own = maps[task.name, learned.name, ""]
    content = [
        FORMAT,
        approach,
        asdict(recipe),
        [fold, study.folds.tolist(), np.flatnonzero(chosen).tolist()],
        _names({"": own, **fewer}),
        _names({cohort: files for cohort, (_, files) in outside.items()}),
        [labels_seen(other) for other in task.studies.values()],
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return Job(
        run.folder / "cells" / f"{key.approach}-{fold}-{digest}.safetensors",
        (study, approach, fold, chosen, own, fewer, outside, recipe, device),
    )


def _names(files: Mapping[str, list[Place]]) -> dict[str, list[str]]:
    """They are named by their content."""
    return {name: [file.name for file in own] for name, own in files.items()}
