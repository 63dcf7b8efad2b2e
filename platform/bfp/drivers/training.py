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

import pickle
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
from ray.train.backend import Backend, BackendConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bfp.drivers.board import Board, News
from bfp.errors import Interrupted
from bfp.runs.scratch import scratch

if TYPE_CHECKING:
    from bfp.drivers.training_worker import Task

POLL_S = 0.5


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
                train_loop_config={"task": pickle.dumps(task), "board": board},
                torch_config=_TorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=claims
                ),
                run_config=ray.train.RunConfig(
                    name="pretrain",
                    storage_path=str(folder),
                    failure_config=ray.train.FailureConfig(max_failures=retries),
                    callbacks=[_TellOfLosses(board)],  # type: ignore[list-item]  # V2's, which the types do not know
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
                    if not (ended or news.working or news.finished):
                        raise Interrupted(
                            "stopped while workers were waited for; every checkpoint stays: submit again to go on"
                        )
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


class _TellOfLosses(ray.train.UserCallback):
    """In Ray Train's controller, which alone knows at once that a worker has died."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._board.lost.remote()


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
    """A worker. Ray Train's controller, through which the task comes, would load timm for it: so it comes pickled."""
    from bfp.drivers.training_worker import work

    work(pickle.loads(config["task"]), config["board"])


told_to_end = threading.Event()  # this worker


def _hear_sigterm() -> None:
    """In a worker's main thread, which alone may say what becomes of a signal. Ray's own answer is to exit."""
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
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
