"""Folds: a subject is wholly in one of them, and every class is in each.

Subjects are dealt like cards: those of one class and cohort are shuffled and dealt one to each fold, the next ones
going on where the last one stopped. So the folds' sizes differ by one subject, each class is spread as evenly as can
be, and the same seed gives the same folds whatever the order of the sessions. A subject whose sessions are of several
classes (somebody who fell ill between two visits) is dealt with the rarest of them.

Or a split that others have made, such as the `folds.csv` of another run, once it has been checked (`given_folds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bfp.cohorts.labels import present
from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.words import counted, some_of

FOLD_COLUMN = "fold"
FIXED = {"train", "training", "val", "validation", "test"}
"""Names of parts of a split that is no cross-validation."""
BANDS = 5
"""Of a number, over which folds are dealt alike."""


def grouped_folds(
    *,
    persons: Sequence[str],
    classes: np.ndarray,
    strata: Sequence[str],
    class_names: Sequence[str],
    folds: int,
    seed: int,
) -> np.ndarray:
    """The fold (0 … folds-1) in which each of n sessions is tested, int64 (n,).

    persons: whose session it is; classes: int (n,), indices into class_names; strata: what is spread evenly within a
    class (the cohort).
    Raises InputError, with names, where a class has fewer subjects than there are folds.
    """
    persons_of_class = [
        {person for person, own in zip(persons, classes, strict=True) if own == k} for k in range(len(class_names))
    ]
    for name, members in zip(class_names, persons_of_class, strict=True):
        if len(members) < folds:
            listed = ", ".join(sorted(members)) or "nobody"
            raise InputError(
                f"class {name} has {len(members)} subject{'s' * (len(members) != 1)} ({listed}), fewer than {folds} "
                "folds; add subjects, leave the class out, or ask for fewer folds"
            )
    rarest_first = sorted(range(len(class_names)), key=lambda k: (len(persons_of_class[k]), k))
    stratum_of: dict[str, tuple[int, str]] = {}
    for person, stratum in sorted(zip(persons, strata, strict=True)):
        dealt_as = next(rank for rank, k in enumerate(rarest_first) if person in persons_of_class[k])
        stratum_of.setdefault(person, (dealt_as, stratum))

    random = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for dealt in sorted(set(stratum_of.values())):
        hand = sorted(person for person, own in stratum_of.items() if own == dealt)
        for place in random.permutation(len(hand)):
            fold_of[hand[place]] = len(fold_of) % folds
    assigned = np.array([fold_of[person] for person in persons], dtype=np.int64)
    _check_classes_in_training(assigned, classes, class_names, folds)
    return assigned


def given_folds(
    rows: Mapping[Key, Mapping[str, str]],
    *,
    sessions: Sequence[Key],
    classes: np.ndarray,
    class_names: Sequence[str],
    folds: int,
    source: str,
) -> np.ndarray:
    """The fold of each session as a table's column `fold` says, int64 (n,), numbered in the order of their names.

    rows: what the table says of each session (`labels.of_table`). Raises InputError, with names, where a session has no
    fold, a subject has two, there are other than `folds` of them, or one of them tests no session of a class.
    """
    told = [present(rows[key].get(FOLD_COLUMN, "")) for key in sessions]
    persons = [f"{key.cohort}/{key.subject}" for key in sessions]
    if without := sorted({person for person, fold in zip(persons, told, strict=True) if not fold}):
        raise InputError(
            f"{source}: says no fold of {some_of(without)} ({counted(len(without), 'subject')}); add them, or leave "
            "them out (where.exclude_subjects)"
        )
    by_subject: dict[str, set[str]] = {}
    for person, fold in zip(persons, told, strict=True):
        by_subject.setdefault(person, set()).add(fold)
    if torn := [f"{person} (folds {', '.join(sorted(own))})" for person, own in by_subject.items() if len(own) > 1]:
        raise InputError(
            f"{source}: {some_of(torn)} would be learned from and tested on ({counted(len(torn), 'subject')}); put all "
            "sessions of a subject in one fold"
        )
    names = sorted(set(told), key=lambda name: (len(name), name))  # 2 before 10
    if len(names) != folds:
        remedy = f"write folds: {len(names)}" if len(names) > 1 else "one fold leaves nobody to learn from"
        if FIXED & {name.casefold() for name in names}:
            remedy = (
                "a fixed split is no cross-validation, in which every fold is tested once by what was learned from the "
                "others; number the folds of the subjects 1, 2, …"
            )
        raise InputError(
            f"{source}: has {counted(len(names), 'fold')} ({some_of(names)}), and folds is {folds}; {remedy}"
        )
    assigned = np.array([names.index(fold) for fold in told], dtype=np.int64)
    for number, fold in enumerate(names):
        for k, name in enumerate(class_names):
            if not np.any((assigned == number) & (classes == k)):
                tested = sorted({person for person, own in zip(persons, told, strict=True) if own == fold})
                raise InputError(
                    f"{source}: fold {fold} ({some_of(tested)}) tests nobody of class {name}, so that its AUROC would "
                    "be undefined; deal each class over all folds"
                )
    return assigned


def bands_of(numbers: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """The band of each of n numbers, int64 (n,), of at most so many of about equal size, numbered without a gap."""
    edges = np.quantile(numbers, np.linspace(0, 1, bands + 1)[1:-1])
    return np.unique(np.searchsorted(edges, numbers, side="left"), return_inverse=True)[1].astype(np.int64)


def few(dealt: np.ndarray, *, persons: Sequence[str], among: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool (n,): the sessions of a share of the subjects of each sort, at least one of each.
    What a smaller share takes, a larger one takes too.

    dealt: int (n,), the sort of each session; a subject of several counts as the rarest. among: bool (n,), the sessions
    that are chosen from.
    """
    whose = np.asarray(persons)
    sizes = {int(sort): len(np.unique(whose[among & (dealt == sort)])) for sort in np.unique(dealt[among])}
    kept: set[str] = set()
    taken: set[str] = set()
    random = np.random.default_rng([seed, len(persons)])
    ranks = dict(zip(sorted(set(persons)), random.permutation(len(set(persons))).tolist(), strict=True))
    for sort in sorted(sizes, key=lambda sort: (sizes[sort], sort)):
        hand = sorted(set(whose[among & (dealt == sort)].tolist()) - taken, key=ranks.__getitem__)
        taken.update(hand)
        kept.update(hand[: max(1, round(fraction * len(hand)))])
    return among & np.isin(whose, sorted(kept))


def _check_classes_in_training(
    assigned: np.ndarray, classes: np.ndarray, class_names: Sequence[str], folds: int
) -> None:
    for fold in range(folds):
        for k, name in enumerate(class_names):
            if not np.any((assigned != fold) & (classes == k)):
                raise InputError(
                    f"without fold {fold + 1} no session of class {name} is left to train on; ask for fewer folds"
                )
