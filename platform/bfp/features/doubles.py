"""The same scan under two names: told by its planes, whose pixels are then equal to the last bit.

Cohorts that were put together from others often hold a person twice. Where one of the two is learned from and the other
tested, a figure is too good. A copy that was cut, resampled or coded anew is not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bfp.errors import InputError
from bfp.words import counted

MOST_NAMED = 20
"""Pairs of subjects that a run names."""
LEAST_SHARE = 0.5  # of the planes of the one who has fewer: single planes may be equal where hardly anything is shown
MOST_HOLDERS = 20  # of a plane that tells people apart: what more have in common is a test pattern or an empty frame


class Double(NamedTuple):
    """Two subjects, as cohort/subject; how many planes they share, and how many the one with fewer has."""

    one: str
    other: str
    shared: int
    planes: int


def doubles(features: pa.Table) -> list[Double]:
    """Subjects who share planes, those who share most first. features: rows of `extraction.schema`."""
    identity = zip(features["cohort"].to_pylist(), features["subject"].to_pylist(), strict=True)
    names = [f"{cohort}/{subject}" for cohort, subject in identity]
    people, whose = np.unique(np.array(names), return_inverse=True)
    planes = np.asarray(features["planes"].combine_chunks().flatten()).reshape(len(names), -1)  # (n, C), 0: empty
    pairs = np.unique(
        np.stack([planes.ravel(), np.repeat(whose, planes.shape[1])], axis=1)[planes.ravel() != 0], axis=0
    )
    held = np.bincount(pairs[:, 1], minlength=len(people))
    _, first, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    shared: Counter[tuple[int, int]] = Counter()
    for at in np.flatnonzero((count > 1) & (count <= MOST_HOLDERS)):
        shared.update(combinations(pairs[first[at] : first[at] + count[at], 1].tolist(), 2))
    found = [
        Double(str(people[one]), str(people[other]), number, fewer)
        for (one, other), number in shared.items()
        if number >= LEAST_SHARE * (fewer := int(min(held[one], held[other])))
    ]
    return sorted(found, key=lambda each: -each.shared)


def check_parted(
    found: Sequence[Double],
    homes: Mapping[str, Any],
    *,
    source: str,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Raise InputError where somebody is learned from under one name and tested under another.

    homes: of each subject that is judged where that happens (a fold): two of equal homes are never parted. source: the
    store, for the message; note and warn hear of those who stand twice in one home.
    """
    judged = [each for each in found if each.one in homes and each.other in homes]
    torn = [each for each in judged if homes[each.one] != homes[each.other]]
    for each in judged[:MOST_NAMED]:
        note(f"the same scans: {each.one} and {each.other} share {each.shared} of {each.planes} planes")
    if torn:
        first, *others = torn
        more = f"; and so are {counted(len(others), 'other pair')}" if others else ""
        raise InputError(
            f"{source}: {first.one} and {first.other} are the same scans under two names ({first.shared} "
            f"of {counted(first.planes, 'plane')} are equal), one of which would be learned from and the other tested "
            f"on{more}; leave one of each out (where.exclude_subjects), or put both in one fold (splits)"
        )
    if judged:
        warn(
            f"{counted(len(judged), 'pair')} of subjects are the same scans under two names, in one fold each: they "
            "count twice (the notes name them)"
        )
