"""The order of training: which stack stands at which place of which batch, as a pure function of seed and step.

The unit of reading is a row group: some ten neighbouring slices of one session, compressed together. Reading one for
a single stack would waste the rest, and reading them in turn would put near-duplicates into one batch. So:

- a pass goes once through all stacks. It begins by putting the row groups into a random order, end to end;
- each of the B places in the global batch is a lane: it owns 1/B of that row of stacks and gives one stack a step;
- a lane takes its part in windows of a few row groups, and gives the stacks of a window in random order. The lanes'
  windows begin at different steps, so that reading is spread evenly.

Lanes and not workers are the unit: whoever holds a lane, its stacks are the same, and so are the batches for any number
of workers and after any restart. Of each pass fewer than B stacks are left out, other ones each time. At a pass's end
all lanes end together.

Letters: B lanes, L steps of a pass, R stacks in all, U units (row groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.errors import InputError

WINDOW = 32  # stacks: two to four row groups, from different sessions; memory is about B times as much


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The row groups that hold wanted stacks.

    source, file, group: int (U,), where unit u lies: which store, which of its files, which row group.
    rows: int (R,), the wanted rows, counted within their row groups, unit after unit; unit u's are
    rows[first[u] : first[u + 1]]. The place of a stack in `rows` is its number in the whole program.
    """

    source: np.ndarray
    file: np.ndarray
    group: np.ndarray
    rows: np.ndarray
    first: np.ndarray

    @property
    def stacks(self) -> int:
        """R"""
        return len(self.rows)


def units_of(indices: Sequence[pa.Table]) -> Units:
    """The units of one or more stores, from the part of each store's `stack_index` that is wanted, in any order.

    They are in order of their sessions, not of the files: these are named by where the scans lie and when they were
    written, and the same scans elsewhere shall be learned from in the same order.
    """
    columns = ("file", "row_group", "row")
    by_session = [(name, "ascending") for name in ("cohort", "subject", "session", *columns)]
    indices = [index.take(pc.sort_indices(index, sort_keys=by_session)) for index in indices]
    parts = [np.stack([index[name].to_numpy() for name in columns]).astype(np.int64) for index in indices]
    source = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    file, group, row = np.concatenate(parts, axis=1)
    at = np.flatnonzero(np.diff(np.stack([source, file, group]), axis=1, prepend=-1).any(axis=0))
    return Units(source=source[at], file=file[at], group=group[at], rows=row, first=np.append(at, len(row)))


def by_row_group(index: pa.Table) -> list[np.ndarray]:
    """The rows of a store's index that lie in each row group, as numbers into it, all in the order of the store."""
    file, group, row = (index[name].to_numpy() for name in ("file", "row_group", "row"))
    order = np.lexsort((row, group, file))
    starts = np.flatnonzero(np.diff([file[order], group[order]], axis=1, prepend=-1).any(axis=0))
    return np.split(order, starts)[1:]


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """Everything that the order depends on. Raises InputError where the stacks do not fill one batch."""

    units: Units
    batch_size: int
    seed: int
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.units.stacks < self.batch_size:
            raise InputError(
                f"the store has {self.units.stacks} stacks for training, fewer than one batch of {self.batch_size}; "
                "lower train.batch_size, widen `where`, or ingest more"
            )

    @property
    def pass_steps(self) -> int:
        """L, the steps of one pass over the stacks."""
        return self.units.stacks // self.batch_size


class Window(NamedTuple):
    """Consecutive steps of one lane, [begin, begin + len(stacks)), counted from step 0 of training.

    stacks: int64 (steps,), their numbers in `Units.rows`; units: int64 (steps,), the row groups that they lie in.
    """

    begin: int
    stacks: np.ndarray
    units: np.ndarray


def window_at(plan: BatchPlan, *, lane: int, step: int) -> Window:
    """The window in which a lane is at a step."""
    number, offset = divmod(step, plan.pass_steps)
    head = (
        plan.window - lane * plan.window // plan.batch_size
    )  # the first window's steps, which puts the lanes out of phase
    index = max(0, -(-(offset - head + 1) // plan.window))
    begin = head + (index - 1) * plan.window if index else 0
    end = min(head + index * plan.window, plan.pass_steps)

    sequence = _sequence(plan, number)
    places = np.arange(begin, end) + lane * plan.pass_steps  # in the pass's row of stacks
    places = np.random.default_rng([plan.seed, number, index, lane]).permutation(places)
    at = np.searchsorted(sequence.ends, places, side="right")
    units = sequence.units[at]
    stacks = plan.units.first[units + 1] - (sequence.ends[at] - places)
    return Window(begin=number * plan.pass_steps + begin, stacks=stacks, units=units)


class _Sequence(NamedTuple):
    """A pass's order: units (U,) end to end, and the place where each ends."""

    units: np.ndarray
    ends: np.ndarray


@lru_cache(maxsize=4)
def _sequence(plan: BatchPlan, number: int) -> _Sequence:
    units = np.random.default_rng([plan.seed, number]).permutation(len(plan.units.group))
    return _Sequence(units, np.cumsum(np.diff(plan.units.first)[units]))
