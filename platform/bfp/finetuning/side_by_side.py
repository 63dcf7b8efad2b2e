"""Jobs side by side on Ray, each kept as a file when it is done, so that a stopped run goes on with the others.

A job's file is named by the hash of all that goes into it: a changed input is never mistaken for an old one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray

from bfp.errors import Interrupted
from bfp.storage import Place
from bfp.words import counted

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Job(NamedTuple):
    """file: where what comes of it is kept; arguments: of the function that does it; gpus: that it claims beside its
    CPU."""

    file: Place
    arguments: tuple[Any, ...]
    gpus: float = 0.0


def side_by_side(
    function: Callable[..., Result],
    jobs: Mapping[Key, Job],
    *,
    dump: Callable[[Result], bytes],
    load: Callable[[bytes], Result],
    unit: str,
    on_done: Callable[[int], None],
    stopping: Callable[[], bool],
    at_once: int,
) -> dict[Key, Result]:
    """What comes of every job, `at_once` of them at a time, one CPU each; on_done hears how many are done.

    unit: what one is called. Raises Interrupted, with what stands kept, when `stopping` says so.
    """
    done = {key: load(job.file.read()) for key, job in jobs.items() if job.file.exists()}
    on_done(len(done))
    waiting = [key for key in jobs if key not in done]
    remote = ray.remote(num_cpus=1)(function)
    shared = _Shared()
    running: dict[ray.ObjectRef, Key] = {}
    while waiting or running:
        if stopping():
            raise Interrupted(f"stopped after {len(done):,} of {counted(len(jobs), unit)}; submit it again to go on")
        while waiting and len(running) < at_once:
            key = waiting.pop(0)
            claimed = remote.options(num_gpus=jobs[key].gpus)
            running[claimed.remote(*map(shared.put, jobs[key].arguments))] = key
        ready, _ = ray.wait(list(running), timeout=0.5)
        for reference in ready:
            key = running.pop(reference)
            done[key] = ray.get(reference)
            jobs[key].file.write(dump(done[key]))
            on_done(len(done))
    return {key: done[key] for key in jobs}


class _Shared:
    """Arguments that several jobs have in common are put into Ray's store once."""

    def __init__(self) -> None:
        self._put: dict[int, tuple[Any, ray.ObjectRef]] = {}

    def put(self, argument: Any) -> Any:
        if isinstance(argument, int | float | str | np.generic):
            return argument
        if id(argument) not in self._put:
            self._put[id(argument)] = (argument, ray.put(argument))  # held, so that nothing else gets its id
        return self._put[id(argument)][1]
