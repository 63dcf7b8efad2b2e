"""Prunes that spare nothing beside real ingests of one store: the snapshot of an ingest that is done is whole.

    python -m tests.campaigns.prune [--ingests 200] [--seed 0] [--s3] [--held-up-s 0.3]

Two processes ingest, each a cohort of its own that changes to and fro, so that commits and parts are left over and
built on again; two others prune in random rhythm, keep one snapshot, and spare what is younger than a grace that is
drawn each time: none, a second, or a day. Before one in ten of its requests to the storage each process waits up to
`held-up-s`, as on a slow network. With --s3 the store lies behind a Ceph gateway on this machine.

After each ingest that said done every live file of its snapshot is checked to the byte (`store.check`), unless a prune
took that snapshot since, in favour of a later one. It is `drivers.ingest` itself, its shards prepared one by one
instead of on Ray. Prints the figures; exits 1 where a snapshot lacked anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any

from bfp.drivers import ingest
from bfp.errors import BfpError, JobFailed
from bfp.runs import Run, RunFolder
from bfp.specs.ingest import Ingest
from bfp.storage import Place, place
from bfp.store import layout
from bfp.store.check import Fault, check
from bfp.store.prune import DAY_S, remove, survey
from tests.ceph import gateway, in_environment
from tests.cohorts.makers import write_scan

INGESTERS = PRUNERS = 2
BUCKET = "bfp-prune"
REQUESTS = ("write", "create", "read", "touch", "delete", "names", "files", "modified_s", "exists")
DONE, PRUNED, OTHERWISE = "done", "failed, since a prune took something", "failed otherwise"


def cohorts(folder: Path) -> None:
    """Of each ingester's cohort both states: b has one subject more than a, and another one differs."""
    for number in range(INGESTERS):
        for state in "ab":
            for subject in range(1, 4 if state == "a" else 5):
                seed = 100 * number + subject + (10 if state == "b" and subject == 1 else 0)
                at = folder / f"{number}{state}/sub-{subject:02d}/anat/sub-{subject:02d}_T1w.nii.gz"
                write_scan(at, seed=seed)


def spec_of(folder: Path, store: str, number: int, state: str) -> Ingest:
    return Ingest.model_validate(
        {
            "kind": "ingest",
            "name": f"run-{number}",
            "output": f"{folder}/runs",
            "store": store,
            "cohorts": [{"name": f"cohort-{number}", "bids": f"{folder}/{number}{state}"}],
            "preprocessing": {"spacing_mm": 5.0, "slice_spacing_mm": 12.0, "size": 44, "register": "none"},
            "sessions_per_shard": 1,
            "pictures": False,
        }
    )


def held_up(draw: random.Random, held_up_s: float) -> None:
    """Make this process wait before some of its requests to the storage."""

    def slow(plain: Callable[..., Any]) -> Callable[..., Any]:
        def method(here: Place, *arguments: Any, **named: Any) -> Any:
            if draw.random() < 0.1:
                time.sleep(draw.uniform(0, held_up_s))
            return plain(here, *arguments, **named)

        return method

    for name in REQUESTS:
        setattr(Place, name, slow(getattr(Place, name)))


def one_by_one(shards: Sequence[Any], *, task: ingest.Task, workers: int | None, retries: int) -> Iterator[Any]:
    """In place of `ingest.on_ray`."""
    for shard in shards:
        yield task({"shard": pickle.dumps(shard)})


def outcome_of(spec: Ingest) -> tuple[str, str]:
    """Ingest once: what it came to, and what was said or found."""
    folder = place(spec.output) / spec.name
    try:
        with Run(folder, spec_yaml="kind: ingest\n", kind="ingest", version="0", listener=lambda event: None) as run:
            ingest.execute(spec, run)
    except BfpError as error:
        pruned = isinstance(error, JobFailed) and "a prune of the store took" in str(error)
        return (PRUNED if pruned else OTHERWISE), str(error)
    number = int(RunFolder(folder).results()["figures"]["snapshot"])
    return DONE, "; ".join(f"{fault.file}: {fault.found}" for fault in faults_of(place(spec.store), number))


def faults_of(store: Place, number: int, *, tries: int = 5) -> list[Fault]:
    """What is wrong with what a snapshot needs; nothing where a prune took it, since snapshots go first."""
    try:
        live = layout.read_snapshot(store, number)
        faults = check(store, snapshot=number).faults
    except BfpError as error:
        if number not in layout.snapshot_numbers(store):
            return []
        if tries > 1:  # Ceph answers 500 where an object is read while the other ingester puts the same bytes again
            return faults_of(store, number, tries=tries - 1)
        return [Fault("", str(error), "")]
    needed = {layout.commit_file(record.name) for record in live.commits}
    needed |= {part.file for record in live.commits for part in record.parts}
    found = [each for each in faults if each.file in needed]
    return found if number in layout.snapshot_numbers(store) else []


def ingests(folder: Path, store: str, number: int, *, times: int, seed: int, held_up_s: float, told: Any) -> None:
    """One ingester, in a process of its own."""
    draw = random.Random(f"{seed} ingest {number}")
    ingest.on_ray = one_by_one
    held_up(draw, held_up_s)
    for _ in range(times):
        told.put(outcome_of(spec_of(folder, store, number, draw.choice("ab"))))
        time.sleep(draw.uniform(0, 0.3))


def prunes(store: str, number: int, *, seed: int, held_up_s: float, over: Event, told: Any) -> None:
    """One pruner, in a process of its own."""
    draw = random.Random(f"{seed} prune {number}")
    held_up(draw, held_up_s)
    while not over.is_set():
        time.sleep(draw.uniform(0, 0.8))
        grace_s = draw.choice([0.0, 1.0, DAY_S])
        try:
            removed = remove(survey(place(store), keep_snapshots=1, older_than_s=grace_s))
        except BfpError as error:  # no store yet; or the other prune took what this one was reading
            told.put(("prunes failed", str(error)))
        else:
            told.put(("prunes", len(removed)))


def run(folder: Path, store: str, *, times: int, seed: int, held_up_s: float) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, with the files removed, and what was wrong or failed otherwise, in words."""
    cohorts(folder)
    context = multiprocessing.get_context("spawn")
    told, over = context.Queue(), context.Event()
    shared = {"seed": seed, "held_up_s": held_up_s, "told": told}
    working = [
        context.Process(target=ingests, args=(folder, store, number), kwargs={"times": times, **shared})
        for number in range(INGESTERS)
    ]
    pruning = [
        context.Process(target=prunes, args=(store, number), kwargs={"over": over, **shared})
        for number in range(PRUNERS)
    ]
    for process in (*working, *pruning):
        process.start()
    outcomes, wrong, ended = Counter[str](), list[str](), 0
    while ended < INGESTERS * times:
        try:
            what, said = told.get(timeout=5)
        except Empty:
            assert not any(process.exitcode for process in working), "an ingester died"
            continue
        outcomes[what] += 1
        ended += what in (DONE, PRUNED, OTHERWISE)
        if what == "prunes":
            outcomes["files removed"] += said
        elif what == DONE and said:
            wrong.append(f"BROKEN: {said}")
        elif what in (OTHERWISE, "prunes failed"):
            wrong.append(f"{what}: {said}")
    over.set()
    for process in working:
        process.join()
    for process in pruning:
        process.terminate()
        process.join()
    return outcomes, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--held-up-s", type=float, default=0.3)
    given = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bfp-prune-")))
        store = f"{folder}/store"
        if given.s3:
            import s3fs

            running = stack.enter_context(gateway(folder / "ceph"))
            stack.enter_context(in_environment(running.environment()))
            s3fs.S3FileSystem().mkdir(BUCKET)
            store = f"s3://{BUCKET}/store"
        times = -(-given.ingests // INGESTERS)
        outcomes, wrong = run(folder, store, times=times, seed=given.seed, held_up_s=given.held_up_s)
    for each in wrong:
        print(each)
    print("; ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))
    broken = sum(each.startswith("BROKEN") for each in wrong)
    print(f"{broken} snapshots of ingests that were done lack something; {time.monotonic() - began:.0f} s")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
