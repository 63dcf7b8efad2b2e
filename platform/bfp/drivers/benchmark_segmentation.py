"""The segmentations of a benchmark: what sessions give a decoder, kept for all of an encoder's cells, and the cells.

A cell is a cross-validation by decoders (`bfp.finetuning.segmentation_cells`), each of whose folds is a job of its own:
one takes minutes, where that of a head takes less than a second. Beside the encoders stand the atlas and, of one class,
the best grey threshold; they read pixels and labels alone, from the files of whichever encoder comes first.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from bfp.drivers.benchmark_cells import NOTHING_SHOWN, CellKey, Cost, Found
from bfp.drivers.benchmark_material import Material
from bfp.drivers.segmentation_material import labels_seen
from bfp.features.kept import Extraction
from bfp.features.token_maps import TokenMaps, plan_sessions, seconds_of
from bfp.finetuning.cells import Cell
from bfp.finetuning.segmentation import FORMAT, Approach, Recipe
from bfp.finetuning.segmentation_cells import CellFold, dump_cell_fold, load_cell_fold, run_cell_fold, whole
from bfp.finetuning.side_by_side import Job, side_by_side
from bfp.finetuning.splits import few
from bfp.models.decoder import blocks_of
from bfp.models.encoder import LoadedEncoder
from bfp.runs import Run
from bfp.specs.benchmark import ATLAS, THRESHOLD, Benchmark
from bfp.storage import Place
from bfp.words import counted

Maps = dict[tuple[str, str, str], list[Place]]
"""The kept files of sessions, by task, set of modalities and cohort ("": the store)."""


class Inputs(NamedTuple):
    """What cells are named by, beside the tokens. seen: by task, of each of its studies, as of `labels_seen`; pixels:
    the sessions' names by their stacks and labels alone, as of `Maps`: all that an atlas or a threshold looks at."""

    seen: dict[str, list[list[list[Any]]]]
    pixels: dict[tuple[str, str, str], list[str]]


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
            took = sum(seconds_of(maps[task.name, shown.name, cohort]) for cohort in task.studies)
            found.costs[name, f"{task.name}: {shown.name}"] = Cost(stacks, took)
    return maps


def inputs_of(material: Material) -> Inputs:
    """Asks the storage for every file that a session was drawn in: once in a run."""
    inputs = Inputs({}, {})
    for task in material.segmentations:
        inputs.seen[task.name] = [labels_seen(study) for study in task.studies.values()]
        for shown in material.sets:
            for cohort, study in task.studies.items():
                store, index = material.all_stacks[cohort].store, task.showing(shown, cohort)
                rows = plan_sessions(store, index, study.labels, identity="pixels", shown=shown.modalities)
                inputs.pixels[task.name, shown.name, cohort] = [each.name for each in rows]
    return inputs


def run_segmentations(
    spec: Benchmark,
    run: Run,
    material: Material,
    keys: list[CellKey],
    maps: Maps,
    inputs: Inputs,
    *,
    at_once: int,
    gpus: float,
) -> dict[CellKey, Cell]:
    """The cells of some approaches; warns of sessions that could not be compared in native space."""
    done = side_by_side(
        run_cell_fold,
        {
            (key, fold): _job(spec, run, material, key, fold, maps, inputs, gpus=gpus)
            for key in keys
            for fold in range(spec.folds)
        },
        dump=dump_cell_fold,
        load=load_cell_fold,
        unit="fold",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=at_once,
    )
    folds = {key: [done[key, fold] for fold in range(spec.folds)] for key in keys}
    _warn_of_working(run, folds)
    return {key: whole(own, count=len(material.task(key.task).labelled.sessions)) for key, own in folds.items()}


def _warn_of_working(run: Run, folds: Mapping[CellKey, list[CellFold]]) -> None:
    """Of the sessions that were not compared in native space: in which task, by which approaches, and why."""
    approaches = ", ".join(dict.fromkeys(key.approach for key in folds))
    for task in dict.fromkeys(key.task for key in folds):
        why = dict[str, str]()
        for key, own in folds.items():
            for fold in own if key.task == task else ():
                why |= fold.working
        for reason, count in Counter(why.values()).items():
            run.warn(
                f"{task}: {counted(count, 'session')} judged in the working grid of the stacks, not in native space "
                f"({approaches}): {reason}"
            )


def _job(
    spec: Benchmark,
    run: Run,
    material: Material,
    key: CellKey,
    fold: int,
    maps: Maps,
    inputs: Inputs,
    *,
    gpus: float,
) -> Job:
    task = material.segmentation(key.task)
    learned = next((shown for shown in material.sets if shown.name == key.shown), material.everything)
    fewer = [shown.name for shown in material.sets if key.shown != NOTHING_SHOWN and shown.is_part_of(learned)]
    outside = [cohort for cohort in task.studies if cohort]
    study = replace(task.studies[""], folds=task.folds[key.seed])
    chosen = few(
        task.labelled.targets,
        persons=task.labelled.persons,
        among=study.folds != fold,
        fraction=key.fraction,
        seed=spec.seed + key.seed,
    )
    recipe = Recipe(**task.task.decoder.model_dump(), seed=spec.seed + key.seed)
    sees_tokens = key.approach not in (ATLAS, THRESHOLD)
    own_gpus = min(1.0, gpus) if sees_tokens else 0.0
    approach: Approach = "encoder" if sees_tokens else key.approach  # type: ignore[assignment]

    def names(shown: str, cohort: str) -> list[str]:
        place = task.name, shown, cohort
        return [file.name for file in maps[place]] if sees_tokens else inputs.pixels[place]

    content = [
        FORMAT,
        approach,
        asdict(recipe) if sees_tokens else None,
        [fold, study.folds.tolist(), np.flatnonzero(chosen).tolist()],
        {name: names(name, "") for name in [learned.name, *fewer]},
        {cohort: names(learned.name, cohort) for cohort in outside},
        inputs.seen[task.name],
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    arguments = (
        study,
        approach,
        fold,
        chosen,
        maps[task.name, learned.name, ""],
        {name: maps[task.name, name, ""] for name in fewer},
        {cohort: (task.studies[cohort], maps[task.name, learned.name, cohort]) for cohort in outside},
        recipe,
        "cuda" if own_gpus else "cpu",
    )
    file = run.folder / "cells" / f"{key.approach}-{fold}-{digest}.safetensors"
    return Job(file, arguments, gpus=own_gpus)
