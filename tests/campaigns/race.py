"""Many processes race for one shard, one store.json and one snapshot: one wins each, and all agree on what stands.

    python -m tests.campaigns.race [PLACE] [--racers 16] [--rounds 200]

PLACE: a folder or s3:// URI that is empty; without it, a new folder on this disk. Every round is a store of its own.
In it all racers set out together and

1. make the store;
2. commit the shard `shard` of cohort `shared`, in odd rounds all with the same rows, in even ones each with its own;
3. take the snapshot of that shard, which must be one snapshot however many take it;
4. commit a shard of a cohort of their own and take a snapshot of it, in which no other's may be lost.

Then a prune must leave exactly what the snapshots need. Prints the figures; exits 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa

from bfp.storage import Place, place
from bfp.store import layout, schemas
from bfp.store.layout import Commit
from bfp.store.prune import remove, survey
from bfp.store.writer import PartWriter

PREPROCESSING = {"size": 28, "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]}}


class Told(NamedTuple):
    """What one racer saw in one round."""

    turn: int
    racer: int
    own: Commit  # what it tried to commit as `shared`
    stands: Commit
    shared_snapshot: int
    own_snapshot: int


def commit_of(store: Place, *, name: str, cohort: str, content: str) -> Commit:
    """A shard with one part, which is written; its commit is not."""
    writer = PartWriter("rejected", schemas.REJECTED)
    row = dict.fromkeys(schemas.REJECTED.names, content) | {"cohort": cohort}
    writer.add(pa.Table.from_pylist([row] * 50, schemas.REJECTED))
    part = writer.write(store)
    assert part is not None
    return Commit(name=name, kind="shard", cohort=cohort, parts=[part])


def race(racer: int, at: Place, rounds: int, start: Any, told: Any) -> None:
    """One racer, in a process of its own."""
    for turn in range(rounds):
        store = at / f"round-{turn:04d}"
        start.wait(300)
        layout.make(store, PREPROCESSING)
        content = "same" if turn % 2 else f"racer {racer}"
        own = commit_of(store, name="shard", cohort="shared", content=content)
        stands = layout.commit(store, own)
        shared = layout.take_snapshot(store, [stands], cohorts=["shared"])
        start.wait(300)  # the shared snapshot is over
        mine = commit_of(store, name=f"own-{racer}", cohort=f"cohort-{racer}", content=f"of {racer}")
        layout.commit(store, mine)
        last = layout.take_snapshot(store, [mine], cohorts=[mine.cohort])
        told.put(Told(turn, racer, own, stands, shared.number, last.number))


def faults_of(store: Place, told: list[Told], *, same: bool) -> list[str]:
    """What is wrong with a round."""
    racers, found = len(told), []
    standing = layout.read_commit(store, "shard")
    if any(each.stands != standing for each in told):
        found.append("the racers disagree on the commit that stands")
    winners = sum(each.own == standing for each in told)
    if winners != (racers if same else 1):
        found.append(f"{winners} of {racers} racers see their own commit stand")
    if {each.shared_snapshot for each in told} != {1}:
        found.append("the shared snapshot was taken more than once")
    numbers = layout.snapshot_numbers(store)
    if numbers != list(range(1, racers + 2)) or sorted(each.own_snapshot for each in told) != numbers[1:]:
        found.append(f"snapshots {numbers} of {racers} racers")
    live = layout.read_snapshot(store, numbers[-1]).commits
    if {record.cohort for record in live} != {"shared", *(f"cohort-{racer}" for racer in range(racers))}:
        found.append("the last snapshot has lost a cohort")
    remove(survey(store, older_than_s=0))
    needed = {part.file for record in live for part in record.parts}
    needed |= {"store.json", *(f"commits/{record.name}.json" for record in live)}
    needed |= {f"snapshots/{number}.json" for number in numbers}
    there = {entry.place.uri.removeprefix(f"{store.uri}/") for entry in store.files()}
    if there != needed:
        found.append(f"after a prune: {len(there - needed)} files too many, {len(needed - there)} too few")
    for record in live:
        for part in record.parts:
            if hashlib.sha256((store / part.file).read()).hexdigest() != part.sha256:
                found.append(f"{part.file} is not what its commit says")
    return found


def run(at: Place, *, racers: int, rounds: int) -> tuple[list[str], Counter[int]]:
    """Race; what is wrong, and how often each racer won where contents differed."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=race, args=(racer, at, rounds, start, told)) for racer in range(racers)]
    for process in processes:
        process.start()
    seen: list[list[Told]] = [[] for _ in range(rounds)]
    for _ in range(racers * rounds):
        each = told.get(timeout=600)
        seen[each.turn].append(each)
    for process in processes:
        process.join()
    faults, wins = list[str](), Counter[int]()
    for turn, told_of_it in enumerate(seen):
        store = at / f"round-{turn:04d}"
        faults += [f"{store.name}: {fault}" for fault in faults_of(store, told_of_it, same=bool(turn % 2))]
        if not turn % 2:
            wins.update(each.racer for each in told_of_it if each.own == each.stands)
    return faults, wins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", nargs="?")
    parser.add_argument("--racers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    at = place(given.place or tempfile.mkdtemp(prefix="bfp-race-")) / f"race-{os.getpid()}"
    began = time.monotonic()
    faults, wins = run(at, racers=given.racers, rounds=given.rounds)
    for fault in faults:
        print(fault)
    shares = ", ".join(str(wins[racer]) for racer in range(given.racers))
    print(
        f"{given.racers} racers, {given.rounds} rounds at {at.scheme}: {len(faults)} faults in "
        f"{time.monotonic() - began:.0f} s; rounds won by each racer where contents differed: {shares}"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
