"""Features on Ray: chunks of stacks to vectors on a few workers, each chunk kept as one Parquet file when it is done.

    <kept>/<chunk>.parquet     columns as in `extraction.schema`

On CPUs each worker has one thread and a chunk of its own, which is faster than one model on all of them; with GPUs
there is one worker for each. Starting one costs seconds, so several descriptions of a store share them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from bfp.errors import Interrupted
from bfp.features.describe import Describe
from bfp.features.extraction import Chunk, describe_chunk, plan_chunks, seconds_of, with_seconds
from bfp.storage import Place
from bfp.store.reader import SliceStore


class _Worker:
    """One process that describes chunks. It holds on to the last description: it may be a large model on a GPU."""

    def __init__(self, *, device: str, batch_size: int) -> None:
        self._device, self._batch_size = device, batch_size
        self._identity: str | None = None

    def keep(
        self, chunk: Chunk, *, store: SliceStore, identity: str, boxed: list[Any], shown: Sequence[str], kept: Place
    ) -> int:
        """Describe a chunk and write it; how many stacks it was. boxed: the reference to the description."""
        if identity != self._identity:
            self._describe: Describe = ray.get(boxed[0]).to(self._device)
            self._identity = identity
        began = time.perf_counter()
        table = describe_chunk(store, chunk, self._describe, shown=shown, batch_size=self._batch_size)
        table = with_seconds(table, time.perf_counter() - began)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        _file(kept, chunk).write(buffer.getvalue())
        return chunk.stacks


class Extraction:
    """The workers, for as long as the `with` lasts; they are started when there is work for them.

    workers: on CPUs, where gpus is 0; else there is one for each GPU, or one on the share of a GPU.
    """

    def __init__(self, *, workers: int, gpus: float, batch_size: int) -> None:
        self._count = max(1, int(gpus)) if gpus else workers
        self._gpus_each = gpus / self._count
        self._batch_size = batch_size
        self._workers: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            ray.kill(worker)

    def features(
        self,
        store: SliceStore,
        index: pa.Table,
        describe: Describe,
        *,
        shown: Sequence[str],
        kept: Place,
        on_done: Callable[[int], None],
        stopping: Callable[[], bool],
    ) -> pa.Table:
        """The vectors of the stacks of an index (rows of `store.stack_index()`), columns as in `extraction.schema`.

        on_done hears how many stacks are done. Raises Interrupted, with what is done kept, when `stopping` says so.
        """
        chunks = plan_chunks(store, index, identity=describe.identity, shown=shown)
        already = set(kept.names())
        waiting = [chunk for chunk in chunks if _file(kept, chunk).name not in already]
        done = sum(chunk.stacks for chunk in chunks) - sum(chunk.stacks for chunk in waiting)
        on_done(done)
        if waiting:
            self._start(len(waiting))
            shared = {"store": ray.put(store), "boxed": [ray.put(describe)], "identity": describe.identity}
        idle, running = list(self._workers), dict[Any, Any]()
        while waiting or running:
            if stopping():
                raise Interrupted(f"stopped after {done:,} of {index.num_rows:,} stacks; submit it again to go on")
            while waiting and idle:
                worker = idle.pop()
                running[worker.keep.remote(waiting.pop(0), shown=shown, kept=kept, **shared)] = worker
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                idle.append(running.pop(reference))
                done += ray.get(reference)
                on_done(done)
        tables = [_read(_file(kept, chunk)) for chunk in chunks]
        whole = pa.concat_tables([table.replace_schema_metadata() for table in tables])
        return with_seconds(whole, sum(map(seconds_of, tables)))

    def _start(self, chunks: int) -> None:
        """See that there are workers for so many chunks."""
        worker = ray.remote(num_cpus=1, num_gpus=self._gpus_each, max_restarts=2, max_task_retries=2)(_Worker)
        device = "cuda" if self._gpus_each else "cpu"
        for _ in range(min(self._count, chunks) - len(self._workers)):
            self._workers.append(worker.remote(device=device, batch_size=self._batch_size))


def _file(kept: Place, chunk: Chunk) -> Place:
    return kept / f"{chunk.name}.parquet"


def _read(file: Place) -> pa.Table:
    with file.open_parquet() as parquet:
        return parquet.read()
