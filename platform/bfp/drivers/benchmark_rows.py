"""The rows of a benchmark's table, from its cells: what each approach said of whom, judged side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from bfp.drivers.benchmark_cells import NOTHING_SHOWN, CellKey, Found, beside, targets_of
from bfp.drivers.benchmark_figures import (
    WITHIN,
    Judged,
    Row,
    Said,
    Where,
    adjusted,
    dump_judged,
    judge,
    load_judged,
)
from bfp.drivers.benchmark_material import Material, SegmentationMaterial
from bfp.finetuning.side_by_side import Job, side_by_side
from bfp.runs import Run
from bfp.specs.benchmark import COVARIATES, PERMUTED, SITE, Benchmark

FORMAT = 3
"""Of kept rows: raised where the same cells come to other figures."""


def rows_of(spec: Benchmark, run: Run, material: Material, found: Found, *, at_once: int) -> list[Row]:
    """In the order of the table: by task, cohort, modalities, share of labels, approach."""
    places = list(_places(spec, material, found))
    said = {where: _said(spec, material, found, where) for where in places}
    jobs = {}
    for where in places:
        ours = said.get(_rival(spec, material, where)) if _is_compared(spec, where) else None
        tested = _tested_beside(material, found, where) if where.cohort == WITHIN else None
        task = material.task(where.task)
        classes = task.classes if isinstance(task, SegmentationMaterial) else []
        told = (task.task.type, classes, said[where], ours, tested, spec.seed)
        jobs[where] = Job(run.folder / "rows" / f"{_digest(told)}.json", told)
    judged = side_by_side(
        judge,
        jobs,
        dump=dump_judged,
        load=load_judged,
        unit="row",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=at_once,
    )
    return adjusted([_row(material, found, where, judged[where]) for where in places])


def row_count(spec: Benchmark, material: Material, found: Found) -> int:
    return sum(1 for _ in _places(spec, material, found))


def _places(spec: Benchmark, material: Material, found: Found) -> Iterator[Where]:
    approaches = [*spec.encoders, *beside(spec, material)]
    for task in material.tasks:
        for cohort in (WITHIN, *material.outside):
            for learned, tested in _shown(material):
                if cohort != WITHIN and tested != learned:
                    continue  # an outside cohort is shown what was learned with
                for fraction in sorted(spec.label_fractions):
                    for approach in approaches:
                        where = Where(task.name, cohort, learned, tested, fraction, approach)
                        if _key(where, 0) in found.cells and _is_told(where):
                            yield where


def _shown(material: Material) -> Iterator[tuple[str, str]]:
    """What was learned with and what is tested with, by name; what sees no image last."""
    for learned in material.sets:
        yield learned.name, learned.name
        for less in material.sets:
            if less.is_part_of(learned):
                yield learned.name, less.name
    yield NOTHING_SHOWN, NOTHING_SHOWN


def _is_told(where: Where) -> bool:
    """Lots are there to be looked at once, and what sees no image has no outside cohort."""
    if where.approach == PERMUTED:
        return where.cohort == WITHIN and where.tested_with == where.learned_with
    return where.cohort == WITHIN or where.approach not in (COVARIATES, SITE)


def _is_compared(spec: Benchmark, where: Where) -> bool:
    return where.approach not in (spec.compared, PERMUTED)


def _rival(spec: Benchmark, material: Material, where: Where) -> Where:
    """Ours at the same place; beside what sees no image, ours with all modalities."""
    if where.learned_with != NOTHING_SHOWN:
        return where._replace(approach=spec.compared)
    shown = material.everything.name
    return where._replace(approach=spec.compared, learned_with=shown, tested_with=shown)


def _key(where: Where, seed: int) -> CellKey:
    return CellKey(where.approach, where.task, seed, where.fraction, where.learned_with)


def _said(spec: Benchmark, material: Material, found: Found, where: Where) -> Said:
    task = material.task(where.task)
    cells = [found.cells[_key(where, seed)] for seed in range(spec.seeds)]
    if where.cohort != WITHIN:
        whose, heads = task.outside[where.cohort], spec.seeds * spec.folds
        said = np.concatenate([cell.outside[where.cohort] for cell in cells])  # (heads, m, K)
        head_of = np.repeat(np.arange(heads), len(whose.sessions))
        return Said(
            targets=np.concatenate([whose.targets] * heads),
            said=said.reshape(-1, said.shape[2]),
            folds=head_of,
            rounds=head_of,
            subjects=whose.persons * heads,
        )
    whole = where.tested_with == where.learned_with
    return Said(
        targets=np.concatenate([targets_of(spec, material, _key(where, seed)) for seed in range(spec.seeds)]),
        said=np.concatenate([cell.said if whole else cell.fewer[where.tested_with] for cell in cells]),
        folds=np.concatenate([own + seed * spec.folds for seed, own in enumerate(task.folds)]),
        rounds=np.repeat(np.arange(spec.seeds), len(task.labelled.sessions)),
        subjects=task.labelled.persons * spec.seeds,
    )


def _tested_beside(material: Material, found: Found, where: Where) -> float:
    """How many sessions a fold tests for each that its head learned from."""
    task = material.task(where.task)
    ratios = [np.bincount(folds) / found.cells[_key(where, seed)].sessions for seed, folds in enumerate(task.folds)]
    return float(np.mean(ratios))


def _row(material: Material, found: Found, where: Where, judged: Judged) -> Row:
    task = material.task(where.task)
    labelled = task.outside[where.cohort] if where.cohort else task.labelled
    seeds = [key.seed for key in found.cells if key == _key(where, key.seed)]
    return Row(
        where=where,
        kind=task.task.type,
        sessions=len(labelled.sessions),
        subjects=len(set(labelled.persons)),
        learned_from=float(np.mean([found.cells[_key(where, seed)].subjects for seed in seeds])),
        judged=judged,
    )


def _digest(told: tuple[object, ...]) -> str:
    """A hash of what a row follows from: plain values, and what approaches said."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in told:
        if isinstance(part, Said):
            for array in part[:-1]:
                digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
            part = part.subjects
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:24]
