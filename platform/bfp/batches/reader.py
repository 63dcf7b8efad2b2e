"""The planned batches, read from the slice stores a little ahead of their use.

Each worker reads the lanes that it owns: rank r of W has the places [B·r/W, B·(r+1)/W) of the global batch. A few
threads decompress row groups for the next steps while the current ones are used; nothing is kept beyond the windows
that are open, about `plan.WINDOW` stacks a lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bfp.batches.plan import BatchPlan, Units, Window, window_at
from bfp.errors import InputError
from bfp.store.reader import SliceStore, StackFile, pixels_of

AHEAD_STEPS = 8
LOCAL_THREADS, REMOTE_THREADS = 2, 32  # on object storage a read is mostly waiting


def read(
    stores: Sequence[SliceStore], plan: BatchPlan, *, rank: int = 0, workers: int = 1, start_step: int = 0
) -> Iterator[Tensor]:
    """This worker's share of every batch from start_step on, without end: uint8 (b, 3, H, W).

    stores: those that `units_of` was told of.

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
    pool = ThreadPoolExecutor(LOCAL_THREADS if local else REMOTE_THREADS, thread_name_prefix="batches")

    def load(window: Window) -> _Loaded:
        return _load(stores, files, plan.units, window)

    try:
        lanes = [
            _Lane(plan, rank * share + place, start_step, lambda window: pool.submit(load, window))
            for place in range(share)
        ]
        while True:
            picked = [lane.take() for lane in lanes]
            yield torch.from_numpy(np.stack([part.pixels[at] for part, at in picked]))
    finally:
        pool.shutdown(cancel_futures=True)


class _Loaded(NamedTuple):
    window: Window
    pixels: np.ndarray  # uint8 (steps, 3, H, W)


class _Lane:
    """One place of the batch: its windows in turn, loaded ahead."""

    def __init__(self, plan: BatchPlan, lane: int, step: int, submit: Callable[[Window], Future[_Loaded]]) -> None:
        self._plan, self._lane, self._submit = plan, lane, submit
        self._step = self._planned_to = step
        self._coming: deque[Future[_Loaded]] = deque()
        self._plan_ahead()
        self._now: _Loaded | None = None

    def take(self) -> tuple[_Loaded, int]:
        """This step's stack, as a loaded window and the place in it."""
        if self._now is None or self._step == self._now.window.begin + len(self._now.window.stacks):
            self._now = self._coming.popleft().result()
        at = self._step - self._now.window.begin
        self._step += 1
        self._plan_ahead()
        return self._now, at

    def _plan_ahead(self) -> None:
        while self._planned_to <= self._step + AHEAD_STEPS:
            window = window_at(self._plan, lane=self._lane, step=self._planned_to)
            self._coming.append(self._submit(window))
            self._planned_to = window.begin + len(window.stacks)


def _load(stores: Sequence[SliceStore], files: Sequence[Sequence[StackFile]], units: Units, window: Window) -> _Loaded:
    size_px = stores[0].size_px
    pixels = np.empty((len(window.stacks), 3, size_px, size_px), np.uint8)
    for unit in np.unique(window.units):
        source = units.source[unit]
        group = stores[source].read_row_group(files[source][units.file[unit]], int(units.group[unit]))
        steps = np.flatnonzero(window.units == unit)
        rows = units.rows[window.stacks[steps]]
        pixels[steps] = pixels_of(group)[rows]
    return _Loaded(window, pixels)
