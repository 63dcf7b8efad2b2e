"""Labels: what is to be learned of which session, from what the store carries of it or from a table of the user's.

Labels are text by column. Sessions that get no target are left out, counted and said, never guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bfp.cohorts.labels import Labels, present
from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.finetuning.covariates import as_number
from bfp.words import counted

_REASONS = 5  # that a message names


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Sessions with a target, in order of their keys.

    targets: int64 (n,), indices into the classes that were asked for; or float64 (n,), a number; or float64 (n, 2), the
    time and whether the event came then (1) or not (0). labels: of each, by column, for covariates. left_out: why
    sessions were, and how many of them.
    """

    sessions: list[Key]
    targets: np.ndarray
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


def reasons_in_words(left_out: Mapping[str, int]) -> str:
    """Why sessions were left out, the most frequent reasons first."""
    most = sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
    told = [f"{counted(count, 'session')}: {reason}" for reason, count in most[:_REASONS]]
    rest = [f"and {counted(len(most) - _REASONS, 'other reason')}"] if len(most) > _REASONS else []
    return "; ".join([*told, *rest])


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


class _Unknown(Exception):
    """A session has no target; why, in a few words that others share."""


def assign_classes(
    labels: Mapping[Key, Mapping[str, str]], *, target: str, classes: Sequence[str], source: str
) -> Labelled:
    """The sessions whose labels give one of the classes in the column `target`.

    source: where the labels come from, for messages.
    Raises InputError where nobody has the column, or no session gets a class.
    """

    def read(row: Mapping[str, str]) -> int:
        value = _known(row, target)
        if value not in classes:
            raise _Unknown(f"{target} is {value}")
        return list(classes).index(value)

    wanted = f"is of one of the classes {', '.join(classes)}"
    return _assign(labels, read, columns=[target], dtype=np.int64, wanted=wanted, source=source)


def assign_numbers(labels: Mapping[Key, Mapping[str, str]], *, target: str, source: str) -> Labelled:
    """The sessions whose labels give a number in the column `target`; errors as of `assign_classes`."""

    def read(row: Mapping[str, str]) -> float:
        return _number(row, target)

    wanted = f"has a number in {target}"
    return _assign(labels, read, columns=[target], dtype=np.float64, wanted=wanted, source=source)


def assign_times(labels: Mapping[Key, Mapping[str, str]], *, time: str, event: str, source: str) -> Labelled:
    """The sessions whose labels give a time above 0 and whether the event came then, 1 or 0; errors as above, and where
    the event is coded by other numbers, of which nobody can know which one it is."""
    coded = {number for row in labels.values() if (number := as_number(present(row.get(event, "")))) is not None}
    if others := sorted(coded - {0, 1}):
        held = ", ".join(f"{each:g}" for each in others[:_REASONS])
        raise InputError(
            f"{source}: {event} holds {held}; expected 1 where the event was seen and 0 where it was not (censored), "
            "and nothing where that is not known; write it so"
        )

    def read(row: Mapping[str, str]) -> tuple[float, float]:
        found, came = _number(row, time), _number(row, event)
        if found <= 0:
            raise _Unknown(f"{time} is not above 0")
        return found, came

    wanted = f"has a time in {time} and 0 or 1 in {event}"
    return _assign(labels, read, columns=[time, event], dtype=np.float64, wanted=wanted, source=source)


def _known(row: Mapping[str, str], column: str) -> str:
    if not row:
        raise _Unknown("no labels")
    if not (value := present(row.get(column, ""))):
        raise _Unknown(f"no value of {column}")
    return value


def _number(row: Mapping[str, str], column: str) -> float:
    value = _known(row, column)
    if (number := as_number(value)) is None:
        raise _Unknown(f"{column} is {value}, which is no number")
    return number


def _assign(
    labels: Mapping[Key, Mapping[str, str]],
    read: Callable[[Mapping[str, str]], Any],
    *,
    columns: Sequence[str],
    dtype: type,
    wanted: str,
    source: str,
) -> Labelled:
    """read: a session's target from its labels; raises _Unknown. wanted: what none does where all are left out."""
    for column in columns:
        _check_column(column, list(labels.values()), source=source)
    kept: list[Key] = []
    targets: list[Any] = []
    left_out: dict[str, int] = {}
    for key in sorted(labels):
        try:
            targets.append(read(labels[key]))
        except _Unknown as unknown:
            left_out[str(unknown)] = left_out.get(str(unknown), 0) + 1
        else:
            kept.append(key)
    if not kept:
        raise InputError(f"{source}: no session of the store {wanted} ({reasons_in_words(left_out)})")
    return Labelled(kept, np.array(targets, dtype=dtype), [labels[key] for key in kept], left_out)


def _check_column(name: str, labels: Sequence[Mapping[str, str]], *, source: str) -> None:
    found = sorted({column for row in labels for column in row})
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{source}: no column {name}; {hint}found {', '.join(found) or 'no labels at all'}")
