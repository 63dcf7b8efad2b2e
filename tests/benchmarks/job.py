"""A whole ingest, as it is submitted: how much of the cores it uses, and whether its cost grows with the cohort.

    python -m tests.benchmarks.job SCAN... [--scans 50 2000] [--workers 2] [--s3]

The scans are repeated under new names, one a session, until there are so many. Then `bfp submit` ingests them at 1 mm,
with --s3 from and into a bucket of a Ceph gateway on this machine. Printed for each job:

- scans a second between the first committed shard and the last (Ray and its workers start before that), also as a share
  of what so many workers would do at the rate of one core: of the same scans, in a process of its own;
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
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from bfp.drivers.ingest import _shards, shard_task
from bfp.drivers.inputs import recipe_of, sessions_of
from bfp.specs import load
from bfp.specs.ingest import Ingest
from bfp.storage import place
from tests.ceph import gateway, in_environment
from tests.processes import below, resident_bytes

BFP = Path(sys.executable).parent / "bfp"
SAMPLED_EVERY_S = 2.0
ONE_CORE_SCANS = 40

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
    """Of one submitted ingest. rate: scans a second once it runs; peak: bytes."""

    rate: float
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


def one_core_rate(spec: Path) -> float:
    """Scans a second of one core, shard by shard, without Ray. To be called in a process of its own."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    made = load(str(spec))
    assert isinstance(made, Ingest)
    recipe = recipe_of(made.preprocessing)
    done, began = 0, 0.0
    with tempfile.TemporaryDirectory(dir=spec.parent) as folder:
        store = place(folder)
        for shard in _shards(made, sessions_of(made.cohorts, made.preprocessing)):
            row = shard_task({"shard": pickle.dumps(shard)}, store=store, recipe=recipe, scan_timeout_s=600)
            assert not row["failure"], row
            if not began:  # the first one imports
                began = time.perf_counter()
                continue
            done += shard.scans
            if done >= ONE_CORE_SCANS:
                break
    return done / (time.perf_counter() - began)


def submit(spec: Path, run: str) -> Job:
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
    steps = [each for each in events if each["event"] == "progress" and each["phase"] == "preparing" and each["done"]]
    first, last = steps[0], steps[-1]
    took_s = (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()
    return Job((last["done"] - first["done"]) / took_s, wall_s, peak)


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
            spec = spec_file(here, str(here), name=f"one-core-{count}", scans=count, workers=1)
            with get_context("spawn").Pool(1) as pool:
                alone = pool.apply(one_core_rate, (spec,))
            print(f"{count} scans: {alone:.2f} a second on one core", flush=True)
            for where, root in roots.items():
                name = f"{where}-{count}"
                job = submit(
                    spec_file(here, root, name=name, scans=count, workers=given.workers), f"{root}/runs/{name}"
                )
                print(
                    f"  {where:4} {job.rate:.2f} a second, {job.rate / alone / given.workers:.0%} of the rate of "
                    f"{given.workers} cores; {job.wall_s:.0f} s in all; "
                    f"peak {job.peak / 1e9:.2f} GB",
                    flush=True,
                )
                if where == "disk":
                    shutil.rmtree(here / f"store-{name}")


if __name__ == "__main__":
    main()
