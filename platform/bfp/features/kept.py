"""Features on Ray: chunks of stacks to vectors on a few workers, each chunk kept as one Parquet file when it is done;
sessions to what a decoder takes, likewise.

    <kept>/<chunk>.parquet           columns as in `extraction.schema`
    <kept>/<session>.safetensors     as `token_maps` says

On CPUs each worker has one thread and a chunk of its own, which is faster than one model on all of them; with GPUs
there is one worker for each. Starting one costs seconds, so several descriptions of a store share them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from bfp.errors import Interrupted
from bfp.features.describe import Describe
from bfp.features.extraction import Chunk, describe_chunk, plan_chunks, seconds_of, with_seconds
from bfp.features.token_maps import Labels, SessionRows, TokenMaps, map_session, plan_sessions
from bfp.storage import Place
from bfp.store.reader import SliceStore


class _Counted(Protocol):
    """Work of so many stacks."""

    @property
    def stacks(self) -> int: ...


Work = TypeVar("Work", bound=_Counted)


class _Worker:
    """One process that describes chunks. It holds on to the last description: it may be a large model on a GPU."""

    def __init__(self, *, device: str, batch_size: int) -> None:
        self._device, self._batch_size = device, batch_size
        self._identity: str | None = None
        self._masks: tuple[tuple[str, int, str], pa.Table] | None = None  # of the last shard

    def keep(
        self, chunk: Chunk, *, store: SliceStore, identity: str, boxed: list[Any], shown: Sequence[str], kept: Place
    ) -> int:
        """Describe a chunk and write it; how many stacks it was. boxed: the reference to the description."""
        describe = self._held(identity, boxed)
        began = time.perf_counter()
        table = describe_chunk(store, chunk, describe, shown=shown, batch_size=self._batch_size)
        table = with_seconds(table, time.perf_counter() - began)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        _file(kept, chunk).write(buffer.getvalue())
        return chunk.stacks

    def keep_maps(
        self,
        session: SessionRows,
        *,
        store: SliceStore,
        identity: str,
        boxed: list[Any],
        labels: Labels,
        shown: Sequence[str],
        kept: Place,
    ) -> int:
        """Write the file of a session; how many stacks it was. boxed: as above."""
        maps: TokenMaps = self._held(identity, boxed)
        shard = (store.place.uri, session.file, labels.segmentation)
        if self._masks is None or self._masks[0] != shard:
            self._masks = shard, store.masks_beside(session.file, labels.segmentation)
        masks, size = self._masks[1], self._batch_size
        (kept / session.name).write(map_session(store, session, masks, maps, labels, shown=shown, batch_size=size))
        return session.stacks

    def _held(self, identity: str, boxed: list[Any]) -> Any:
        if identity != self._identity:
            self._description = ray.get(boxed[0]).to(self._device)
            self._identity = identity
        return self._description


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
        told = {"store": store, "boxed": describe, "identity": describe.identity, "shown": shown, "kept": kept}
        self._spread("keep", chunks, waiting, told, on_done=on_done, stopping=stopping)
        tables = [_read(_file(kept, chunk)) for chunk in chunks]
        whole = pa.concat_tables([table.replace_schema_metadata() for table in tables])
        return with_seconds(whole, sum(map(seconds_of, tables)))

    def token_maps(
        self,
        store: SliceStore,
        index: pa.Table,
        maps: TokenMaps,
        labels: Labels,
        *,
        shown: Sequence[str],
        kept: Place,
        on_done: Callable[[int], None],
        stopping: Callable[[], bool],
    ) -> list[Place]:
        """The kept files of the sessions of an index, in the order of their keys. Raises as `features` does."""
        sessions = plan_sessions(store, index, labels, identity=maps.identity, shown=shown)
        already = set(kept.names())
        waiting = [session for session in sessions if session.name not in already]
        told = {"store": store, "boxed": maps, "identity": maps.identity, "labels": labels}
        told |= {"shown": shown, "kept": kept}
        self._spread("keep_maps", sessions, waiting, told, on_done=on_done, stopping=stopping)
        return [kept / session.name for session in sessions]

    def _spread(
        self,
        method: str,
        everything: Sequence[Work],
        waiting: list[Work],
        told: dict[str, Any],
        *,
        on_done: Callable[[int], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Have a method of the workers do what is waiting. told: its other arguments."""
        total = sum(work.stacks for work in everything)
        done = total - sum(work.stacks for work in waiting)
        on_done(done)
        if waiting:
            self._start(len(waiting))
            told = {**told, "store": ray.put(told["store"]), "boxed": [ray.put(told["boxed"])]}
        idle, running = list(self._workers), dict[Any, Any]()
        while waiting or running:
            if stopping():
                raise Interrupted(f"stopped after {done:,} of {total:,} stacks; submit it again to go on")
            while waiting and idle:
                worker = idle.pop()
                running[getattr(worker, method).remote(waiting.pop(0), **told)] = worker
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                idle.append(running.pop(reference))
                done += ray.get(reference)
                on_done(done)

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
