"""How a store's stacks are best laid out, and how fast they are read back.

    python -m tests.benchmarks.store layouts STORE [--repeats 5] [--stacks 2000]
    python -m tests.benchmarks.store reading STORE [--repeats 5] [--batch-size 64] [--copies 4]

One core, page cache warm, medians of the repeats, the approaches in alternation. GB are of pixels.

layouts: the stacks of STORE are written again in each layout; bytes as a share of the pixels, and GB/s of CPU time of
writing, and of reading every row group once in random order: through Arrow, and stack by stack as a run does
(`SliceStore.read_packed`).

reading: STORE is copied so many times under new names, and one pass read to shuffled torch batches of uint8: in planned
order by `bfp.batches.reader`, and by Ray Data's `iter_torch_batches` with a local shuffle of as many stacks. From the
call to the last batch, with every process held to one core: CPU time of them all (Linux), and the wall's, which other
work on the machine disturbs. Ray itself has started before, and the store's index, which a run reads once for all its
passes, has been read.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bfp.batches.plan import WINDOW, BatchPlan, Units, units_of
from bfp.batches.reader import read
from bfp.storage import Place, place
from bfp.store import layout, schemas
from bfp.store.reader import SliceStore, StackFile, pixels_of
from bfp.store.writer import PartWriter
from tests.processes import cpu_seconds


class Layout(NamedTuple):
    """rows to a row group; page_stacks: at least so many; pixels: as fixed-size binary, list or tensor."""

    rows: int = 16
    codec: str = "lz4"
    level: int | None = None
    page_stacks: int = 1
    pixels: str = "binary"

    def __str__(self) -> str:
        codec = self.codec if self.level is None else f"{self.codec} {self.level}"
        return f"{self.pixels:7} {codec:8} {self.rows:3} rows  page {self.page_stacks:2}"


LAYOUTS = [
    Layout(),
    *(Layout(codec=codec) for codec in ("none", "snappy")),
    *(Layout(codec="zstd", level=level) for level in (-3, -1, 1, 3, 9)),
    *(Layout(rows=rows) for rows in (8, 32)),
    *(Layout(page_stacks=stacks) for stacks in (4, 16)),
    Layout(codec="zstd", level=-1, page_stacks=16),
    *(Layout(pixels=pixels) for pixels in ("list", "tensor")),
]


# layouts --------------------------------------------------------------------------------------------------------------


def sessions_of(store: SliceStore, *, stacks: int) -> list[pa.Table]:
    """The first so many stacks, a table a session."""
    found: list[pa.Table] = []
    for file in store.stack_files():
        with file.place.open_parquet() as parquet:
            whole = parquet.read(use_threads=False).combine_chunks()
        keys = list(zip(*(whole[name].to_pylist() for name in ("subject", "session")), strict=True))
        starts = [0, *(at for at in range(1, len(keys)) if keys[at] != keys[at - 1]), len(keys)]
        found += [whole.slice(start, end - start) for start, end in pairwise(starts)]
        if sum(each.num_rows for each in found) >= stacks:
            break
    return found


def with_pixels_as(table: pa.Table, kind: str) -> pa.Table:
    if kind == "binary":
        return table
    at = table.schema.get_field_index("pixels")
    pixels = pixels_of(table)
    values = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels[0].size)
    if kind == "tensor":
        values = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), pixels.shape[1:]), values)
    return table.set_column(at, "pixels", values)


def write(sessions: list[pa.Table], file: Path, how: Layout) -> None:
    coded = ["cohort", "subject", "session"]
    size = how.page_stacks * sessions[0].schema.field("pixels").type.byte_width if how.pixels == "binary" else 1 << 28
    paged = {"data_page_size": size, "write_batch_size": 1} if how.pixels == "binary" else {"data_page_size": size}
    with pq.ParquetWriter(
        file,
        sessions[0].schema,
        compression=how.codec,
        compression_level=how.level,
        use_dictionary=coded,
        write_statistics=coded,
        write_page_checksum=True,
        **paged,
    ) as writer:
        for session in sessions:
            for start in range(0, session.num_rows, how.rows):
                writer.write_table(session.slice(start, how.rows), row_group_size=how.rows)


def through_arrow(file: Path) -> None:
    with Place(str(file)).open_parquet() as parquet:
        for group in np.random.default_rng(0).permutation(parquet.num_row_groups):
            parquet.read_row_group(int(group), columns=["pixels"], use_threads=False)


def as_the_store(store: SliceStore, file: Path) -> None:
    with Place(str(file)).open_parquet() as parquet:
        rows = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
    made = StackFile(Place(str(file)), sum(rows), rows)
    for group in np.random.default_rng(0).permutation(len(rows)):
        stacks = store.read_packed(made, int(group))
        for row in range(len(stacks)):
            _ = stacks[row]


def layouts(store: SliceStore, *, repeats: int, stacks: int) -> None:
    sessions = sessions_of(store, stacks=stacks)
    size = sum(each.num_rows for each in sessions) * schemas.CHANNELS * store.size_px**2
    tables = {kind: [with_pixels_as(each, kind) for each in sessions] for kind in ("binary", "list", "tensor")}
    took: dict[tuple[Layout, str], list[float]] = {}
    shares: dict[Layout, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            for number, how in enumerate(LAYOUTS):
                file = Path(folder) / f"{turn}-{number}.parquet"  # a new name: open files are kept by name
                work: dict[str, Callable[[], None]] = {"write": lambda: write(tables[how.pixels], file, how)}  # noqa: B023
                work["arrow"] = lambda: through_arrow(file)  # noqa: B023
                if how.pixels == "binary":
                    work["store"] = lambda: as_the_store(store, file)  # noqa: B023
                for name, do in work.items():
                    began = time.process_time()
                    do()
                    took.setdefault((how, name), []).append(time.process_time() - began)
                shares[how] = file.stat().st_size / size
                file.unlink()
    print(f"{size / 1e9:.2f} GB of pixels, {sum(each.num_rows for each in sessions)} stacks")
    for how in LAYOUTS:
        rates = [
            f"{name} {size / statistics.median(took[how, name]) / 1e9:5.2f}"
            for name in ("write", "arrow", "store")
            if (how, name) in took
        ]
        print(f"  {how}  {shares[how]:.3f} of the bytes  GB/s: {'  '.join(rates)}")


# reading --------------------------------------------------------------------------------------------------------------


def copied(store: SliceStore, at: Place, *, copies: int) -> SliceStore:
    """The store's stacks so many times, each under cohorts of its own, as this writer writes them."""
    layout.make(at, store.preprocessing)
    commits = []
    for copy in range(copies):
        for number, file in enumerate(store.stack_files()):
            writer = PartWriter("stacks", schemas.stacks(store.size_px))
            for group in range(len(file.row_groups)):
                rows = store.read_row_group(file, group)
                cohorts = pa.array([f"{copy}-{name}" for name in rows["cohort"].to_pylist()])
                now = schemas.stacks(store.size_px)  # which may have columns that an older store lacks
                rows = pa.concat_tables(
                    [now.empty_table(), rows.set_column(0, "cohort", cohorts)], promote_options="default"
                )
                writer.add(rows.combine_chunks().cast(now))
            part = writer.write(at)
            assert part is not None
            name = f"{copy}-{number}"
            commits.append(layout.Commit(name=name, kind="shard", cohort=str(copy), parts=[part]))
    layout.take_snapshot(at, commits, cohorts=[str(copy) for copy in range(copies)])
    return SliceStore.open(at)


def planned(units: Units, store: SliceStore, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    plan = BatchPlan(units, batch_size=batch_size, seed=seed)
    return islice(read([store], plan), plan.pass_steps)


def by_ray_data(store: SliceStore, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    import ray.data
    from ray.data.collate_fn import ArrowBatchCollateFn

    class Pixels(ArrowBatchCollateFn):
        def __call__(self, batch: pa.Table) -> torch.Tensor:
            with_copy = pixels_of(batch)
            return torch.from_numpy(with_copy if with_copy.flags.writeable else with_copy.copy())

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False
    files = [file.place.uri for file in store.stack_files()]
    data = ray.data.read_parquet(files, columns=["pixels"], shuffle=ray.data.FileShuffleConfig(seed=seed))
    return iter(
        data.iter_torch_batches(
            batch_size=batch_size,
            local_shuffle_buffer_size=batch_size * WINDOW,
            local_shuffle_seed=seed,
            collate_fn=Pixels(),
            drop_last=True,
        )
    )


class Pass(NamedTuple):
    """GB/s by CPU time and by the wall."""

    cpu: float
    wall: float


def one_pass(open_it: Callable[[], Iterator[torch.Tensor]]) -> Pass:
    began, cpu_s, size = time.perf_counter(), cpu_seconds(), 0
    for batch in open_it():
        size += batch.numel()
    return Pass(size / (cpu_seconds() - cpu_s) / 1e9, size / (time.perf_counter() - began) / 1e9)


def reading(store: SliceStore, *, repeats: int, batch_size: int, copies: int) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=4 << 30,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        made = copied(store, place(folder), copies=copies)
        approaches: dict[str, Any] = {
            "planned": partial(planned, units_of([made.stack_index()])),
            "Ray Data": by_ray_data,
        }
        size = made.totals.stacks * schemas.CHANNELS * made.size_px**2
        print(f"{made.totals.stacks} stacks, {size / 1e9:.2f} GB of pixels in {made.totals.size_bytes / 1e9:.2f} GB")
        passes: dict[str, list[Pass]] = {name: [] for name in approaches}
        for turn in range(repeats + 1):  # the first warms the page cache
            for name, approach in approaches.items():
                found = one_pass(partial(approach, made, batch_size, turn))
                if turn:
                    passes[name].append(found)
    medians = {name: Pass(*map(statistics.median, zip(*found, strict=True))) for name, found in passes.items()}
    for name, found in passes.items():
        print(
            f"  {name:9} {medians[name].cpu:5.2f} GB/s of CPU time ({min(found).cpu:.2f} to {max(found).cpu:.2f}), "
            f"{medians[name].wall:.2f} of the wall; planned order is {medians['planned'].cpu / medians[name].cpu:.1f} "
            f"times as fast by CPU time, {medians['planned'].wall / medians[name].wall:.1f} by the wall"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layouts", "reading"])
    parser.add_argument("store")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stacks", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--copies", type=int, default=4)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    store = SliceStore.open(place(given.store))
    if given.what == "layouts":
        layouts(store, repeats=given.repeats, stacks=given.stacks)
    else:
        reading(store, repeats=given.repeats, batch_size=given.batch_size, copies=given.copies)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
