"""Groups of sessions, by a column of their labels: in whom a model is good, and in whom it is not.

Text makes a group of each value, the MOST_VALUES largest of them and one of all others. Where most values are numbers,
of more kinds than that, they make BANDS of about as many sessions each, and what is no number ("90+") counts as not
known. Every session is in one group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bfp.finetuning.covariates import as_number
from bfp.words import counted

MOST_VALUES = 10
BANDS = 3
UNKNOWN = "not known"


class Group(NamedTuple):
    """name: what its sessions have in common; members: bool (n,)."""

    name: str
    members: np.ndarray


def groups_of(values: Sequence[str]) -> list[Group]:
    """values: text of n sessions, "" where it is not known."""
    known = Counter(value for value in values if value)
    numbers = np.array([np.nan if (number := as_number(value)) is None else number for value in values])
    found = np.array(values)
    if len(known) > MOST_VALUES and 2 * np.isfinite(numbers).sum() > known.total():
        groups = _bands(numbers)
    else:
        largest = sorted(known.items(), key=lambda each: (-each[1], each[0]))[:MOST_VALUES]
        groups = [Group(value, found == value) for value, _ in largest]
        rest = len(known) - len(largest)
        others = ~np.isin(found, [value for value, _ in largest]) & (found != "")
        groups += [Group(f"{counted(rest, 'other value')}", others)] * bool(rest)
    missing = ~np.any([group.members for group in groups], axis=0)
    return [*groups, Group(UNKNOWN, missing)] if missing.any() else groups


def _bands(numbers: np.ndarray) -> list[Group]:
    """numbers: float64 (n,), NaN where it is not known."""
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, BANDS + 1)[1:-1], method="lower"))
    low = [-np.inf, *edges]
    high = [*edges, np.inf]
    names = [f"up to {edges[0]:g}"]
    names += [f"over {one:g} to {other:g}" for one, other in pairwise(edges)]
    names.append(f"over {edges[-1]:g}")
    bands = [Group(name, (numbers > a) & (numbers <= b)) for name, a, b in zip(names, low, high, strict=True)]
    return [band for band in bands if band.members.any()]
