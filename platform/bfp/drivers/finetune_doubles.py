"""The same scan under two names, in training and in test: what every fine-tuning looks for before it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bfp.errors import InputError
from bfp.features.doubles import doubles
from bfp.runs import Run
from bfp.storage import Place
from bfp.words import counted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MOST_NAMED = 20
"""Pairs of subjects that a run names."""


def check_doubles(run: Run, planes: pa.Table, *, persons: Sequence[str], folds: np.ndarray, store: Place) -> None:
    """Raise InputError where somebody is learned from under one name and tested under another.

    planes: as `doubles` takes them. persons, folds: of each session, whose it is and where it is tested.
    """
    fold_of = dict(zip(persons, folds.tolist(), strict=True))
    found = doubles(planes)
    torn = [each for each in found if fold_of[each.one] != fold_of[each.other]]
    for each in found[:MOST_NAMED]:
        run.note(f"the same scans: {each.one} and {each.other} share {each.shared} of {each.planes} planes")
    if torn:
        first, *others = torn
        more = f"; and so are {counted(len(others), 'other pair')}" if others else ""
        raise InputError(
            f"{store}: {first.one} and {first.other} are the same scans under two names ({first.shared} "
            f"of {counted(first.planes, 'plane')} are equal), one of which would be learned from and the other tested "
            f"on{more}; leave one of each out (where.exclude_subjects), or put both in one fold (splits)"
        )
    if found:
        run.warn(
            f"{counted(len(found), 'pair')} of subjects are the same scans under two names, in one fold each: they "
            "count twice (the notes name them)"
        )
