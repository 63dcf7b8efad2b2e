"""kind: benchmark — encoders x tasks x label fractions x modalities x seeds x outside cohorts, the paper's protocol.

1. of each task the sessions that have stacks of every set of modalities, and of each seed their folds
2. encoder by encoder: the vectors of its stacks for every set of modalities, computed once and kept; then its cells
   side by side, each a cross-validation by frozen heads that are also tested on sessions of which less is shown, and
   on outside cohorts (`bfp.finetuning.cells`); then how well its vectors tell sites apart (`bfp.finetuning.site`)
3. beside the encoders: histograms, covariates alone, the site alone, and the vectors of ours with permuted labels
4. a segmentation is learned slice by slice: each encoder's patch tokens are computed once and kept, its cells are
   cross-validations by decoders (`benchmark_segmentation`), and beside them stand an atlas and a grey threshold
5. the rows of the table, each with its interval over subjects and by how much ours is better (`benchmark_figures`)

What an encoder needs is forgotten before the next one begins, so that memory holds the vectors of one.

<run>/features/    vectors of stacks, tokens      <run>/results.csv    the table, every digit
<run>/cells/       cells that are done            <run>/results.md     the same for people
<run>/rows/        rows that are done             <run>/folds/         the split of each task and seed
<run>/sites/       site probes that are done
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bfp.drivers.acquaintance import Acquaintance, acquaintance, scans_of
from bfp.drivers.benchmark_material import Material, SegmentationMaterial, TaskMaterial, in_words, material_of
from bfp.drivers.finetune_material import classes_of, doubts_of
from bfp.drivers.finetune_vectors import POSITION_BANDS
from bfp.drivers.gpus import gpus_of
from bfp.drivers.plan import Capacity, Plan, capacity_here
from bfp.drivers.segmentation_material import split_csv
from bfp.drivers.stores import loading, pin_inputs, warnings_of
from bfp.runs import Run
from bfp.specs.benchmark import ATLAS, COVARIATES, HISTOGRAMS, PERMUTED, SITE, THRESHOLD, Benchmark
from bfp.specs.encoders import parse_encoder
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.drivers.benchmark_cells import Found
    from bfp.drivers.benchmark_segmentation import Inputs, Maps
    from bfp.features.describe import Describe
    from bfp.features.kept import Extraction
    from bfp.models.encoder import LoadedEncoder
    from bfp.models.pooling import Pooling

    Vectors = dict[tuple[str, str], pa.Table]  # by set of modalities and cohort ("": the store)


def plan(spec: Benchmark, *, capacity: Capacity | None = None) -> Plan:
    """Opens the stores and the labels: whatever is wrong with them is said before anything is written."""
    from bfp.drivers.benchmark_cells import beside, keys_of
    from bfp.finetuning.labels import reasons_in_words

    material = material_of(spec, run=place(spec.output) / spec.name)
    described = len(spec.encoders) + spec.baselines.histograms if material.of_vectors else 0
    stacks = sum(own.showing(shown).num_rows for own in material.all_stacks.values() for shown in material.sets)
    mapped = sum(
        task.showing(shown, cohort).num_rows
        for task in material.segmentations
        for cohort in task.studies
        for shown in material.sets
    )
    cells = sum(
        1
        for name in [*spec.encoders, *beside(spec, material)]
        for _ in keys_of(spec, material, name, of=material.tasks)
    )
    outside = [
        (
            f"outside: {name}",
            f"{own.store.place}, snapshot {own.store.snapshot}: {counted(own.index.num_rows, 'stack')}",
        )
        for name, own in material.outside.items()
    ]
    store = material.stacks.store
    left_out = [
        f"{task.name}: {reasons_in_words(task.labelled.left_out)}" for task in material.tasks if task.labelled.left_out
    ]
    untrained = [name for name, each in spec.encoders.items() if parse_encoder(each).origin == "random"]
    warnings = warnings_of([store], spec.where)
    if untrained:
        warnings.append(f"encoders: {', '.join(untrained)}: untrained (random:), whatever the name says")
    for task in material.tasks:
        if min(spec.label_fractions) * len(set(task.labelled.persons)) < 10:
            warnings.append(f"{task.name}: {min(spec.label_fractions):.0%} of the labels are of fewer than 10 subjects")
    warnings += _doubts(material)
    return Plan(
        rows=[
            ("store", f"{store.place}, snapshot {store.snapshot}: {counted(material.stacks.index.num_rows, 'stack')}"),
            *outside,
            ("encoders", f"{', '.join(spec.encoders)}; each is compared with {spec.compared}"),
            ("beside them", ", ".join(beside(spec, material)) or "nothing"),
            *((f"task: {task.name}", in_words(task)) for task in material.tasks),
            ("left out", "; ".join(left_out) or "nobody"),
            ("modalities", "; ".join(shown.name for shown in material.sets)),
            ("labels", ", ".join(f"{fraction:.0%}" for fraction in sorted(spec.label_fractions))),
            ("cells", f"{cells:,}, each of {spec.folds} folds; {counted(spec.seeds, 'seed')}"),
            *([("vectors", f"of {counted(stacks, 'stack')} by each of {described}, computed once")] * bool(described)),
            *([("tokens", f"of {counted(mapped, 'stack')} by each encoder, computed once")] * bool(mapped)),
            ("side by side", f"stacks and cells on {counted((capacity or capacity_here()).cpus, 'CPU')}"),
            ("time", "not known before the first stacks are done; it can be stopped and resumed at any moment"),
        ],
        figures={
            "snapshot": store.snapshot,
            "stacks": stacks * described + mapped * len(spec.encoders),
            "cells": cells,
            "sessions": max(len(task.labelled.sessions) for task in material.tasks),
        },
        warnings=warnings,
    )


def execute(spec: Benchmark, run: Run) -> None:
    """Run it to its end, or to where the user stops it; Ray is up already."""
    import ray

    from bfp.drivers.benchmark_cells import Found, beside, keys_of, run_cells, without_images
    from bfp.drivers.benchmark_figures import results_csv, results_markdown
    from bfp.drivers.benchmark_results import results_of
    from bfp.drivers.benchmark_rows import row_count, rows_of
    from bfp.drivers.benchmark_segmentation import inputs_of, token_maps
    from bfp.features.describe import EncoderVectors, Histograms
    from bfp.features.kept import Extraction

    material = material_of(spec, run=run.folder)
    pin_inputs(material.stores, spec.where, run=run.folder)
    _write_folds(run, material)
    for doubt in _doubts(material):
        run.warn(doubt)
    found, gpus = Found(), gpus_of(spec.compute)
    at_once = spec.compute.workers or int(ray.cluster_resources()["CPU"])
    extracting = partial(Extraction, workers=at_once, gpus=gpus, batch_size=spec.compute.batch_size)
    if spec.baselines.histograms and material.of_vectors:
        with extracting() as extraction:
            tables = _vectors(run, material, found, extraction, HISTOGRAMS, Histograms())
        _judge(spec, run, material, found, HISTOGRAMS, tables, at_once=at_once)
    inputs = inputs_of(material)
    for name, encoder in _loaded(spec, material):
        if material.of_vectors:
            with extracting() as extraction:  # its workers hold CPUs, which the cells want next
                tables = _vectors(run, material, found, extraction, name, EncoderVectors(encoder))
            _judge(spec, run, material, found, name, tables, at_once=at_once)
        if material.segmentations:
            with extracting() as extraction:
                maps = token_maps(run, material, found, extraction, name, encoder)
            _segment(spec, run, material, found, name, maps, inputs, at_once=at_once, gpus=gpus)
    blind = [name for name in beside(spec, material) if name in (COVARIATES, SITE)]
    for name in blind:
        keys = list(keys_of(spec, material, name, of=material.of_vectors))
        run.phase(f"cells: {name}", total=len(keys), unit="cells")
        given = {(key.task, key.shown): without_images(material.task(key.task), name) for key in keys}
        found.cells.update(run_cells(spec, run, material, keys, given, at_once=at_once))
    run.phase("figures", total=row_count(spec, material, found), unit="rows")
    rows = rows_of(spec, run, material, found, at_once=at_once)
    (run.folder / "results.csv").write(results_csv(rows))
    (run.folder / "results.md").write(results_markdown(rows, ours=spec.compared))
    met = _acquaintances(spec, material)
    for name, each in met.items():
        if each.is_met:
            run.warn(f"encoders.{name}: its pretraining has met {each.told}")
    results = results_of(spec, material, found, rows, met)
    for warning in results.warnings:
        run.warn(warning)
    run.result(results.shown.as_json())


# encoder by encoder ---------------------------------------------------------------------------------------------------


def _loaded(spec: Benchmark, material: Material) -> Iterator[tuple[str, LoadedEncoder]]:
    """The encoders, each loaded when its turn comes."""
    from bfp.models.encoder import load

    for name, encoder in spec.encoders.items():
        # Untrained ones of one architecture are as many draws; by their names, so that one more changes no other.
        seed = spec.seed + zlib.crc32(name.encode()) if parse_encoder(encoder).origin == "random" else spec.seed
        arguments = loading(encoder, spec.encoder_shape, seed=seed, size_px=material.stacks.store.size_px)
        yield name, load(**arguments)


def _vectors(
    run: Run, material: Material, found: Found, extraction: Extraction, name: str, describe: Describe
) -> Vectors:
    """The vectors of the stacks of every store, for every set of modalities."""
    from bfp.drivers.benchmark_cells import Cost
    from bfp.features.extraction import seconds_of

    counts = {
        (shown.name, cohort): own.showing(shown).num_rows
        for shown in material.sets
        for cohort, own in material.all_stacks.items()
    }
    run.phase(f"vectors: {name}", total=sum(counts.values()), unit="stacks")
    tables: Vectors = {}
    for shown in material.sets:
        for cohort, own in material.all_stacks.items():
            before = sum(counts[at] for at in tables)
            tables[shown.name, cohort] = extraction.features(
                own.store,
                own.showing(shown),
                describe,
                shown=shown.modalities,
                kept=run.folder / "features",
                on_done=lambda done, before=before: run.progress(before + done),  # type: ignore[misc]
                stopping=lambda: run.stopping,
            )
        made = [tables[shown.name, cohort] for cohort in material.all_stacks]
        found.costs[name, shown.name] = Cost(sum(map(len, made)), sum(map(seconds_of, made)))
    if len(found.costs) == len(material.sets):  # of the first approach: planes are the same in every table
        planes = {cohort: tables[material.everything.name, cohort] for cohort in material.all_stacks}
        _check_doubles(run, material, planes, material.of_vectors)
    return tables


def _judge(
    spec: Benchmark, run: Run, material: Material, found: Found, name: str, tables: Vectors, *, at_once: int
) -> None:
    """The cells of one approach, and its site probe."""
    from bfp.drivers.benchmark_cells import Given, keys_of, probe_sites, run_cells
    from bfp.features.sessions import pool_sessions

    given: dict[tuple[str, str], Given] = {}
    for task in material.of_vectors:
        sessions = {"": task.labelled.sessions, **{cohort: own.sessions for cohort, own in task.outside.items()}}
        for learned in material.sets:
            pooling = _pooling(spec, material, learned.modalities)
            pooled = {
                (tested.name, cohort): pool_sessions(tables[tested.name, cohort], whose, pooling)
                for cohort, whose in sessions.items()
                for tested in material.sets
                if tested == learned or (tested.is_part_of(learned) and not cohort)
            }
            own_vectors = pooled.pop((learned.name, ""))
            given[task.name, learned.name] = Given(
                own_vectors,
                {tested: vectors for (tested, cohort), vectors in pooled.items() if not cohort},
                {cohort: vectors for (_, cohort), vectors in pooled.items() if cohort},
            )
    keys = list(keys_of(spec, material, name, of=material.of_vectors))
    if spec.baselines.permuted and name == spec.compared:
        keys += keys_of(spec, material, PERMUTED, of=material.of_vectors)
    run.phase(f"cells: {name}", total=len(keys), unit="cells")
    found.cells.update(run_cells(spec, run, material, keys, given, at_once=at_once))
    with_sites = {
        task.name: given[task.name, material.everything.name].own for task in material.of_vectors if task.site
    }
    if with_sites:
        run.phase(f"sites: {name}", total=len(with_sites), unit="probes")
        found.sites.update(probe_sites(spec, run, material, name, with_sites, at_once=at_once))


def _segment(
    spec: Benchmark,
    run: Run,
    material: Material,
    found: Found,
    name: str,
    maps: Maps,
    inputs: Inputs,
    *,
    at_once: int,
    gpus: float,
) -> None:
    """The cells of an encoder's decoders; with the first encoder, those of what sees no token."""
    from bfp.drivers.benchmark_cells import keys_of
    from bfp.drivers.benchmark_segmentation import run_segmentations
    from bfp.features.token_maps import planes_of

    approaches = [name]
    if name == next(iter(spec.encoders)):
        approaches += [ATLAS, THRESHOLD]
        for task in material.segmentations:
            planes = {
                cohort: planes_of(study.sessions, maps[task.name, material.everything.name, cohort])
                for cohort, study in task.studies.items()
            }
            _check_doubles(run, material, planes, [task])
    keys = [key for each in approaches for key in keys_of(spec, material, each, of=material.segmentations)]
    run.phase(f"decoders: {name}", total=len(keys) * spec.folds, unit="folds")
    found.cells.update(run_segmentations(spec, run, material, keys, maps, inputs, at_once=at_once, gpus=gpus))


def _pooling(spec: Benchmark, material: Material, shown: tuple[str, ...]) -> Pooling:
    from bfp.models.pooling import Pooling

    parts = shown if material.stacks.store.form == "neighbours" else ("",)
    return Pooling(bands=POSITION_BANDS if spec.pooling == "position" else 1, parts=parts)


# what is wrong with a comparison --------------------------------------------------------------------------------------


def _check_doubles(run: Run, material: Material, tables: dict[str, pa.Table], tasks: Sequence[TaskMaterial]) -> None:
    """Raise InputError where somebody is learned from under one name and tested under another.

    tables: of the store ("") and of each outside cohort, cohort, subject and planes of every stack.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from bfp.features.doubles import check_parted, doubles

    def named(cohort: str) -> str:
        return f"{cohort}: " if cohort else ""

    planes = []
    for cohort, table in tables.items():
        cohorts = pc.binary_join_element_wise(named(cohort), table["cohort"], "")
        planes.append(pa.table([cohorts, table["subject"], table["planes"]], names=["cohort", "subject", "planes"]))
    found = doubles(pa.concat_tables(planes))
    for task in tasks:
        homes: dict[str, object] = dict(zip(task.labelled.persons, zip(*task.folds, strict=True), strict=True))
        for cohort, own in task.outside.items():
            homes |= {f"{named(cohort)}{person}": cohort for person in own.persons}
        check_parted(found, homes, source=str(material.stacks.store.place), note=run.note, warn=run.warn)


def _doubts(material: Material) -> list[str]:
    return [
        f"{task.name}: {doubt}"
        for task in material.of_vectors
        for doubt in doubts_of(task.learned, task.labelled, folds=task.folds[0])
    ]


def _acquaintances(spec: Benchmark, material: Material) -> dict[str, Acquaintance]:
    """Of each encoder, whether it has met those that it is judged on."""
    scans = [scans_of(material.stacks.store, {key for task in material.tasks for key in task.labelled.sessions})]
    scans += [
        scans_of(own.store, {key for task in material.tasks for key in task.outside[cohort].sessions})
        for cohort, own in material.outside.items()
    ]
    return {name: acquaintance(encoder, scans) for name, encoder in spec.encoders.items()}


def _write_folds(run: Run, material: Material) -> None:
    from bfp.finetuning.tables import folds_csv

    for number, task in enumerate(material.tasks, start=1):
        for seed, folds in enumerate(task.folds, start=1):
            if isinstance(task, SegmentationMaterial):
                table = split_csv(task.labelled.sessions, folds)
            else:
                table = folds_csv(task.labelled, folds=folds, kind=task.task.type, classes=classes_of(task.learned))
            (run.folder / "folds" / f"task-{number}-seed-{seed}.csv").write(table)
        for reason, count in task.labelled.left_out.items():
            run.note(f"{task.name}: {counted(count, 'session')} left out: {reason}")
