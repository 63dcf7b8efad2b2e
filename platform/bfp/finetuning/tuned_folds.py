"""Trainings side by side on Ray, each epoch kept, and what came of each when it is done.

    <kept>/<name>-<hash>.safetensors       what came of it, under the hash of all that went into it
    <kept>/<name>-<hash>/epoch-<n>.…       the last epoch of one that goes on (`tuning`)

A worker tells of an epoch when it stands kept; one that died is started again, and goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from bfp.errors import Interrupted
from bfp.finetuning.tuning import Epoch, Trial, TunedFold, dump_tuned, forget_epochs, load_tuned, tune
from bfp.storage import Place
from bfp.words import counted

RESTARTS = 2
"""Of one training whose worker died without a word."""


class Training(NamedTuple):
    """kept: the folder of its epochs; what comes of it is a file of that name."""

    trial: Trial
    kept: Place

    @property
    def file(self) -> Place:
        return self.kept.parent / f"{self.kept.name}.safetensors"


def tune_side_by_side(
    trainings: Mapping[str, Training],
    *,
    gpus_each: float,
    at_once: int,
    on_epoch: Callable[[str, Epoch], None],
    stopping: Callable[[], bool],
) -> dict[str, TunedFold]:
    """What came of every training, by its name, `at_once` of them at a time, a CPU each and a share of the GPUs.

    on_epoch hears of each epoch that this call trains, and of the last one of what was done before. Raises
    Interrupted, with what stands kept, when `stopping` says so.
    """
    done = {name: load_tuned(own.file.read()) for name, own in trainings.items() if own.file.exists()}
    for name, fold in done.items():
        on_epoch(name, fold.epochs[-1])
    waiting = [name for name in trainings if name not in done]
    work = ray.remote(num_cpus=1, num_gpus=gpus_each, max_retries=0)(_work)
    running: dict[Any, str] = {}  # by its epochs, as they come
    deaths: Counter[str] = Counter()
    try:
        while waiting or running:
            if stopping():
                raise Interrupted(
                    f"stopped after {len(done):,} of {counted(len(trainings), 'training')}; submit it again to go on"
                )
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                own = trainings[name]
                device = "cuda" if gpus_each else "cpu"
                running[work.options(num_returns="streaming").remote(own.trial, own.kept, device)] = name
            ready: list[Any] = ray.wait(list(running), timeout=0.5)[0]
            for stream in ready:
                name = running[stream]
                try:
                    told: Epoch | TunedFold = ray.get(next(stream))
                except RayTaskError:
                    raise
                except RayError:
                    running.pop(stream)
                    deaths[name] += 1
                    if deaths[name] > RESTARTS:
                        raise
                    waiting.insert(0, name)
                    continue
                if isinstance(told, Epoch):
                    on_epoch(name, told)
                    continue
                running.pop(stream)
                done[name] = told
                trainings[name].file.write(dump_tuned(told))
                forget_epochs(trainings[name].kept)
    finally:
        for stream in running:
            ray.cancel(stream, force=True)
    return {name: done[name] for name in trainings}


def _work(trial: Trial, kept: Place, device: str) -> Iterator[Epoch | TunedFold]:
    yield from tune(trial, kept=kept, device=device)
