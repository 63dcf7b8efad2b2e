"""What a finetune spec comes down to: the stacks that are used, the sessions with a class, their folds, the covariates.

Found without torch; whatever is wrong with the store, the encoder or the labels is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp import __version__
from bfp.drivers.stores import check_encoder, check_size, open_stores, wanted_stacks
from bfp.errors import InputError
from bfp.specs.finetune import Classification, Finetune
from bfp.storage import Place, place
from bfp.words import counted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.finetuning.labels import Labelled
    from bfp.store.reader import SliceStore


GROUPS, COHORT = ("sex", "age", "site"), "cohort"
"""Columns by which figures are given unasked, where a cohort carries them (BIDS `participants.tsv`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """index: the stacks that are used, of sessions with a class; shown: the modalities; folds: int, of each session.

    covariates, oracle, groups: text of each session, by column, "" where it is not known.
    """

    store: SliceStore
    index: pa.Table
    shown: tuple[str, ...]
    task: Classification
    labelled: Labelled
    folds: np.ndarray
    covariates: dict[str, list[str]]
    oracle: list[str] | None
    groups: dict[str, list[str]]


def material_of(spec: Finetune, *, run: Place) -> Material:
    """The store as the run in that folder has pinned it, else as it is. Raises InputError for what is wrong."""
    from bfp.finetuning.covariates import check_column
    from bfp.store.where import select

    task = _available(spec)
    (store,) = open_stores([spec.store], spec.where, run=run)
    check_size(store, patch_px=check_encoder(spec.encoder), encoder=spec.encoder)
    shown = _shown(spec, store)
    index = select(wanted_stacks(store, spec.where), modalities=shown)
    source = spec.labels or spec.store
    labelled, index = _labelled(spec, task, store, index, source=source)
    folds = _folds(spec, task, labelled)
    oracle = spec.baselines.oracle
    columns = {
        name: labelled.column(name, source=source)
        for name in [*spec.baselines.covariates, *([oracle] if oracle else [])]
    }
    for name, values in columns.items():
        check_column(name, values, subjects=[key.subject for key in labelled.sessions], source=source)
    return Material(
        store=store,
        index=index,
        shown=shown,
        task=task,
        labelled=labelled,
        folds=folds,
        covariates={name: columns[name] for name in spec.baselines.covariates},
        oracle=columns[oracle] if oracle else None,
        groups=_groups(spec, labelled, source=source),
    )


def _groups(spec: Finetune, labelled: Labelled, *, source: str) -> dict[str, list[str]]:
    """What tells sessions apart, by column, where it does."""
    carried = {name for labels in labelled.labels for name in labels}
    asked = [*(name for name in GROUPS if name in carried), COHORT] if spec.groups is None else spec.groups
    cohorts = [key.cohort for key in labelled.sessions]
    found = {
        name: cohorts if name == COHORT and name not in carried else labelled.column(name, source=source)
        for name in asked
    }
    return {name: values for name, values in found.items() if spec.groups or len(set(values)) > 1}


def _folds(spec: Finetune, task: Classification, labelled: Labelled) -> np.ndarray:
    from bfp.cohorts.labels import read_labels
    from bfp.finetuning.labels import of_table
    from bfp.finetuning.splits import given_folds, grouped_folds

    if spec.splits is None:
        return grouped_folds(
            persons=labelled.persons,
            classes=labelled.classes,
            strata=[key.cohort for key in labelled.sessions],
            class_names=task.classes,
            folds=spec.folds,
            seed=spec.seed,
        )
    return given_folds(
        of_table(read_labels(place(spec.splits)), labelled.sessions),
        sessions=labelled.sessions,
        classes=labelled.classes,
        class_names=task.classes,
        folds=spec.folds,
        source=f"splits: {spec.splits}",
    )


def per_class(material: Material) -> dict[str, str]:
    """Sessions and subjects of each class, in words."""
    counts = {}
    for number, name in enumerate(material.task.classes):
        persons = [p for p, k in zip(material.labelled.persons, material.labelled.classes, strict=True) if k == number]
        counts[name] = f"{counted(len(persons), 'session')} of {counted(len(set(persons)), 'subject')}"
    return counts


def _available(spec: Finetune) -> Classification:
    """The task, where it is one that this version can learn."""
    if not isinstance(spec.task, Classification):
        raise InputError(f"task.type: {spec.task.type} is not available in bfp {__version__}; classification is")
    if spec.tune != "frozen":
        raise InputError(f"tune: {spec.tune} is not available in bfp {__version__}; frozen is")
    return spec.task


def _shown(spec: Finetune, store: SliceStore) -> tuple[str, ...]:
    stacks = store.preprocessing["stacks"]
    held = tuple(stacks["modalities"] if store.form == "neighbours" else stacks["channels"])
    unknown = [name for name in spec.modalities or () if name not in held]
    if unknown:
        raise InputError(f"modalities: {', '.join(unknown)}: the store {store.place} has {', '.join(held)}")
    return tuple(spec.modalities or held)


def _labelled(
    spec: Finetune, task: Classification, store: SliceStore, index: pa.Table, *, source: str
) -> tuple[Labelled, pa.Table]:
    """The sessions that have stacks and a class, and the stacks of these alone."""
    import pyarrow as pa

    from bfp.cohorts.labels import read_labels
    from bfp.cohorts.sessions import Key
    from bfp.finetuning.labels import assign_classes, of_table

    identity = [Key(*key) for key in zip(*(index[name].to_pylist() for name in Key._fields), strict=True)]
    with_stacks = set(identity)
    if not with_stacks:
        raise InputError(f"{spec.store}: no stack is left by `where` and `modalities`")
    if spec.labels:
        labels = of_table(read_labels(place(spec.labels)), with_stacks)
    else:
        rows = store.sessions().to_pylist(maps_as_pydicts="strict")
        carried = {Key(row["cohort"], row["subject"], row["session"]): row["labels"] for row in rows}
        labels = {key: carried.get(key, {}) for key in with_stacks}
    labelled = assign_classes(labels, target=task.target, classes=task.classes, source=source)
    used = set(labelled.sessions)
    return labelled, index.filter(pa.array([key in used for key in identity]))


def complete_sessions(material: Material) -> np.ndarray:
    """Whether each session has a stack of every modality that is shown: bool (n,)."""
    import numpy as np

    from bfp.cohorts.sessions import Key

    names = (*Key._fields, "modalities", "present")
    seen: dict[Key, set[str]] = {}
    for *key, modalities, present in zip(*(material.index[name].to_pylist() for name in names), strict=True):
        there = (name for name, here in zip(modalities, present, strict=True) if here)
        seen.setdefault(Key(*key), set()).update(there)
    return np.array([seen[key] >= set(material.shown) for key in material.labelled.sessions], dtype=bool)
