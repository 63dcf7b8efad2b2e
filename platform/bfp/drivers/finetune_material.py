"""What finetune and benchmark specs come down to: the stacks that are used, the sessions with a target, their folds.

Found without torch; whatever is wrong with the store, the encoder or the labels is said here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bfp.drivers.stores import check_encoder, check_size, imaging_of, open_stores, wanted_stacks
from bfp.errors import InputError
from bfp.specs.finetune import Classification, Finetune, Regression, SegmentationTask, Survival, Task
from bfp.storage import Place, place
from bfp.words import counted, some_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.cohorts.sessions import Key
    from bfp.finetuning.heads import Learner
    from bfp.finetuning.labels import Labelled
    from bfp.store.reader import SliceStore

Learned = Classification | Regression | Survival
"""The tasks whose heads take a session's vector."""

SITE, COHORT = "site", "cohort"
UNKNOWN_SITE = "not known"
MANY_LEFT_OUT = 0.2
FAR_OUT = 5
"""Interquartile ranges beyond the quartiles: of a normal distribution that is 7.4 standard deviations from the mean."""
CODES = (-9999, -999, -99, -9, -4, 777, 888, 999, 8888, 9999)
"""Numbers by which tables say that something is not known."""
FEWEST_IN_FOLD = 3

GROUPS = ("sex", "age", SITE)
"""Columns by which figures are given unasked, where a cohort carries them (BIDS `participants.tsv`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """index: the stacks that are used, of sessions with a target; shown: the modalities; folds: int, of each session.

    covariates, oracle, groups: text of each session, by column, "" where it is not known. site: likewise, of the column
    that says where a session was scanned; none where all are of one.
    """

    store: SliceStore
    index: pa.Table
    shown: tuple[str, ...]
    task: Learned
    labelled: Labelled
    folds: np.ndarray
    covariates: dict[str, list[str]]
    oracle: list[str] | None
    groups: dict[str, list[str]]
    site: dict[str, list[str]]


def material_of(spec: Finetune, *, run: Place) -> Material:
    """The store as the run in that folder has pinned it, else as it is. Raises InputError for what is wrong."""
    from bfp.finetuning.covariates import check_column
    from bfp.store.where import select

    check_tunable(spec.tune)
    task = spec.task
    assert not isinstance(task, SegmentationTask)
    (store,) = open_stores([spec.store], spec.where, run=run)
    check_size(store, patch_px=check_encoder(spec.encoder), encoder=spec.encoder)
    imaging_of(store)
    shown = shown_of(spec.modalities, store)
    index = select(wanted_stacks(store, spec.where), modalities=shown)
    source = spec.labels or spec.store
    labelled = labelled_of(task, keys_of(index), store=store, labels=spec.labels)
    check_learnable(task, labelled, source=source)
    index = of_sessions(index, labelled)
    folds = folds_of(task, labelled, folds=spec.folds, seed=spec.seed, splits=spec.splits)
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
        groups=groups_of(spec.groups, labelled, source=source),
        site=site_of(None, labelled, source=source),
    )


def groups_of(columns: Sequence[str] | None, labelled: Labelled, *, source: str) -> dict[str, list[str]]:
    """What tells sessions apart, by column, where it does. columns: None for what cohorts usually carry."""
    carried = {name for labels in labelled.labels for name in labels}
    asked = [*(name for name in GROUPS if name in carried), COHORT] if columns is None else columns
    cohorts = [key.cohort for key in labelled.sessions]
    found = {
        name: cohorts if name == COHORT and name not in carried else labelled.column(name, source=source)
        for name in asked
    }
    return {name: values for name, values in found.items() if columns or len(set(values)) > 1}


def site_of(column: str | None, labelled: Labelled, *, source: str) -> dict[str, list[str]]:
    """Where each session was scanned, by the column that says so; {} where all are of one site.

    column: None for `site` where labels have it, else the cohort.
    """
    found = groups_of([column] if column else None, labelled, source=source)
    name = column or next((name for name in (SITE, COHORT) if name in found), None)
    values = [value or UNKNOWN_SITE for value in found[name]] if name else []
    return {name: values} if name and len(set(values)) > 1 else {}


def folds_of(task: Learned, labelled: Labelled, *, folds: int, seed: int, splits: str | None) -> np.ndarray:
    """int64 (n,): dealt by the seed, or as the table `splits` says. Raises InputError."""
    from bfp.cohorts.labels import read_labels
    from bfp.finetuning.labels import of_table
    from bfp.finetuning.splits import given_folds, grouped_folds

    sorts, names = _sorts(task, labelled, folds=folds)
    if splits is None:
        return grouped_folds(
            persons=labelled.persons,
            classes=sorts,
            strata=[key.cohort for key in labelled.sessions],
            class_names=names,
            folds=folds,
            seed=seed,
        )
    if isinstance(task, Regression):
        sorts, names = 0 * sorts, ["any"]  # a fold may test whom it will
    return given_folds(
        of_table(read_labels(place(splits)), labelled.sessions),
        sessions=labelled.sessions,
        classes=sorts,
        class_names=names,
        folds=folds,
        source=f"splits: {splits}",
    )


def _sorts(task: Learned, labelled: Labelled, *, folds: int) -> tuple[np.ndarray, list[str]]:
    """Of which sort each session is, over which folds are dealt alike, int64 (n,), and how sorts are called."""
    import numpy as np

    from bfp.finetuning.splits import BANDS, bands_of

    match task:
        case Classification():
            return labelled.targets, task.classes
        case Survival():
            came = labelled.targets[:, 1].astype(np.int64)
            if came.all():
                return 0 * came, [f"{task.event} 1"]
            return came, [f"{task.event} 0", f"{task.event} 1"]
    whose = np.array(labelled.persons, dtype=object)
    for bands in range(BANDS, 0, -1):  # each needs a subject for every fold
        sorts = bands_of(labelled.targets, bands)
        if min(len(set(whose[sorts == sort])) for sort in range(sorts.max() + 1)) >= folds:
            break
    return sorts, [f"{task.target}, part {sort + 1}" for sort in range(sorts.max() + 1)]


def learner_of(task: Learned) -> Learner:
    """How a head for the task is learned."""
    match task:
        case Classification():
            from bfp.finetuning.logistic import Logistic

            return Logistic(len(task.classes))
        case Regression():
            from bfp.finetuning.ridge import Ridge

            return Ridge()
        case Survival():
            from bfp.finetuning.cox import Cox

            return Cox()


def classes_of(task: Learned) -> list[str]:
    """Of a classification; [] of others."""
    return task.classes if isinstance(task, Classification) else []


def target_of(task: Task) -> str:
    """What is learned, in the columns' words."""
    return f"{task.time} to {task.event}" if isinstance(task, Survival) else task.target


def learned_in_words(task: Task, labelled: Labelled) -> dict[str, str]:
    """How many sessions and subjects there are of what, by what."""
    import numpy as np

    targets, persons = labelled.targets, np.array(labelled.persons, dtype=object)

    def many(own: np.ndarray) -> str:
        return f"{counted(int(own.sum()), 'session')} of {counted(len(set(persons[own])), 'subject')}"

    match task:
        case Classification():
            return {name: many(targets == k) for k, name in enumerate(task.classes)}
        case Survival():
            came, span = targets[:, 1] == 1, f"{task.time} {targets[:, 0].min():g} to {targets[:, 0].max():g}"
            return {f"{task.event}, {span}": many(came), "not seen": many(~came)}
        case SegmentationTask():
            return {"drawn on": many(np.ones(len(targets), dtype=bool))}
    span = f"{targets.min():g} to {targets.max():g}, mean {targets.mean():.3g}"
    return {span: many(np.ones(len(targets), dtype=bool))}


def check_learnable(task: Learned, labelled: Labelled, *, source: str) -> None:
    """Raise InputError where there is nothing to learn: nobody is of a class, or a number is the same for all."""
    import numpy as np

    from bfp.finetuning.labels import reasons_in_words

    if isinstance(task, Classification):
        for k, name in enumerate(task.classes):
            if not (labelled.targets == k).any():
                others = f"; left out: {reasons_in_words(labelled.left_out)}" if labelled.left_out else ""
                raise InputError(f"{source}: nobody's {task.target} is {name}{others}")
    if isinstance(task, Regression) and np.ptp(labelled.targets) == 0:
        sessions = counted(len(labelled.targets), "session")
        raise InputError(
            f"{source}: {task.target} is {labelled.targets[0]:g} in every session that has it ({sessions}): there is "
            "nothing to learn; name another column"
        )


def doubts_of(task: Learned, labelled: Labelled, *, folds: np.ndarray) -> list[str]:
    """What a person should look at before anything is learned: many without a target, numbers that may be codes, folds
    in which a figure is hardly defined."""
    import numpy as np

    from bfp.finetuning.labels import reasons_in_words

    found, whose = list[str](), np.array(labelled.persons, dtype=object)
    left_out, named = sum(labelled.left_out.values()), target_of(task)
    if left_out > MANY_LEFT_OUT * (left_out + len(whose)):
        of = f"{counted(left_out, 'session')} of {left_out + len(whose):,}"
        found.append(f"{of} left out: {reasons_in_words(labelled.left_out)}")
    match task:
        case Regression():
            low, high = np.quantile(labelled.targets, [0.25, 0.75])
            reach = FAR_OUT * (high - low)
            far = (labelled.targets < low - reach) | (labelled.targets > high + reach)
            far &= high > low  # half of a rating's numbers may be 0: then every other would be far
            far |= np.isin(labelled.targets, CODES) & ((labelled.targets < low) | (labelled.targets > high))
            if far.any():
                values = sorted({f"{value:g}" for value in labelled.targets[far]}, key=float)
                found.append(
                    f"{named}: {counted(int(far.sum()), 'session')} far from the others ({some_of(values)}): codes of "
                    "what is not known? they are learned as numbers; empty them, or write n/a, where they are"
                )
        case Survival():
            if (labelled.targets[:, 1] == 1).all():
                found.append(f"{task.event}: the event was seen in every session, nobody is censored; is that so?")
        case Classification():
            fewest = min(
                len(set(whose[(labelled.targets == k) & (folds == fold)]))
                for k in range(len(task.classes))
                for fold in range(folds.max() + 1)
            )
            if fewest < FEWEST_IN_FOLD:
                found.append(
                    f"folds: one tests only {counted(fewest, 'subject')} of a class, so that its figures are rough and "
                    "take few values; ask for fewer folds"
                )
    return found


def check_tunable(tune: str) -> None:
    """Raise InputError where tuning wants an extra that is not installed."""
    if tune == "lora" and find_spec("peft") is None:
        raise InputError("tune: lora: peft is not installed; pip install 'bfp[lora]', or set tune: full or frozen")


def shown_of(modalities: Sequence[str] | None, store: SliceStore, *, field: str = "modalities") -> tuple[str, ...]:
    """The modalities that an encoder is shown; None: all that the store has. field: of the spec, for the message."""
    stacks = store.preprocessing["stacks"]
    held = tuple(stacks["modalities"] if store.form == "neighbours" else stacks["channels"])
    unknown = [name for name in modalities or () if name not in held]
    if unknown:
        raise InputError(f"{field}: {', '.join(unknown)}: the store {store.place} has {', '.join(held)}")
    return tuple(modalities or held)


def keys_of(index: pa.Table) -> list[Key]:
    """Of each row of an index, whose session it is."""
    from bfp.cohorts.sessions import Key

    return [Key(*key) for key in zip(*(index[name].to_pylist() for name in Key._fields), strict=True)]


def of_sessions(index: pa.Table, labelled: Labelled) -> pa.Table:
    """The stacks of labelled sessions alone."""
    import pyarrow as pa

    used = set(labelled.sessions)
    return index.filter(pa.array([key in used for key in keys_of(index)]))


def labelled_of(task: Learned, sessions: Collection[Key], *, store: SliceStore, labels: str | None) -> Labelled:
    """Those of the sessions that have a target. labels: a table; None: what the store carries."""
    from bfp.cohorts.labels import read_labels
    from bfp.cohorts.sessions import Key
    from bfp.finetuning.labels import assign_classes, assign_numbers, assign_times, of_table

    with_stacks = set(sessions)
    if not with_stacks:
        raise InputError(f"{store.place}: no stack is left by `where` and `modalities`")
    if labels:
        found = of_table(read_labels(place(labels)), with_stacks)
    else:
        rows = store.sessions().to_pylist(maps_as_pydicts="strict")
        carried = {Key(row["cohort"], row["subject"], row["session"]): row["labels"] for row in rows}
        found = {key: carried.get(key, {}) for key in with_stacks}
    source = labels or str(store.place)
    match task:
        case Classification():
            return assign_classes(found, target=task.target, classes=task.classes, source=source)
        case Regression():
            return assign_numbers(found, target=task.target, source=source)
        case Survival():
            return assign_times(found, time=task.time, event=task.event, source=source)


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
