"""What a driver itself takes at the scale of a consortium: memory and time of one process, with real code paths.

    python -m tests.campaigns.driver_load [STEP …] [--scans 1000000] [--workers 1000] [--at PLACE]

Three scans to a session, 16 sessions to a shard on average: 1,000,000 scans are 20,840 shards. Each step is a process
of its own; printed are what it counted, seconds of the wall and of CPU, and the most memory that its process had.

`discovery`  listing, sessions and shards, through the real S3 client (`tests.benchmarks.listing`)
`planning`   sessions to shards, their names, the estimate of the plan, and every shard as Ray is handed it
`handing`    500 shards of no work through Ray Data, on a Ray of 2 CPUs: what it takes to hand out one and hear of it
`commits`    a store's commits: written, looked at by a second submission, made a snapshot, read back
`events`     a run of so many workers: progress of every shard, a warning of every worker, figures of 10,000 steps; read
             back as `bfp status` does, and the end of the run
`report`     what a finished ingest says of itself: all shards' tables of scans read back, summarised, made a page
`training`   a pretraining's plan of one tenth of the stacks: index, subjects, order, and what each worker is sent
`board`      the actor that all workers of a pretraining ask once a second whether they shall stop, on a Ray of 2 CPUs

PLACE: a folder of a disk or of a bucket, for `commits`, `events` and `report`; else a temporary folder. The parts with
pixels are holes of their size and nobody reads them; all other files are real.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from bfp.cohorts import Scan, Session
from bfp.cohorts.sessions import Key
from bfp.drivers.ingest import shards_of
from bfp.drivers.preparing import cost_of
from bfp.runs import Run, RunFolder
from bfp.specs.ingest import Ingest
from bfp.storage import Entry, Place, place
from bfp.store import layout, schemas
from bfp.store.layout import Commit, Part
from bfp.store.reader import SliceStore
from bfp.store.writer import PartWriter, commit_sessions

MODALITIES = ("FLAIR", "T1w", "T2w")
STACKS_PER_SESSION, ROWS_PER_GROUP = 180, 16
STACK_BYTES = 64_000
STEPS, NAMES = 10_000, 20  # that are logged, and figures of each
TRAINING_SHARE = 10
ASKED_S = 5.0
HANDED = 500  # shards


def sessions_of(scans: int) -> list[Session]:
    """Sessions of three scans, as discovery makes them."""
    return [
        Session(
            Key("made", f"{number:07d}", "01"),
            tuple(
                Scan(
                    name,
                    Entry(Place(f"s3://made/sub-{number:07d}/ses-01/anat/{name}.nii.gz"), 10_000_000, f"{number:032x}"),
                )
                for name in MODALITIES
            ),
            labels={"age": "70", "sex": "F"},
        )
        for number in range(scans // 3)
    ]


def spec_of(at: str) -> Ingest:
    return Ingest.model_validate(
        {
            "kind": "ingest",
            "name": "load",
            "output": f"{at}/runs",
            "store": f"{at}/store",
            "cohorts": [{"name": "made", "bids": "s3://made"}],
            "preprocessing": {"stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]}},
            "pictures": False,
        }
    )


@contextmanager
def told(what: str, of: str = "") -> Iterator[None]:
    """Print what a piece of work took."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    yield
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    print(f"    {what:58} {took_s:8.1f} s {cpu_s:8.1f} s of CPU {peak_mb():8,.0f} MB  {of}", flush=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


# steps ----------------------------------------------------------------------------------------------------------------


def discovery(at: str, scans: int, workers: int) -> None:
    from tests.benchmarks.listing import measured

    for what in ("listing", "discovery"):
        found = measured(what, scans)
        print(f"    {what:58} {found['seconds']:8.1f} s {'':17} {found['peak_mb']:8,.0f} MB", flush=True)


def planning(at: str, scans: int, workers: int) -> None:
    with told("sessions made (discovery does this)"):
        sessions = sessions_of(scans)
    spec = spec_of("/made")
    with told("shards_of"):
        shards = shards_of(spec, sessions)
    with told("cost_of", f"{len(shards):,} shards"):
        cost_of([session for shard in shards for session in shard.sessions], spec.preprocessing)
    with told("shards as Ray is handed them"):
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    print(f"    {sum(len(row['shard']) for row in rows) / 1e6:,.0f} MB of pickled shards")


def commits(at: str, scans: int, workers: int) -> None:
    store = place(at) / "store"
    spec, sessions = spec_of(at), sessions_of(scans)
    layout.make(store, spec.preprocessing.stored())
    shards = shards_of(spec, sessions)
    names = [shard.name for shard in shards]
    with told("parts written (the workers do this)"), ThreadPoolExecutor(16) as pool:
        made = list(pool.map(partial(_parts_of, store), shards))
    records = [
        Commit(name=name, kind="shard", cohort="made", parts=parts, imaging=1)
        for name, parts in zip(names, made, strict=True)
    ]
    with told("commits written (the workers do this)"), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda record: layout.commit(store, record), records))
    with told("a second submission looks what is committed", f"{len(names):,} commits"):
        assert len(layout.whole(store, names)) == len(names)
    with told("sessions' rows committed"):
        rows = [
            {**session.key._asdict(), "modalities": list(MODALITIES), "labels": dict(session.labels)}
            for session in sessions
        ]
        own = commit_sessions(store, rows, cohort="made", segmentations={})
    with told("all read again and made a snapshot"):
        whole = layout.whole(store, [*names, own.name])
        layout.take_snapshot(store, [whole[name] for name in (*names, own.name)], cohorts=["made"])
    with told("another submission, of which all is in the snapshot"):
        assert len(layout.whole(store, names)) == len(names)
    with told("the store opened"):
        opened = SliceStore.open(store)
    size = (store / layout.snapshot_file(opened.snapshot)).size()
    print(f"    {size / 1e6:,.1f} MB of snapshot, {len(pickle.dumps(opened)) / 1e6:,.1f} MB pickled for each worker")


def _parts_of(store: Place, shard: Any) -> list[Part]:
    """Of a shard, a hole for its stacks, and its real table of scans."""
    count = len(shard.sessions) * STACKS_PER_SESSION
    name = layout.part_file("stacks", hashlib.sha256(shard.name.encode()).hexdigest())
    size = STACK_BYTES * count if store.is_local else 1000
    if store.is_local:
        (store / name).path.parent.mkdir(parents=True, exist_ok=True)
        with open((store / name).path, "wb") as file:
            file.truncate(size)
    else:
        (store / name).write(bytes(size))
    groups = [ROWS_PER_GROUP] * (count // ROWS_PER_GROUP) + [count % ROWS_PER_GROUP] * bool(count % ROWS_PER_GROUP)
    stacks = Part(table="stacks", file=name, size_bytes=size, sha256=shard.name, row_groups=groups)
    writer = PartWriter("scans", schemas.SCANS)
    random = np.random.default_rng(int(shard.name[:8], 16))
    matrix = np.eye(4).ravel().tolist()
    writer.add(
        pa.Table.from_pylist(
            [
                {
                    **session.key._asdict(),
                    "modality": scan.modality,
                    "uri": scan.file.place.uri,
                    "size_bytes": scan.file.size,
                    "etag": scan.file.etag,
                    "chosen": "",
                    "shape": [240, 240, 155],
                    "spacing_mm": [1.0, 1.0, 1.0],
                    "axes": "RAS",
                    "working_shape": [240, 240, 180],
                    **dict.fromkeys(("ras_from_native", "ras_from_working", "reference_ras_from_scan_ras"), matrix),
                    "window_low": 0.0,
                    "window_high": 1000.0,
                    "register": "rigid",
                    "shift_mm": float(random.gamma(2.0)) if scan.modality != "T1w" else None,
                    "foreground": float(random.normal(0.4, 0.03)),
                    "stacks": STACKS_PER_SESSION,
                    "warnings": ["the header says one thing and its name another"] if random.random() < 0.01 else [],
                }
                for session in shard.sessions
                for scan in session.scans
            ],
            schemas.SCANS,
        )
    )
    part = writer.write(store)
    assert part is not None
    return [stacks, part]


def events(at: str, scans: int, workers: int) -> None:
    shards = -(-scans // 48)
    heard = 0

    def hear(event: dict[str, Any]) -> None:
        nonlocal heard
        heard += 1

    folder = place(at) / "runs" / f"events-{os.getpid()}"
    run = Run(folder, spec_yaml="kind: ingest\n", kind="ingest", version="made", listener=hear)
    with run:
        run.phase("preparing", total=scans, unit="scans")
        with told("progress of every shard", f"{shards:,} calls"):
            for number in range(1, shards + 1):
                run.progress(48 * number, shards=f"{number} of {shards}", stacks=2880 * number, rejected=number // 7)
        with told("a warning of every worker", f"{workers:,} calls"):
            for number in range(workers):
                run.warn(f"a worker was lost after step {number:,}; training went on from the checkpoint of step 1")
        with told("figures logged", f"{STEPS * NAMES:,} figures"):
            for step in range(STEPS):
                run.figures(step, {f"figure_{name}": 1.0 / (step + 1) for name in range(NAMES)})
                if step % 100 == 99:
                    run.keep_figures()  # with each checkpoint
        with told("read back while it runs"):
            assert len(RunFolder(folder).metrics()) == STEPS * NAMES
            assert len(RunFolder(folder).events()) > workers or not folder.is_local
        ending = told("the end of the run")
        ending.__enter__()
    ending.__exit__(None, None, None)
    with told("read back after it", f"{heard:,} events heard"):
        assert len(RunFolder(folder).metrics()) == STEPS * NAMES


def report(at: str, scans: int, workers: int) -> None:
    from bfp.drivers.ingest_results import results_of
    from bfp.reports.page import write_page
    from bfp.store.summary import summarise

    store = place(at) / "store"
    if not (store / layout.INFO).exists():
        commits(at, scans, workers)
    folder = place(at) / "runs" / f"report-{os.getpid()}"
    with Run(folder, spec_yaml="kind: ingest\n", kind="ingest", version="made") as run:
        with told("the store opened"):
            made = SliceStore.open(store)
        with told("summary of all scans", f"{made.totals.scans:,} scans in {len(made.stack_files()):,} shards"):
            summary = summarise(made)
        with told("blocks of the report"):
            run.result(results_of(spec_of(at), run, made, summary, snapshot=1).as_json())
    with told("the page"):
        size = write_page(RunFolder(folder)).size()
    print(f"    {size / 1e6:,.2f} MB of page; {len(summary.flagged):,} scans flagged")


def training(at: str, scans: int, workers: int) -> None:
    from bfp.batches.held_out import is_held_out
    from bfp.batches.plan import BatchPlan, units_of, window_at
    from bfp.drivers.pretrain_material import Material

    sessions = scans // 3 // TRAINING_SHARE
    with told("index made (its files' reading is not counted)", f"{sessions * STACKS_PER_SESSION:,} stacks"):
        index = _index(sessions)
    print(f"    {index.nbytes / 1e6:,.0f} MB of index")
    with told("subjects held out"):
        training = index.filter(pa.array(~is_held_out(index, share=0.1)))
    with told("units_of"):
        units = units_of([training])
    order = BatchPlan(units, batch_size=1024, seed=0)
    with told("order of a pass"):
        window_at(order, lane=5, step=3)
    material = Material(
        stores=(), indices=(index,), training=(training,), order=order, probed=None, steps_per_epoch=1250, steps=625_000
    )
    with told("subjects counted"):
        print(f"    {material.subjects}")
    with told("the plan as each worker is sent it"):
        print(f"    {len(pickle.dumps(order)) / 1e6:,.0f} MB")


def _index(sessions: int) -> pa.Table:
    """As `SliceStore.stack_index` gives it."""
    n, count = STACKS_PER_SESSION, sessions * STACKS_PER_SESSION
    names = pa.array([f"{number:07d}" for number in range(sessions)])
    slices = np.tile(np.arange(n, dtype=np.int32), sessions)
    session = np.repeat(np.arange(sessions), n)
    three = pa.array(list(MODALITIES) * n)
    return pa.table(
        {
            "cohort": pa.array(["made"]).take(pa.array(np.zeros(count, np.int32))),
            "subject": names.take(pa.array(session)),
            "session": pa.array(["01"]).take(pa.array(np.zeros(count, np.int32))),
            "modalities": pa.FixedSizeListArray.from_arrays(three.take(pa.array(np.tile(np.arange(3), count))), 3),
            "present": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(3 * count, bool)), 3),
            "volume": pa.nulls(count, pa.int32()),
            "slice": slices,
            **{name: slices.astype(np.float32) for name in ("position_mm", "height", "foreground")},
            "file": (session // 16).astype(np.int32),
            "row_group": (session % 16 * 12 + slices // ROWS_PER_GROUP).astype(np.int32),
            "row": slices % ROWS_PER_GROUP,
        }
    )


def handing(at: str, scans: int, workers: int) -> None:
    """Shards whose work is nothing, so that all that is left is Ray Data and the driver."""
    import ray

    from bfp.drivers.ingest import on_ray

    shards = shards_of(spec_of("/made"), sessions_of(min(scans, HANDED * 48)))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    began_s = time.perf_counter()
    with told("handed out and counted", f"{len(shards):,} shards"):
        done = sum(1 for _ in on_ray(shards, task=nothing, workers=2, retries=0))
    print(f"    {done / (time.perf_counter() - began_s):,.1f} shards a second, on 2 workers")
    ray.shutdown()


def nothing(row: dict[str, Any]) -> dict[str, Any]:
    return {"name": pickle.loads(row["shard"]).name}


def board(at: str, scans: int, workers: int) -> None:
    import ray

    from bfp.drivers.board import Board

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor: Any = ray.remote(num_cpus=0)(Board).remote()

    @ray.remote(num_cpus=0)
    def ask(asked: Any) -> int:
        until, count = time.monotonic() + ASKED_S, 0
        while time.monotonic() < until:
            ray.get(asked.stopping.remote())
            count += 1
        return count

    ray.get(actor.stopping.remote())
    with told("asked by four processes at once, one answer at a time"):
        counts = ray.get([ask.remote(actor) for _ in range(4)])
    print(f"    {sum(counts) / ASKED_S:,.0f} answers a second; {workers:,} workers ask {workers:,} times a second")
    ray.shutdown()


ALL: dict[str, Callable[[str, int, int], None]] = {
    each.__name__: each for each in (discovery, planning, handing, commits, events, report, training, board)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(ALL))
    parser.add_argument("--scans", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--at")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        ALL[given.steps[0]](given.at, given.scans, given.workers)
        return
    with tempfile.TemporaryDirectory(prefix="bfp-load-") as folder:
        at = given.at or folder
        for step in given.steps or ALL:
            print(f"{step}, {given.scans:,} scans, {given.workers:,} workers", flush=True)
            line = [sys.executable, "-m", "tests.campaigns.driver_load", step, "--inside", "--at", at]
            line += ["--scans", str(given.scans), "--workers", str(given.workers)]
            subprocess.run(line, check=True)


if __name__ == "__main__":
    main()
