"""A worker of a pretraining: what it does from its start to its end, and the task that it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from bfp.batches.plan import BatchPlan
from bfp.batches.reader import read
from bfp.drivers.training import POLL_S, told_to_end
from bfp.errors import BfpError
from bfp.memory import STEPS, keep_freed_memory
from bfp.models.encoder import LoadedEncoder, export, load
from bfp.pretraining.loop import Cadence, Recipe, teacher_mask_token, teacher_weights, worker
from bfp.pretraining.tripwire import Tripwire, Watch
from bfp.storage import Place
from bfp.store.reader import SliceStore

STOP_CHECK_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Everything that a worker needs.

    encoder: the arguments of `models.encoder.load`. threads: CPU threads of each worker. checkpoints, model: folders of
    the run. card, provenance: of the exported encoder. watch: None where nothing is probed while training.
    """

    encoder: Mapping[str, Any]
    recipe: Recipe
    cadence: Cadence
    stores: tuple[SliceStore, ...]
    plan: BatchPlan
    threads: int
    checkpoints: Place
    model: Place
    card: str
    provenance: Mapping[str, Any]
    watch: Watch | None


def work(task: Task, board: Any) -> None:
    """One worker's whole life."""
    if ray.get(board.is_over.remote()):
        return
    first = ray.train.get_context().get_world_rank() == 0
    torch.set_num_threads(task.threads)
    if ray.train.torch.get_device().type == "cpu":
        keep_freed_memory(**STEPS)
    try:
        step = _train_and_export(task, board, first=first)
    except BfpError as error:
        ray.get(board.failed.remote(error))
        raise  # Ray Train ends the others, which may be waiting for this one
    if first or step < task.recipe.schedules.steps:
        ray.get(board.finished.remote(step))


def _train_and_export(task: Task, board: Any, *, first: bool) -> int:
    def open_batches(step: int, rank: int, workers: int) -> Iterator[Tensor]:
        if rank == 0:
            board.started.remote(step)
        pinned = device.type == "cuda"
        return read(task.stores, task.plan, rank=rank, workers=workers, start_step=step, pinned=pinned)

    def begun() -> LoadedEncoder:
        return replace(load(**task.encoder), fill=task.recipe.crops.fill)

    device, encoder = ray.train.torch.get_device(), begun()
    state = worker(
        encoder.model,
        mask_token=encoder.mask_token,
        recipe=task.recipe,
        cadence=task.cadence,
        checkpoints=task.checkpoints,
        open_batches=open_batches,
        device=device,
        log=board.log.remote,
        note=board.note.remote,
        logged=_kept(board),
        stop=_asked(board),
        tripwire=Tripwire(task.watch, begun(), device) if task.watch else None,
    )
    if state.step == task.recipe.schedules.steps:
        weights, mask_token = teacher_weights(state), teacher_mask_token(state)
        if first:
            encoder = replace(begun(), mask_token=mask_token)
            encoder.model.load_state_dict(weights)
            export(encoder, task.model, card=task.card, provenance=task.provenance)
    return state.step


def _kept(board: Any) -> Callable[[int], None]:
    """Wait until the run has kept all figures up to a step: one that goes on from its checkpoint logs them no more."""

    def wait(step: int) -> None:
        ray.get(board.saving.remote(step))
        while ray.get(board.kept.remote()) < step:
            time.sleep(POLL_S / 5)

    return wait


def _asked(board: Any) -> Callable[[], bool]:
    """Whether this worker was told to end, or the user wants to stop, asked of the board once in STOP_CHECK_S."""
    asked_at = time.monotonic()

    def stop() -> bool:
        nonlocal asked_at
        if time.monotonic() - asked_at < STOP_CHECK_S:
            return told_to_end.is_set()
        asked_at = time.monotonic()
        return told_to_end.is_set() or bool(ray.get(board.stopping.remote()))

    return stop
