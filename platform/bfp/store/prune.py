"""Pruning a store: what no kept snapshot needs is found, shown, and removed.

Needed are the kept snapshots, their commits and the parts of these. Everything else that bfp wrote goes: other
snapshots, commits that no kept snapshot holds (of a run that never took its snapshot, of a cohort as it was before),
parts that no kept commit has, and what a kill left half written. What bfp did not write is not touched.

Which snapshots runs have pinned stands with the runs (`<run>/inputs.json`), which a store does not know. So all
snapshots are kept unless the user says how many; a run that goes on with a snapshot that was removed is told so.

What was written less than a day ago is spared: it may be of an ingest that is going on, or of one that was killed and
will be submitted again. An ingest may take longer than a day, but not over one shard: so all commits that no snapshot
holds are spared, with their parts, while one of them is that young.

`survey` lists, and `remove` lists again when it is its turn (`turns`, which says why an ingest that is going on is
safe) and removes what was shown and is still waste by then. Snapshots go first, then commits, then parts: a kill in
between leaves what nobody refers to, for the next prune. A reader of a kept snapshot notices nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

from bfp.errors import InputError
from bfp.storage import Place, left_by_a_kill
from bfp.store import layout, turns
from bfp.store.layout import Commit, FileKind

DAY_S = 86_400.0

_AT_ONCE = 16  # requests, which on object storage mostly wait

Kind = FileKind | Literal["left by a kill"]
Progress = Callable[[int, int], None]

LEFT: Kind = "left by a kill"
_ORDER: tuple[Kind, ...] = (*get_args(FileKind), LEFT)


class StoreFile(NamedTuple):
    """A file that bfp wrote: its name in the store, and when it was written, by the storage's clock."""

    kind: Kind
    file: str
    size_bytes: int
    modified_s: float


class Rules(NamedTuple):
    """What the user wants. keep_snapshots: how many of the latest are kept, None for all; older_than_s: the grace."""

    keep_snapshots: int | None
    older_than_s: float


class Survey(NamedTuple):
    """What a prune by these rules would remove, in the order of removal.

    kept: the snapshots that stay. young: how many files nobody needs and are spared, since they were written too
    lately.
    """

    store: Place
    rules: Rules
    kept: list[int]
    waste: list[StoreFile]
    young: int


def survey(store: Place, *, keep_snapshots: int | None = None, older_than_s: float = DAY_S) -> Survey:
    """Find what a store can do without; nothing is written. keep_snapshots: how many of the latest are kept, or all.

    Ages are by this machine's clock here, and by the storage's where it is seen to be ahead.
    Raises InputError where there is no store, or a file of it that others hang on cannot be read: nothing is removed
    from a store that is not understood.
    """
    if layout.read_info(store) is None:
        raise InputError(f"{store}: no slice store there (no {layout.INFO})")
    if keep_snapshots is not None and keep_snapshots < 1:
        raise InputError(f"--keep-snapshots {keep_snapshots}: the latest is always kept; give 1 or more")
    files = list(_files(store))
    now_s = max([time.time(), *(file.modified_s for file in files)])
    return _survey(store, files, rules=Rules(keep_snapshots, older_than_s), now_s=now_s)


def remove(found: Survey, *, progress: Progress = lambda done, total: None) -> list[StoreFile]:
    """Remove what a survey found, but for what was written or is needed since; returns what was removed.

    Raises StorageError where the storage fails, ingests hold it up, or this machine was asleep meanwhile; what is
    removed by then, is.
    """
    store, shown = found.store, {each.file for each in found.waste}
    removed: list[StoreFile] = []
    with turns.of_prune(store) as marker, ThreadPoolExecutor(_AT_ONCE) as pool:
        files = list(_files(store))
        (now_s,) = (each.modified_s for each in files if each.file == marker.place.name)
        again = _survey(store, files, rules=found.rules, now_s=now_s)
        todo = [each for each in again.waste if each.file in shown]
        for start in range(0, len(todo), _AT_ONCE):
            marker.keep()
            some = todo[start : start + _AT_ONCE]
            for each, _ in zip(some, pool.map(lambda each: (store / each.file).delete(), some), strict=True):
                removed.append(each)
                progress(len(removed), len(todo))
    return removed


def _survey(store: Place, files: list[StoreFile], *, rules: Rules, now_s: float) -> Survey:
    """Reads the kept snapshots and, of the commits that none of them holds, those that are spared."""
    young = young_among(files, older_than_s=rules.older_than_s, now_s=now_s)
    kept = kept_snapshots(files, keep=rules.keep_snapshots, young=young)
    needed = [record for number in kept for record in layout.read_snapshot(store, number).commits]
    spared = layout.read_commits(store, spared_commits(files, needed=needed, young=young))
    waste, count = decide(files, kept=kept, needed=needed, spared=spared, young=young)
    return Survey(store, rules, kept, waste, count)


# listing --------------------------------------------------------------------------------------------------------------


def _files(store: Place) -> Iterator[StoreFile]:
    """Every file of the store that bfp wrote, but for store.json, from one listing."""
    for entry in store.files():
        file = entry.place.uri.removeprefix(f"{store.uri}/")
        if kind := _kind(file):
            time_s = entry.modified_s if entry.modified_s is not None else entry.place.modified_s()
            if time_s is not None:
                yield StoreFile(kind, file, entry.size, time_s)


def _kind(file: str) -> Kind | None:
    folder, _, name = file.rpartition("/")
    if layout.marker_of(file) or (folder in layout.FOLDERS and left_by_a_kill(name)):
        return LEFT
    return layout.kind_of(file)


# deciding: pure -------------------------------------------------------------------------------------------------------


def young_among(files: Iterable[StoreFile], *, older_than_s: float, now_s: float) -> set[str]:
    """The names of those that are spared for their age: what looks left by a kill, while it may be in use."""
    return {
        each.file
        for each in files
        if now_s - each.modified_s < (max(older_than_s, turns.LEASE_S) if each.kind == LEFT else older_than_s)
    }


def kept_snapshots(files: Iterable[StoreFile], *, keep: int | None, young: Collection[str]) -> list[int]:
    """The numbers of the latest so many snapshots, or of all, and of the young ones."""
    numbers = sorted(layout.number_of(each.file) for each in files if each.kind == layout.SNAPSHOTS)
    latest = numbers[-keep:] if keep else numbers
    return [number for number in numbers if number in latest or layout.snapshot_file(number) in young]


def spared_commits(files: Iterable[StoreFile], *, needed: Iterable[Commit], young: Collection[str]) -> set[str]:
    """The names of the commits that no kept snapshot holds, where one of them is young; else none."""
    held = {layout.commit_file(record.name) for record in needed}
    loose = {each.file for each in files if each.kind == layout.COMMITS} - held
    return {layout.name_of(file) for file in loose} if not loose.isdisjoint(young) else set()


def decide(
    files: Iterable[StoreFile],
    *,
    kept: Iterable[int],
    needed: Collection[Commit],
    spared: Collection[Commit],
    young: Collection[str],
) -> tuple[list[StoreFile], int]:
    """What goes, in the order of removal, and how many files that nobody needs are spared.

    kept, needed: the snapshots that stay and the commits that they hold. spared: the commits that may be of an ingest
    that is going on. young: the names of files that are spared for their age.
    """
    of_nobody = {layout.commit_file(record.name) for record in spared}
    stay = {layout.snapshot_file(number) for number in kept}
    for record in needed:
        stay.add(layout.commit_file(record.name))
    for record in (*needed, *spared):
        stay |= {part.file for part in record.parts}
    loose = [each for each in files if each.file not in stay]
    waste = [each for each in loose if each.file not in young and each.file not in of_nobody]
    return sorted(waste, key=lambda each: (_ORDER.index(each.kind), each.file)), len(loose) - len(waste)
