"""Pretraining on Ray Train: the workers, what they tell the driver, and how they come back after a failure.

    driver     asks Ray Train for workers, reads the board, writes the run
    board      a small actor without a CPU of its own: figures come in, the wish to stop goes out
    workers    each runs `pretraining.worker` from the last checkpoint; the first one speaks and exports

A worker that dies takes its group down with it; Ray Train starts the group again, as often as `retries` says, and it
goes on from the last complete checkpoint. What bfp itself finds wrong (training diverged, a file is damaged) would be
the same the next time: it ends the run at once, through the board.

A worker that is told to end (SIGTERM: its node is wanted for something else) has all of them save a checkpoint after
the step that they are at, and end: nothing is lost, and the driver asks for workers again, as often as that happens.

Ray Train's own checkpoints and results are not used: after a kill they lag behind, and they cannot hold a shard's
worth of each worker. Its storage is a temporary folder.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.backend import Backend, BackendConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from bfp.batches.plan import BatchPlan
from bfp.batches.reader import read
from bfp.drivers.board import Board, News
from bfp.errors import BfpError
from bfp.memory import STEPS, keep_freed_memory
from bfp.models.encoder import LoadedEncoder, export, load
from bfp.pretraining.loop import Cadence, Recipe, teacher_mask_token, teacher_weights, worker
from bfp.pretraining.tripwire import Tripwire, Watch
from bfp.runs.scratch import scratch
from bfp.storage import Place
from bfp.store.reader import SliceStore

POLL_S = 0.5
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


def train_on_ray(
    task: Task,
    *,
    workers: int,
    gpus_per_worker: int,
    retries: int,
    on_news: Callable[[News], None],
    stopping: Callable[[], bool],
) -> int:
    """Train, and return the steps that are done: all of them, or fewer when `stopping` said so.

    retries: of workers that were lost; those that were told to end do not count. on_news is called on this thread,
    twice a second. Raises what ended the training: a BfpError of the workers', or Ray's error after the last retry.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()  # it is lost with the driver only
    claims = {"CPU": task.threads, **({"GPU": gpus_per_worker} if gpus_per_worker else {})}

    def fit() -> int:
        ray.get(board.begin.remote())
        with scratch() as folder:
            trainer = ray.train.torch.TorchTrainer(
                _work,
                train_loop_config={"task": task, "board": board},
                torch_config=_TorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=claims
                ),
                run_config=ray.train.RunConfig(
                    name="pretrain",
                    storage_path=str(folder),
                    failure_config=ray.train.FailureConfig(max_failures=retries),
                ),
            )
            fitting = _Fitting(trainer)
            ended = False
            while not ended:
                ended = fitting.wait(POLL_S)
                news: News = ray.get(board.take.remote())
                on_news(news)
                board.keep.remote(news.saving)
                if stopping():
                    board.stop.remote()
        if news.failure is not None:
            raise news.failure
        if news.finished is None:
            fitting.check()
        assert news.finished is not None, "workers that end without an error say how far they came"
        return news.finished

    try:
        while (done := fit()) < task.recipe.schedules.steps and not stopping():
            pass  # its workers were told to end: others go on
    finally:
        ray.kill(board)
    return done


class _Fitting:
    """`fit` in a thread of its own, so that this one can listen, and Ray Train leaves Ctrl-C to the target."""

    def __init__(self, trainer: ray.train.torch.TorchTrainer) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so long at the most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what it raised."""
        if self._error is not None:
            raise self._error

    def _fit(self, trainer: ray.train.torch.TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the thread that waits, which raises it
            self._error = error


def _work(config: dict[str, Any]) -> None:
    """One worker's whole life."""
    task: Task = config["task"]
    board = config["board"]
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


_told_to_end = threading.Event()  # this worker


def _hear_sigterm() -> None:
    """In a worker's main thread, which alone may say what becomes of a signal. Ray's own answer is to exit."""
    signal.signal(signal.SIGTERM, lambda *_: _told_to_end.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class _TorchConfig(ray.train.torch.TorchConfig):
    """Ray Train's, for workers that hear SIGTERM."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchBackend


class _TorchBackend(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]  # known when it runs
    def on_training_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(_hear_sigterm)


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
            return _told_to_end.is_set()
        asked_at = time.monotonic()
        return _told_to_end.is_set() or bool(ray.get(board.stopping.remote()))

    return stop
