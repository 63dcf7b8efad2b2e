"""Pruning a store: what no kept snapshot needs is found, shown, and removed.

Needed are the kept snapshots, their commits and the parts of these. Everything else that bfp wrote goes: other
snapshots, commits that no kept snapshot holds (of a run that never took its snapshot, of a cohort as it was before),
parts that no kept commit has, and what a kill left half written. What bfp did not write is not touched.

Which snapshots runs have pinned stands with the runs (`<run>/inputs.json`), which a store does not know. So all
snapshots are kept unless the user says how many; a run that goes on with a snapshot that was removed is told so.

An ingest may be going on meanwhile. It builds on what it found: commits of shards that it need not make again, and
parts whose content it would write. It is safe from a prune, and the store with it, by these rules:

- what was written less than a day ago (by the storage's own clock) is spared, and so are all commits that no snapshot
  holds while one of them is that young: an ingest may take longer than a day, but not over one shard. What an ingest
  builds on counts as written anew (`layout.renew`, `PartWriter.write`);
- each file is looked at once more before it goes, and stays where it was written since it was shown;
- snapshots go first, then commits, then parts: a kill in between leaves what nobody refers to, for the next prune;
- between commits and parts the snapshots are listed again. What one of them holds by now is spared, and its commit put
  back. An ingest that takes its snapshot later than that finds its commit gone (it looks after it took it) and fails
  with the words to submit again, which makes that shard anew.

A reader of a kept snapshot notices nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from bfp.errors import InputError
from bfp.storage import Place
from bfp.store import layout
from bfp.store.layout import TABLES, Commit, Table

DAY_S = 86_400.0

_AT_ONCE = 16  # requests, which on object storage mostly wait

Kind = Literal["snapshots", "commits", Table, "left by a kill"]
Progress = Callable[[int, int], None]

_HALF_WRITTEN = re.compile(r"[.].+[.][0-9a-f]{8}|[.]bfp-[0-9a-f]{12}")  # as `storage` names what stands aside


class Waste(NamedTuple):
    """A file that nobody needs; modified_s is by the storage's clock."""

    kind: Kind
    place: Place
    size_bytes: int
    modified_s: float


class Survey(NamedTuple):
    """What a prune would remove, in the order of removal.

    kept, needed: the snapshots that stay, and the names of their commits. young: how many files nobody needs and are
    spared, since they were written too lately. now_s: the storage's time.
    """

    store: Place
    kept: list[int]
    needed: set[str]
    waste: list[Waste]
    young: int
    now_s: float


def survey(store: Place, *, keep_snapshots: int | None = None, older_than_s: float = DAY_S) -> Survey:
    """Find what a store can do without. keep_snapshots: how many of the latest are kept; None for all.

    Raises InputError where there is no store, or a file of it that others hang on cannot be read: nothing is removed
    from a store that is not understood.
    """
    if layout.read_info(store) is None:
        raise InputError(f"{store}: no slice store there (no store.json)")
    if keep_snapshots is not None and keep_snapshots < 1:
        raise InputError(f"--keep-snapshots {keep_snapshots}: the latest is always kept; give 1 or more")
    files = {
        (kind, entry.place.name): (entry.place, entry.size)
        for entry in store.files()
        if (kind := _kind(store, entry.place))
    }
    numbers = layout.snapshot_numbers(store)
    now_s = store.now_s()

    def aged(wanted: Iterable[tuple[Kind, str]]) -> tuple[list[Waste], int]:
        """Those that are old enough, and how many are not."""
        wanted = sorted(wanted)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            times = list(pool.map(lambda each: files[each][0].modified_s(), wanted))
        found = [
            Waste(each[0], *files[each], time) for each, time in zip(wanted, times, strict=True) if time is not None
        ]
        old = [each for each in found if now_s - each.modified_s >= older_than_s]
        return old, len(found) - len(old)

    oldest = numbers[:-keep_snapshots] if keep_snapshots else []
    snapshots, young = aged(("snapshots", f"{number}.json") for number in oldest)
    gone = {each.place.name for each in snapshots}
    kept = [number for number in numbers if f"{number}.json" not in gone]

    needed, parts = set[str](), set[str]()
    for number in kept:
        for record in layout.read_snapshot(store, number).commits:
            needed.add(record.name)
            parts |= _parts(record)
    loose = {name for kind, name in files if kind == "commits"} - {f"{name}.json" for name in needed}
    commits, young_commits = aged(("commits", name) for name in loose)
    if young_commits:
        # an ingest may be going on, and have begun before the young ones
        young_commits, commits = len(loose), []
        for record in layout.read_commits(store, [name.removesuffix(".json") for name in loose]):
            parts |= _parts(record)
    others, young_others = aged(
        each for each in files if each[0] not in ("snapshots", "commits") and "/".join(each) not in parts
    )
    return Survey(store, kept, needed, [*snapshots, *commits, *others], young + young_commits + young_others, now_s)


def remove(found: Survey, *, progress: Progress = lambda done, total: None) -> list[Waste]:
    """Remove what a survey found, but for what was written or is needed since; returns what was removed."""
    removed: list[Waste] = []

    def clear(wanted: list[Waste]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for each, went in zip(wanted, pool.map(_delete, wanted), strict=True):
                if went:
                    removed.append(each)
                progress(len(removed), len(found.waste))

    clear([each for each in found.waste if each.kind == "snapshots"])
    clear([each for each in found.waste if each.kind == "commits"])
    needed = _needed_since(found)
    clear([each for each in found.waste if each.kind not in ("snapshots", "commits") and _name(each) not in needed])
    return removed


def _needed_since(found: Survey) -> set[str]:
    """The parts of what is there beside the kept snapshots and their commits; puts back commits of new snapshots."""
    store = found.store
    records = layout.read_commits(store, layout.committed(store) - found.needed)
    for number in set(layout.snapshot_numbers(store)) - set(found.kept):
        for record in layout.read_snapshot(store, number).commits:
            layout.commit(store, record)
            records.append(record)
    return {file for record in records for file in _parts(record)}


def _delete(each: Waste) -> bool:
    if each.place.modified_s() != each.modified_s:
        return False
    each.place.delete()
    return True


def _parts(record: Commit) -> set[str]:
    return {part.file for part in record.parts}


def _name(each: Waste) -> str:
    return f"{each.kind}/{each.place.name}"


def _kind(store: Place, file: Place) -> Kind | None:
    """What a file of the store is; None for what `survey` has no say in."""
    *folders, name = file.uri.removeprefix(f"{store.uri}/").split("/")
    folder = "/".join(folders)
    if folder in ("", "snapshots", "commits", *TABLES) and _HALF_WRITTEN.fullmatch(name):
        return "left by a kill"
    if folder == "snapshots" and re.fullmatch(r"\d+[.]json", name):
        return "snapshots"
    if folder == "commits" and name.endswith(".json"):
        return "commits"
    for table in TABLES:
        if folder == table and re.fullmatch(r"part-[0-9a-f]+[.]parquet", name):
            return table
    return None
