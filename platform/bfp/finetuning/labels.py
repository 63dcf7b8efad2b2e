"""Labels: which session is of which class, from what the store carries of it or from a table of the user's.

Labels are text by column. Sessions that get no class are left out, counted and said, never guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bfp.cohorts.labels import Labels, present
from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.words import counted

_REASONS = 5  # that a message names


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Sessions with a class, in order of their keys.

    classes: int64 (n,), indices into the classes that were asked for. labels: of each, by column, for covariates.
    left_out: why sessions were, and how many of them.
    """

    sessions: list[Key]
    classes: np.ndarray
    labels: list[Mapping[str, str]]
    left_out: dict[str, int]

    @property
    def persons(self) -> list[str]:
        """Whose session it is: a subject is unique within its cohort only."""
        return [f"{key.cohort}/{key.subject}" for key in self.sessions]

    def column(self, name: str, *, source: str) -> list[str]:
        """One column, "" where a session lacks it. Raises InputError where all of them do; source: for its message."""
        _check_column(name, self.labels, source=source)
        return [present(labels.get(name, "")) for labels in self.labels]


def of_table(labels: Labels, sessions: Collection[Key]) -> dict[Key, Mapping[str, str]]:
    """What a table says of each session.

    Raises InputError where it speaks of none of them, or leaves open which cohort's subject a row means.
    """
    labels.check_speaks_of({key.cohort for key in sessions})
    cohorts: dict[Key, set[str]] = {}
    for key in sessions:
        for row in labels.rows_of(key):
            cohorts.setdefault(row, set()).add(key.cohort)
    if not cohorts and labels.rows:
        theirs, ours = min(labels.rows).subject, min(sessions).subject
        raise InputError(
            f"{labels.source}: speaks of none of the {counted(len(sessions), 'session')}: its first subject is "
            f"{theirs}, the first in the store {ours}"
        )
    if several := sorted(row.subject for row, names in cohorts.items() if len(names) > 1):
        names = next(sorted(names) for row, names in cohorts.items() if row.subject == several[0] and len(names) > 1)
        raise InputError(
            f"{labels.source}: subject {several[0]} stands in the cohorts {' and '.join(names)} "
            f"({counted(len(set(several)), 'such subject')}); add a column `cohort`"
        )
    return {key: labels.of(key) for key in sessions}


def assign_classes(
    labels: Mapping[Key, Mapping[str, str]], *, target: str, classes: Sequence[str], source: str
) -> Labelled:
    """The sessions whose labels give one of the classes in the column `target`.

    source: where the labels come from, for messages.
    Raises InputError where nobody has the column, or no session gets a class.
    """
    _check_column(target, list(labels.values()), source=source)
    kept: list[Key] = []
    left_out: dict[str, int] = {}
    for key in sorted(labels):
        value = present(labels[key].get(target, ""))
        if value in classes:
            kept.append(key)
            continue
        reason = "no labels" if not labels[key] else f"{target} is {value}" if value else f"no value of {target}"
        left_out[reason] = left_out.get(reason, 0) + 1
    if not kept:
        most = sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
        why = "; ".join(f"{counted(count, 'session')}: {reason}" for reason, count in most[:_REASONS])
        if len(most) > _REASONS:
            why += f"; and {counted(len(most) - _REASONS, 'other reason')}"
        raise InputError(f"{source}: no session of the store is of one of the classes {', '.join(classes)} ({why})")
    numbers = [list(classes).index(labels[key][target]) for key in kept]
    return Labelled(kept, np.array(numbers, dtype=np.int64), [labels[key] for key in kept], left_out)


def _check_column(name: str, labels: Sequence[Mapping[str, str]], *, source: str) -> None:
    found = sorted({column for row in labels for column in row})
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{source}: no column {name}; {hint}found {', '.join(found) or 'no labels at all'}")
