"""The planned batches, read from the slice stores a little ahead of their use.

Each worker reads the lanes that it owns: rank r of W has the places [B·r/W, B·(r+1)/W) of the global batch. Some
threads fetch row groups for the next steps, each once for a lane; others decompress the stacks of the next batches, and
put each in its place. Nothing is kept but these batches and, compressed, the row groups of the windows that are open:
one and a half to two times `plan.WINDOW` stacks a lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from bfp.batches.plan import BatchPlan, window_at
from bfp.errors import InputError
from bfp.store.pages import Packed
from bfp.store.reader import SliceStore

AHEAD_STEPS = 8  # whose row groups are being fetched
AHEAD_BATCHES = 2  # of these steps: being filled
LOCAL_THREADS, REMOTE_THREADS = 2, 32  # fetch: on object storage a read is mostly waiting
FILLERS = 2

RowGroup = Packed | np.ndarray


def read(
    stores: Sequence[SliceStore],
    plan: BatchPlan,
    *,
    rank: int = 0,
    workers: int = 1,
    start_step: int = 0,
    pinned: bool = False,
) -> Iterator[Tensor]:
    """This worker's share of every batch from start_step on, without end: uint8 (b, 3, H, W).

    stores: those that `units_of` was told of. pinned: in memory that a GPU copies from without anybody waiting.

    Raises InputError where the stores differ in size or the batch does not split among the workers.
    """
    if len({store.size_px for store in stores}) > 1:
        sizes = ", ".join(str(store.size_px) for store in stores)
        raise InputError(f"stores of one training need stacks of one size; these have {sizes} pixels")
    if plan.batch_size % workers:
        raise InputError(f"a batch of {plan.batch_size} does not split among {workers} workers")
    share = plan.batch_size // workers
    files = [store.stack_files() for store in stores]
    local = all(store.place.is_local for store in stores)
    size_px = stores[0].size_px
    units = plan.units
    fetchers = ThreadPoolExecutor(LOCAL_THREADS if local else REMOTE_THREADS, thread_name_prefix="batches-fetch")
    fillers = ThreadPoolExecutor(FILLERS, thread_name_prefix="batches-fill")

    def fetch(unit: int) -> RowGroup:
        source = units.source[unit]
        file = files[source][units.file[unit]]
        return stores[source].read_packed(file, int(units.group[unit]))

    def fill(places: np.ndarray, stacks: Sequence[tuple[Future[RowGroup], int]]) -> None:
        for place, (group, row) in zip(places, stacks, strict=True):
            place[:] = group.result()[row]

    def begin() -> tuple[Tensor, list[Future[None]]]:
        batch = torch.empty((share, 3, size_px, size_px), dtype=torch.uint8, pin_memory=pinned)
        places, stacks = batch.numpy(), [lane.take() for lane in lanes]
        return batch, [fillers.submit(fill, places[part::FILLERS], stacks[part::FILLERS]) for part in range(FILLERS)]

    try:
        lanes = [
            _Lane(plan, rank * share + place, start_step, lambda unit: fetchers.submit(fetch, unit))
            for place in range(share)
        ]
        begun = deque(begin() for _ in range(AHEAD_BATCHES))
        while True:
            batch, parts = begun.popleft()
            for part in parts:
                part.result()
            begun.append(begin())
            yield batch
    finally:
        for pool in (fetchers, fillers):
            pool.shutdown(cancel_futures=True)


class _Lane:
    """One place of the batch: its windows in turn, and the row groups that they lie in, read ahead."""

    def __init__(self, plan: BatchPlan, lane: int, step: int, fetch: Callable[[int], Future[RowGroup]]) -> None:
        self._plan, self._lane, self._fetch = plan, lane, fetch
        self._step = self._planned_to = step
        self._places: deque[tuple[int, int]] = deque()  # of the steps to come: unit, and row in its row group
        self._ends: deque[int] = deque()  # of the windows that these steps lie in
        self._open: dict[int, Future[RowGroup]] = {}  # by unit
        self._plan_ahead()

    def take(self) -> tuple[Future[RowGroup], int]:
        """This step's stack: its row group, and the row in it."""
        unit, row = self._places.popleft()
        stack = self._open[unit], row
        self._step += 1
        self._plan_ahead()
        if self._step == self._ends[0]:
            self._ends.popleft()
            # The row group on the border of two windows stays: it is read once.
            needed = {unit for unit, _ in self._places}
            self._open = {unit: group for unit, group in self._open.items() if unit in needed}
        return stack

    def _plan_ahead(self) -> None:
        while self._planned_to <= self._step + AHEAD_STEPS:
            window = window_at(self._plan, lane=self._lane, step=self._planned_to)
            skipped = self._planned_to - window.begin  # by a start in the middle
            units, rows = window.units[skipped:].tolist(), self._plan.units.rows[window.stacks[skipped:]].tolist()
            self._places.extend(zip(units, rows, strict=True))
            self._planned_to = window.begin + len(window.stacks)
            self._ends.append(self._planned_to)
            for unit in dict.fromkeys(units):  # in the order of their use
                if unit not in self._open:
                    self._open[unit] = self._fetch(unit)
