"""What a benchmark spec comes down to: the stores, the sets of modalities, and of each task its sessions and folds.

Whatever is wrong with a store, an encoder or the labels is said here. A task is judged on the same sessions in every
cell: those that have stacks (of a segmentation: with labels) in each set of modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp.drivers.finetune_material import (
    Learned,
    check_learnable,
    folds_of,
    keys_of,
    labelled_of,
    learned_in_words,
    shown_of,
    site_of,
    target_of,
)
from bfp.drivers.segmentation_material import dealt, drawn_in
from bfp.drivers.stores import check_encoder, check_size, imaging_of, open_stores, wanted_stacks
from bfp.errors import InputError
from bfp.specs.benchmark import Benchmark
from bfp.specs.finetune import SegmentationTask, Task
from bfp.storage import Place, place
from bfp.words import counted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.cohorts.sessions import Key
    from bfp.finetuning.labels import Labelled
    from bfp.finetuning.segmentation import Segmented
    from bfp.store.reader import SliceStore


@dataclass(frozen=True, slots=True)
class Shown:
    """A set of modalities: its name in tables, and what is in it."""

    name: str
    modalities: tuple[str, ...]

    def is_part_of(self, other: Shown) -> bool:
        return set(self.modalities) < set(other.modalities)


@dataclass(frozen=True, slots=True, eq=False)
class Stacks:
    """A store and its stacks that show any of the modalities, of sessions that have some of every set."""

    store: SliceStore
    index: pa.Table
    incomplete: dict[str, int]

    def showing(self, shown: Shown) -> pa.Table:
        from bfp.store.where import select

        return select(self.index, modalities=shown.modalities)


@dataclass(frozen=True, slots=True, eq=False)
class TaskMaterial:
    """name: in tables. folds: of each seed, int64 (n,). site: as in `finetune_material.Material`.

    outside: the sessions of each outside cohort that have a target. covariates: text of each session, by column.
    """

    name: str
    task: Task
    labelled: Labelled
    folds: list[np.ndarray]
    site: dict[str, list[str]]
    outside: dict[str, Labelled]
    covariates: dict[str, list[str]]

    @property
    def learned(self) -> Learned:
        """The task, where sessions' vectors are what it is learned from."""
        assert not isinstance(self.task, SegmentationTask)
        return self.task


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationMaterial(TaskMaterial):
    """studies: where the sessions of the store ("") and of each outside cohort were drawn; drawn: their stacks that
    have labels. Targets are 0, and say nothing."""

    task: SegmentationTask
    studies: dict[str, Segmented]
    drawn: dict[str, pa.Table]

    @property
    def classes(self) -> list[str]:
        return list(self.studies[""].labels.classes)

    def showing(self, shown: Shown, cohort: str) -> pa.Table:
        from bfp.store.where import select

        return select(self.drawn[cohort], modalities=shown.modalities)


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """sets: of modalities, the one with most of them first. stacks: of the store; outside: of each other cohort."""

    sets: list[Shown]
    stacks: Stacks
    outside: dict[str, Stacks]
    tasks: list[TaskMaterial]

    @property
    def everything(self) -> Shown:
        """The set with most modalities."""
        return self.sets[0]

    @property
    def all_stacks(self) -> dict[str, Stacks]:
        """Of the store ("") and of each outside cohort."""
        return {"": self.stacks, **self.outside}

    def task(self, name: str) -> TaskMaterial:
        return next(task for task in self.tasks if task.name == name)

    @property
    def segmentations(self) -> list[SegmentationMaterial]:
        return [task for task in self.tasks if isinstance(task, SegmentationMaterial)]

    def segmentation(self, name: str) -> SegmentationMaterial:
        return next(task for task in self.segmentations if task.name == name)

    @property
    def of_vectors(self) -> list[TaskMaterial]:
        """The tasks that are learned from a vector of each session."""
        return [task for task in self.tasks if not isinstance(task, SegmentationMaterial)]

    @property
    def stores(self) -> list[SliceStore]:
        return [own.store for own in self.all_stacks.values()]


def material_of(spec: Benchmark, *, run: Place) -> Material:
    """The stores as the run in that folder has pinned them, else as they are. Raises InputError for what is wrong."""
    store, *others = open_stores([spec.store, *spec.external.values()], spec.where, run=run)
    for name, encoder in spec.encoders.items():
        check_size(store, patch_px=check_encoder(encoder, field=f"encoders.{name}"), encoder=encoder)
    sets = _sets(spec, store)
    stacks = _stacks(store, wanted_stacks(store, spec.where), sets, source=spec.store)
    outside = {}
    for name, other in zip(spec.external, others, strict=True):
        if other.place == store.place:
            raise InputError(f"external.{name}: is the store itself ({store.place}); an outside cohort is another one")
        _check_same_preprocessing(store, other, name=name)
        outside[name] = _stacks(other, other.stack_index(), sets, source=f"external.{name}")
    tasks = [
        _segmentation(spec, name, task, stacks, outside, sets)
        if isinstance(task, SegmentationTask)
        else _task(spec, name, task, stacks, outside)
        for name, task in zip(_names(spec.tasks), spec.tasks, strict=True)
    ]
    return Material(sets=sets, stacks=stacks, outside=outside, tasks=tasks)


def _sets(spec: Benchmark, store: SliceStore) -> list[Shown]:
    asked: Sequence[list[str] | None] = spec.modalities or [None]
    found = [
        shown_of(each, store, field=f"modalities[{number}]" if each else "modalities")
        for number, each in enumerate(asked)
    ]
    named = [Shown("+".join(modalities), modalities) for modalities in found]
    return sorted(named, key=lambda shown: -len(shown.modalities))


def _stacks(store: SliceStore, index: pa.Table, sets: list[Shown], *, source: str) -> Stacks:
    import pyarrow as pa

    from bfp.store.where import select

    index = select(index, modalities=sorted({name for shown in sets for name in shown.modalities}))
    everybody, incomplete = set(keys_of(index)), dict[str, int]()
    if not everybody:
        raise InputError(f"{source}: no stack is left by `where` and `modalities`")
    complete = set(everybody)
    for shown in sets:
        seen = set(keys_of(select(index, modalities=shown.modalities)))
        if lacking := len(complete - seen):
            incomplete[f"no stack shows {' or '.join(shown.modalities)}"] = lacking
        complete &= seen
    if not complete:
        why = "; ".join(f"{counted(count, 'session')}: {reason}" for reason, count in incomplete.items())
        raise InputError(f"{source}: no session has stacks of every set of `modalities` ({why})")
    return Stacks(store, index.filter(pa.array([key in complete for key in keys_of(index)])), incomplete)


def _check_same_preprocessing(store: SliceStore, other: SliceStore, *, name: str) -> None:
    if other.fingerprint == store.fingerprint:
        return
    differing = [
        field
        for field in sorted({*store.preprocessing, *other.preprocessing})
        if store.preprocessing.get(field) != other.preprocessing.get(field)
    ]
    raise InputError(
        f"external.{name}: {other.place}: was made by another preprocessing than {store.place} "
        f"({', '.join(differing) or 'of another version of bfp'}); ingest it with the same"
    )


def _names(tasks: Sequence[Task]) -> list[str]:
    """By what is learned; behind it, where several would be called alike, all in which they differ."""
    names = []
    for task in tasks:
        alike = [other for other in tasks if target_of(other) == target_of(task)]
        of_type = [_told_apart(other) for other in alike if other.type == task.type]
        own = _told_apart(task)
        differing = [text for field, text in own.items() if any(other[field] != text for other in of_type)]
        if len(of_type) < len(alike):
            differing.insert(0, task.type)
        names.append(f"{target_of(task)} ({', '.join(differing)})" if differing else target_of(task))
    assert len(set(names)) == len(names), f"tasks of one name: {names}"
    return names


def _told_apart(task: Task) -> dict[str, str]:
    """Each of a task's fields, in words."""
    told = task.model_dump()
    decoder = told.pop("decoder", {})
    words = {name: ", ".join(value) if isinstance(value, list) else value for name, value in told.items()}
    return words | {name: f"{name} {value}" for name, value in decoder.items()}


def _task(spec: Benchmark, name: str, task: Learned, stacks: Stacks, outside: dict[str, Stacks]) -> TaskMaterial:
    from bfp.finetuning.covariates import check_column

    source = spec.labels or str(stacks.store.place)
    labelled = labelled_of(task, keys_of(stacks.index), store=stacks.store, labels=spec.labels)
    check_learnable(task, labelled, source=source)
    for reason, count in stacks.incomplete.items():
        labelled.left_out[reason] = count
    covariates = {column: labelled.column(column, source=source) for column in spec.baselines.covariates}
    for column, values in covariates.items():
        check_column(column, values, subjects=[key.subject for key in labelled.sessions], source=source)
    return TaskMaterial(
        name=name,
        task=task,
        labelled=labelled,
        folds=[
            folds_of(task, labelled, folds=spec.folds, seed=spec.seed + number, splits=spec.splits)
            for number in range(spec.seeds)
        ],
        site=site_of(spec.site, labelled, source=source),
        outside={
            other: _outside(spec, task, own, name=other, within=labelled.sessions) for other, own in outside.items()
        },
        covariates=covariates,
    )


def _segmentation(
    spec: Benchmark, name: str, task: SegmentationTask, stacks: Stacks, outside: dict[str, Stacks], sets: list[Shown]
) -> SegmentationMaterial:
    own, labelled, study = _drawn(stacks, task.target, sets)
    found = {"": (own, labelled, study)}
    for cohort, other in outside.items():
        try:
            found[cohort] = _drawn(other, task.target, sets)
        except InputError as error:
            raise InputError(f"external.{cohort}: {error}") from error
        theirs, ours = (list(each.labels.classes) for each in (found[cohort][2], study))
        if theirs != ours:
            raise InputError(
                f"external.{cohort}: {other.store.place}: its classes of {task.target} are {', '.join(theirs)}, those "
                f"of {stacks.store.place} {', '.join(ours)}; ingest it with the same, in the same order"
            )
    return SegmentationMaterial(
        name=name,
        task=task,
        labelled=labelled,
        folds=[
            dealt(labelled.sessions, task.target, folds=spec.folds, seed=spec.seed + number, splits=spec.splits)
            for number in range(spec.seeds)
        ],
        site={},
        outside={cohort: each[1] for cohort, each in found.items() if cohort},
        covariates={},
        studies={cohort: each[2] for cohort, each in found.items()},
        drawn={cohort: each[0] for cohort, each in found.items()},
    )


def _drawn(stacks: Stacks, target: str, sets: Sequence[Shown]) -> tuple[pa.Table, Labelled, Segmented]:
    """The stacks that have labels, of sessions that have some in every set, and where those were drawn."""
    import numpy as np
    import pyarrow as pa

    from bfp.finetuning.labels import Labelled
    from bfp.store.where import select

    imaging_of(stacks.store)
    first = drawn_in(stacks.store, stacks.index, target)
    complete, left_out = set(first.study.sessions), {**stacks.incomplete, **first.left_out}
    for shown in sets:
        seen = set(keys_of(select(first.index, modalities=shown.modalities)))
        if lacking := len(complete - seen):
            left_out[f"no stack with labels of {target} shows {' or '.join(shown.modalities)}"] = lacking
        complete &= seen
    if not complete:
        raise InputError(f"{stacks.store.place}: no session has labels of {target} in every set of `modalities`")
    index = first.index.filter(pa.array([key in complete for key in keys_of(first.index)]))
    study = drawn_in(stacks.store, index, target).study
    sessions = study.sessions
    return index, Labelled(sessions, np.zeros(len(sessions), np.int64), [{}] * len(sessions), left_out), study


def _outside(spec: Benchmark, task: Learned, stacks: Stacks, *, name: str, within: Sequence[Key]) -> Labelled:
    """Of an outside cohort, by the table of labels where that speaks of it, else by what it carries.

    within: the sessions of the store.
    """
    from bfp.cohorts.labels import read_labels

    sessions, spoken_of = set(keys_of(stacks.index)), False
    if spec.labels:
        table = read_labels(place(spec.labels))
        theirs = {row.subject for key in sessions for row in table.rows_of(key)}
        spoken_of = bool(theirs)
        if both := sorted(theirs & {key.subject for key in within} if not table.cohorts else ()):
            raise InputError(
                f"{table.source}: subject {both[0]} is in {spec.store} and in external.{name} "
                f"({counted(len(both), 'such subject')}), and the table says not which; add a column `cohort`"
            )
    try:
        return labelled_of(task, sessions, store=stacks.store, labels=spec.labels if spoken_of else None)
    except InputError as error:
        raise InputError(f"external.{name}: {error}") from error


def in_words(task: TaskMaterial) -> str:
    """What is learned from whom."""
    counts = learned_in_words(task.task, task.labelled)
    told = ", ".join(f"{name} ({text})" for name, text in counts.items())
    outside = [f"{name}: {counted(len(own.sessions), 'session')}" for name, own in task.outside.items()]
    return f"{told}{'; outside: ' if outside else ''}{', '.join(outside)}"
