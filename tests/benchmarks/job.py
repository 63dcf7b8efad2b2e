"""A whole ingest, as it is submitted: how much of the cores it uses, and whether its cost grows with the cohort.

    python -m tests.benchmarks.job SCAN... [--scans 50 2000] [--workers 2] [--s3]

The scans are repeated under new names, one a session, until there are so many. Then `bfp submit` ingests them at 1 mm,
with --s3 from and into a bucket of a Ceph gateway on this machine. Printed for each job:

- scans a second from the end of each worker's first shard, before which Ray and the workers start, to the last; also as
  a share of what as many plain processes do of the same scans, side by side, each on a core of its own; nothing where a
  worker has fewer than 8 shards, whose ends tell no rate;
- seconds from start to end, and peak memory: proportional set size of the job's processes, every 2 s (Linux).

A gateway on the same cores takes its share of them: leave it one, with --workers 1 on a machine of two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

from bfp.drivers.ingest import shard_task, shards_of
from bfp.drivers.inputs import recipe_of, sessions_of
from bfp.specs import load
from bfp.specs.ingest import Ingest
from bfp.storage import place
from tests.ceph import gateway, in_environment
from tests.processes import below, resident_bytes

BFP = Path(sys.executable).parent / "bfp"
SAMPLED_EVERY_S = 2.0
MIN_SHARDS = 8  # of each worker
PLAIN_SCANS = 40  # of each plain process

SPEC = """\
kind: ingest
name: {name}
output: {root}/runs
store: {root}/store-{name}
cohorts: [{{name: repeated, bids: {root}/scans-{scans}}}]
preprocessing: {{register: none, slice_spacing_mm: 1.0}}
compute: {{workers: {workers}}}
pictures: false
"""


class Job(NamedTuple):
    """Of one submitted ingest. rate: scans a second once it runs, None where it was too short to tell; peak: bytes."""

    rate: float | None
    wall_s: float
    peak: int


def repeat(scans: Sequence[Path], folder: Path, *, count: int) -> None:
    """A BIDS dataset of so many sessions: links to copies of the scans beside it."""
    copies = folder.parent / "copies"
    copies.mkdir(exist_ok=True)
    for number, scan in zip(range(count), itertools.cycle(scans)):
        copy = copies / scan.name
        if not copy.exists():
            shutil.copyfile(scan, copy)
        suffix = "".join(scan.suffixes[-2:]) if scan.suffix == ".gz" else scan.suffix
        link = folder / f"sub-{number:05d}/anat/sub-{number:05d}_T1w{suffix}"
        link.parent.mkdir(parents=True)
        os.link(copy, link)


def spec_file(folder: Path, root: str, *, name: str, scans: int, workers: int) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(SPEC.format(name=name, root=root, scans=scans, workers=workers))
    return file


def plain_rate(spec: Path, *, workers: int) -> float:
    """Scans a second of so many processes, side by side and without Ray: the sum of their rates."""
    context = get_context("spawn")
    with context.Manager() as manager, context.Pool(workers) as pool:
        together = manager.Barrier(workers)
        return sum(pool.starmap(one_core_rate, [(spec, number, workers, together) for number in range(workers)], 1))


def one_core_rate(spec: Path, number: int, of: int, together: Barrier) -> float:
    """Scans a second of one of so many processes, on the core of its number, shard by shard.

    It counts from when all of them have done a first shard, which imports.
    """
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    made = load(str(spec))
    assert isinstance(made, Ingest)
    recipe = recipe_of(made.preprocessing)
    done, began = 0, 0.0
    with tempfile.TemporaryDirectory(dir=spec.parent) as folder:
        store = place(folder)
        for shard in shards_of(made, sessions_of(made.cohorts, made.preprocessing))[number::of]:
            row = shard_task({"shard": pickle.dumps(shard)}, store=store, recipe=recipe, scan_timeout_s=600)
            assert not row["failure"], row
            if not began:
                together.wait()
                began = time.perf_counter()
                continue
            done += shard.scans
            if done >= PLAIN_SCANS:
                break
    return done / (time.perf_counter() - began)


def rate_of(events: Sequence[Mapping[str, Any]], *, workers: int) -> float | None:
    """Scans a second of a run once all workers are at work: the first shard of each does not count, nor its time.

    None where there are fewer than MIN_SHARDS for each worker.
    """
    steps = [each for each in events if each["event"] == "progress" and each["phase"] == "preparing" and each["done"]]
    # not every shard has an event of its own; each tells how many are done, as in "3 of 12"
    counted = [(int(each["shards"].split()[0].replace(",", "")), each) for each in steps]
    if not counted or counted[-1][0] < MIN_SHARDS * workers:
        return None
    first, last = next(each for shards, each in counted if shards >= workers), steps[-1]
    took_s = (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()
    return float((last["done"] - first["done"]) / took_s)


def submit(spec: Path, run: str, *, workers: int) -> Job:
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([str(BFP), "submit", str(spec)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, below(process.pid))))
        with suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLED_EVERY_S)
    if process.returncode != 0:
        sys.exit(f"bfp submit {spec} ended with {process.returncode}")
    wall_s = time.perf_counter() - began
    events = [json.loads(line) for line in (place(run) / "events.jsonl").read().splitlines()]
    return Job(rate_of(events, workers=workers), wall_s, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="SCAN")
    parser.add_argument("--scans", type=int, nargs="+", default=[50, 2000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--s3", action="store_true")
    given = parser.parse_args()
    with ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        roots = {"disk": str(here)}
        if given.s3:
            import s3fs

            running = stack.enter_context(gateway(here / "ceph"))
            stack.enter_context(in_environment(running.environment()))
            bucket = s3fs.S3FileSystem()
            bucket.mkdir("bfp-job")
            roots["s3"] = "s3://bfp-job"
        for count in given.scans:
            folder = here / f"scans-{count}"
            repeat(given.files, folder, count=count)
            if given.s3:
                bucket.put(f"{folder}/", f"bfp-job/{folder.name}/", recursive=True)
            spec = spec_file(here, str(here), name=f"plain-{count}", scans=count, workers=1)
            plain = plain_rate(spec, workers=given.workers)
            print(f"{count} scans: {plain:.2f} a second by {given.workers} plain processes", flush=True)
            for where, root in roots.items():
                name = f"{where}-{count}"
                made = spec_file(here, root, name=name, scans=count, workers=given.workers)
                job = submit(made, f"{root}/runs/{name}", workers=given.workers)
                rate = f"{job.rate:.2f} a second, {job.rate / plain:.0%} of that; " if job.rate else ""
                print(f"  {where:4} {rate}{job.wall_s:.0f} s in all; peak {job.peak / 1e9:.2f} GB", flush=True)
                if where == "disk":
                    shutil.rmtree(here / f"store-{name}")


if __name__ == "__main__":
    main()
