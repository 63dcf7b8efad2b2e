"""Checking a store: is everything there that a snapshot speaks of, to the byte, and do its tables agree.

Of each live part: it is there, has the size and the SHA-256 of its commit, opens as Parquet, has the row groups that
the commit says and the columns that the contract says. Of each commit: its file says what the snapshot says. Of a
shard's tables: each scan, or volume of one, has as many stacks as its row says, no slice of it stands there twice,
labels lie on stacks and come from a label map that was used. Of a cohort: each session stands in one shard and has a
row in `sessions`, and every scan that was found is in the store or rejected. Of the store: every JSON file can be read,
and the totals are the sums.

Files are hashed as they are read, piece by piece, a few at once; besides them only identities are held, those of one
shard at a time and the sessions of all. Nothing is written.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from bfp.errors import BfpError, DamagedFile, InputError, StorageError
from bfp.storage import Place
from bfp.store import layout, schemas
from bfp.store.layout import Commit, Part, Snapshot, StoreInfo
from bfp.store.reader import SliceStore
from bfp.words import counted

GONE = "nothing is there"
AGAIN = layout.DO_AGAIN
REPLACE = f"delete this file and {AGAIN}"
RESTORE = "put back a good copy"
REPORT = "bfp never writes this: please report it"

SCAN = ("subject", "session", "modality")
SLICE = ("subject", "session", "modality", "slice")
MAP = ("subject", "session", "segmentation")

_REMOTE_READS = 16  # at once, which on object storage mostly wait

Name = tuple[str, str]  # subject, session
Scan = tuple[str, str, str]  # subject, session, modality
Volume = tuple[str, str, str, int | None]  # and which volume of a 4-D scan
Slice = tuple[str, str, str, int]  # and which slice
Told = dict[Name, tuple[str, ...]]  # the modalities of each session
Progress = Callable[[int, int], None]


class Fault(NamedTuple):
    """One thing that is wrong: the file, relative to the store, what was found, and what to do."""

    file: str
    found: str
    remedy: str


class Checked(NamedTuple):
    """What was looked at, and what is wrong with it, in the order of the files."""

    store: Place
    snapshot: int
    commits: int
    parts: int
    rows: int
    size_bytes: int
    faults: list[Fault]


def check(at: Place, *, snapshot: int | None = None, progress: Progress = lambda done, total: None) -> Checked:
    """Check the latest snapshot of a store, or the one that is named. progress: commits done, and all of them.

    Raises InputError where there is no store, nothing in it yet, no such snapshot, or what it is cannot be read; and
    StorageError where the storage fails.
    """
    number = SliceStore.open(at, snapshot).snapshot
    info, live = layout.read_info(at), layout.read_snapshot(at, number)
    assert info is not None, at
    records = live.commits
    cohorts = sorted({record.cohort for record in records})
    told = {name: _told(at, info, [each for each in records if each.cohort == name]) for name in cohorts}
    found: dict[str, Counter[Name]] = {name: Counter() for name in cohorts}
    torn = set[str]()  # cohorts of which not every shard could be read

    faults = [*_json_files(at, live, info), *_totals(number, live)]
    with ThreadPoolExecutor((os.cpu_count() or 1) if at.is_local else _REMOTE_READS) as pool:
        looks = pool.map(lambda record: _look(at, info, record, told[record.cohort]), records)
        for done, (record, look) in enumerate(zip(records, looks, strict=True), start=1):
            faults += look.faults
            found[record.cohort].update(look.sessions)
            if record.kind == "shard" and not look.sessions:
                torn.add(record.cohort)
            progress(done, len(records))
    for name in cohorts:
        faults += _cohort(name, number, told[name], found[name], whole=name not in torn)
    return Checked(
        at,
        number,
        len(records),
        sum(len(record.parts) for record in records),
        sum(part.rows for record in records for part in record.parts),
        live.totals.size_bytes,
        sorted(faults),
    )


# the JSON files ---------------------------------------------------------------------------------------------------


def _json_files(at: Place, live: Snapshot, info: StoreInfo) -> Iterator[Fault]:
    """Whether each JSON file can be read, and each live commit's says what the snapshot says."""
    if info.fingerprint != layout.fingerprint(info.preprocessing):
        yield Fault(layout.INFO, "its fingerprint is not that of its preprocessing", RESTORE)
    for number in layout.snapshot_numbers(at):
        try:
            layout.read_snapshot(at, number)
        except InputError as error:
            yield Fault(layout.snapshot_file(number), _said(error, at), RESTORE)
    names, expected = layout.committed(at), {record.name: record for record in live.commits}

    def look(name: str) -> Fault | None:
        file = layout.commit_file(name)
        if name not in names:
            return Fault(file, GONE, AGAIN)
        try:
            found = layout.read_commit(at, name)
        except InputError as error:
            return Fault(file, _said(error, at), REPLACE)
        same = found == expected.get(name, found)
        return None if same else Fault(file, "says something else than the snapshot", REPLACE)

    with ThreadPoolExecutor(_REMOTE_READS) as pool:
        yield from filter(None, pool.map(look, sorted(names | expected.keys())))


def _totals(number: int, live: Snapshot) -> Iterator[Fault]:
    told, summed = (each.totals.model_dump() for each in (live, layout.snapshot_of(live.commits)))
    for name, value in told.items():
        if value != summed[name]:
            yield Fault(
                layout.snapshot_file(number), f"totals.{name} is {value}; its commits come to {summed[name]}", RESTORE
            )


# one commit -------------------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """What one commit showed: what is wrong, and the sessions that it has rows of."""

    faults: list[Fault]
    sessions: set[Name]


def _look(at: Place, info: StoreInfo, record: Commit, told: Told | None) -> _Look:
    size_px = int(info.preprocessing["size"])
    faults = [fault for part in record.parts for fault in _part(at, part, schemas.of_table(part.table, size_px))]
    if faults or record.kind == "sessions":
        return _Look(faults, set())
    return _tables(SliceStore(at, info, 0, layout.snapshot_of([record])), record, told)


def _part(at: Place, part: Part, schema: pa.Schema) -> Iterator[Fault]:
    """Whether a part is what its commit says, to the byte, and holds what the contract says."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in (at / part.file).pieces():
            digest.update(piece)
            size += len(piece)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        yield Fault(part.file, GONE, AGAIN)
        return
    if size != part.size_bytes:
        yield Fault(part.file, f"has {size:,} bytes; its commit says {part.size_bytes:,}", REPLACE)
    elif digest.hexdigest() != part.sha256:
        yield Fault(
            part.file, f"has the SHA-256 {digest.hexdigest()[:12]}…; its commit says {part.sha256[:12]}…", REPLACE
        )
    else:
        yield from _columns(at, part, schema)


def _columns(at: Place, part: Part, schema: pa.Schema) -> Iterator[Fault]:
    try:
        with (at / part.file).open_parquet() as file:
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            columns = file.schema_arrow.remove_metadata()
    except DamagedFile as error:
        yield Fault(part.file, _said(error, at), REPORT)
        return
    if groups != part.row_groups:
        yield Fault(part.file, f"has row groups of {groups} rows; its commit says {part.row_groups}", REPORT)
    foreign = [field.name for field in columns if field not in schema]
    # what an earlier bfp wrote may lack columns; none has ever lacked these
    lacking = [name for name in ("cohort", "subject", "session", "pixels", "labels") if name in schema.names]
    if wrong := [*foreign, *(name for name in lacking if name not in columns.names)]:
        yield Fault(part.file, f"its columns are not those of `{part.table}`: {', '.join(wrong)}", REPORT)


def _tables(own: SliceStore, record: Commit, told: Told | None) -> _Look:
    """Whether the tables of one shard agree with one another, and with what the cohort says of its sessions."""
    shown, slices = _shown(own.stack_index())
    told_of: Counter[Volume] = Counter()
    for *key, stacks in _rows(own.scans(), *SCAN, "volume", "stacks"):
        told_of[tuple(key)] += stacks
    scans = {key[:3] for key in told_of}
    rejected = {key for key in _rows(own.rejected(), *SCAN) if key[0]}
    masks = own.mask_index()
    there = {(*volume[:3], number) for volume, number in slices}  # labels are those of all volumes
    stray = [key for key in _rows(masks, *SLICE) if key not in there]
    wrong = [
        f"{counted(shown[key], 'stack')} of {_volume(key)}; its row in `scans` says {told_of[key]}"
        for key in sorted(shown.keys() | told_of.keys(), key=_place)
        if shown[key] != told_of[key]
    ]
    if twice := [key for key, count in slices.items() if count > 1]:
        wrong.append(f"slice {twice[0][1]} of {_volume(twice[0][0])} stands there {slices[twice[0]]} times")
    if stray:
        wrong.append(f"labels of {_words(stray[0][:3])} at slice {stray[0][3]}, where no stack is")
    maps = own.label_maps()
    cohorts = {name for table in (own.scans(), own.rejected(), maps) for name in table["cohort"].unique().to_pylist()}
    if maps.num_rows:  # none where an earlier bfp made the shard
        used = {tuple(key) for *key, reason in _rows(maps, *MAP, "reason") if reason is None}
        wrong += [
            f"labels of {_words(key)}, whose row in `label_maps` is not of one that was used"
            for key in sorted(set(_rows(masks, *MAP)) - used)
        ]
    if others := sorted(cohorts - {record.cohort}):
        wrong.append(f"a shard of cohort {record.cohort} with rows of {', '.join(others)}")
    if told is not None:
        wrong += _untold(told, scans, rejected)
    file = layout.commit_file(record.name)
    sessions = {(subject, session) for subject, session, _ in scans | rejected}
    return _Look([Fault(file, each, REPORT) for each in wrong], sessions)


def _shown(index: pa.Table) -> tuple[Counter[Volume], Counter[tuple[Volume, int]]]:
    """How many stacks show each volume, and how often each of its slices stands there."""
    shown: Counter[Volume] = Counter()
    slices: Counter[tuple[Volume, int]] = Counter()
    columns = ("subject", "session", "volume", "slice", "modalities", "present")
    for subject, session, volume, number, modalities, present in _rows(index, *columns):
        seen = {name for name, there in zip(modalities, present, strict=True) if there}
        shown.update((subject, session, name, volume) for name in seen)
        slices.update(((subject, session, name, volume), number) for name in seen)
    return shown, slices


def _untold(told: Told, scans: Collection[Scan], rejected: Collection[Scan]) -> Iterator[str]:
    """Sessions of a shard that its cohort does not speak of, and scans of theirs that are nowhere."""
    for subject, session in sorted({key[:2] for key in (*scans, *rejected)}):
        if (subject, session) not in told:
            yield f"session {_words((subject, session))} has no row in `sessions`"
            continue
        for modality in told[subject, session]:
            if (subject, session, modality) not in scans and (subject, session, modality) not in rejected:
                yield f"{_words((subject, session, modality))} was found, and is in neither `scans` nor `rejected`"


# a cohort -----------------------------------------------------------------------------------------------------------


def _told(at: Place, info: StoreInfo, records: list[Commit]) -> Told | None:
    """The modalities that a cohort says it has of each session; None where the file cannot be read."""
    try:
        table = SliceStore(at, info, 0, layout.snapshot_of(records)).sessions()
    except StorageError:  # said where its part is looked at
        return None
    return {(subject, session): tuple(names) for subject, session, names in _rows(table, *SCAN[:2], "modalities")}


def _cohort(cohort: str, number: int, told: Told | None, found: Counter[Name], *, whole: bool) -> Iterator[Fault]:
    """Whether the sessions of a cohort stand in one shard each. whole: whether all of its shards could be read."""
    file = layout.snapshot_file(number)
    for name, count in sorted(found.items()):
        if count > 1:
            yield Fault(file, f"session {_words(name)} of cohort {cohort} stands in {count} shards", AGAIN)
    if told is not None and whole:
        for name in sorted(name for name, modalities in told.items() if modalities and name not in found):
            yield Fault(file, f"session {_words(name)} of cohort {cohort} stands in no shard", AGAIN)


# words --------------------------------------------------------------------------------------------------------------


def _rows(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _words(key: tuple[str, ...]) -> str:
    return " ".join(filter(None, key))


def _volume(key: Volume) -> str:
    return _words(key[:3]) + ("" if key[3] is None else f" volume {key[3]}")


def _place(key: Volume) -> tuple[str, str, str, int]:
    """For sorting: a scan that is one volume has no number."""
    return (*key[:3], -1 if key[3] is None else key[3])


def _said(error: BfpError, at: Place) -> str:
    """What an error says of a file, without the place, which the fault names already."""
    return str(error).partition("\n")[0].removeprefix(f"{at}/").partition(": ")[2]
