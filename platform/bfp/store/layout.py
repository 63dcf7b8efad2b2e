"""The files of a store by name, and its JSON files: what it is, what is committed, and which commits are live.

A snapshot holds its commits whole, so that opening a store takes one listing and one read. An ingest replaces what its
cohorts had in the snapshot before and keeps every other cohort; where another ingest took the next number first, the
snapshot is made anew on top of that one. Files of another version of bfp may hold unknown fields, but not a newer
contract.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bfp.errors import InputError, StorageError
from bfp.storage import Place

CONTRACT = 2
"""The version of the store's files and columns; readers refuse a newer one. 2: the table `label_maps`."""

DO_AGAIN = "submit its ingest again, which makes it anew"

_READS_AT_ONCE = 32  # small files, which on object storage mostly wait


Table = Literal["stacks", "masks", "scans", "sessions", "rejected", "label_maps"]
TABLES: tuple[Table, ...] = get_args(Table)

# files by name, relative to the store -----------------------------------------------------------------------------

INFO = "store.json"
SNAPSHOTS = "snapshots"
COMMITS = "commits"
FOLDERS = ("", SNAPSHOTS, COMMITS, *TABLES)
"""Where bfp writes; "" is the store itself."""

Side = Literal["prune", "ingest"]
FileKind = Literal["snapshots", "commits", Table]

_NAMES = {SNAPSHOTS: r"\d+[.]json", COMMITS: r".+[.]json"} | dict.fromkeys(TABLES, r"part-[0-9a-f]+[.]parquet")
_MARKER = re.compile(r"[.]bfp-(prune|ingest)-[0-9a-f]{12}")


def snapshot_file(number: int) -> str:
    return f"{SNAPSHOTS}/{number}.json"


def number_of(file: str) -> int:
    """As `snapshot_file` has it."""
    return int(name_of(file))


def commit_file(name: str) -> str:
    return f"{COMMITS}/{name}.json"


def name_of(file: str) -> str:
    """As `commit_file` has it."""
    return file.rpartition("/")[2].removesuffix(".json")


def part_file(table: Table, sha256: str) -> str:
    """The name of a part, from its content."""
    return f"{table}/part-{sha256[:24]}.parquet"


def marker_file(side: Side) -> str:
    """A name for the marker of one prune or ingest (`turns`)."""
    return f".bfp-{side}-{secrets.token_hex(6)}"


def marker_of(file: str) -> Side | None:
    """Whose marker a file is; None where it is none."""
    found = _MARKER.fullmatch(file)
    return cast(Side, found[1]) if found else None


def kind_of(file: str) -> FileKind | None:
    """What a file is that a snapshot may need, by its name; None for any other."""
    folder, _, name = file.rpartition("/")
    for kind in get_args(FileKind):
        if folder == kind and re.fullmatch(_NAMES[kind], name):
            return kind
    return None


# what they hold ---------------------------------------------------------------------------------------------------


class Stored(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    def encoded(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


Kind = TypeVar("Kind", bound=Stored)


class StoreInfo(Stored):
    """store.json. preprocessing: a field of the spec that does not stand there is at its default."""

    contract: int
    preprocessing: dict[str, Any]
    fingerprint: str


class Part(Stored):
    """One Parquet file; `row_groups` are the rows of each."""

    table: Table
    file: str
    size_bytes: int
    sha256: str
    row_groups: list[int]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


class SegmentationInfo(Stored):
    """What a segmentation's labels mean: each class and the label values that make it."""

    drawn_on: str
    classes: dict[str, list[int]]


class Commit(Stored):
    """One shard's parts, or the sessions of one cohort with what its segmentations mean."""

    name: str
    kind: Literal["shard", "sessions"]
    cohort: str
    parts: list[Part]
    imaging: int = 0
    segmentations: dict[str, SegmentationInfo] = {}

    def rows(self, table: str) -> int:
        return sum(part.rows for part in self.parts if part.table == table)


class Totals(Stored):
    """The rows of each table. A 4-D scan with stacks for each of its volumes has so many rows in `scans`."""

    stacks: int
    scans: int
    sessions: int
    rejected: int
    size_bytes: int


class Snapshot(Stored):
    """snapshots/<n>.json: the live commits, sorted by cohort, kind and name."""

    contract: int
    totals: Totals
    commits: list[Commit]


class Numbered(NamedTuple):
    number: int
    snapshot: Snapshot


def fingerprint(preprocessing: Mapping[str, Any]) -> str:
    """A short name of a preprocessing: equal ones have equal names."""
    return hashlib.sha256(json.dumps(preprocessing, sort_keys=True).encode()).hexdigest()[:16]


def read_info(store: Place) -> StoreInfo | None:
    """What stands in store.json, or None where there is no store.

    Raises InputError where it is of a newer contract or was damaged.
    """
    file = store / INFO
    return _parse(StoreInfo, file, "put back a good copy") if file.exists() else None


def check_same(store: Place, preprocessing: Mapping[str, Any]) -> None:
    """Raise InputError, showing what differs, where the store was made with another preprocessing."""
    info = read_info(store)
    if info is None or info.preprocessing == preprocessing:
        return
    before, now = _flat(info.preprocessing), _flat(preprocessing)
    differing = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    lines = [
        f"    preprocessing.{key}: the store has {_text(before, key)}, asked for is {_text(now, key)}"
        for key in differing
    ]
    raise InputError(
        f"{store} was made with another preprocessing; give the same, or another store\n" + "\n".join(lines)
    )


def make(store: Place, preprocessing: Mapping[str, Any]) -> None:
    """Write store.json, or see that the one that stands there says the same."""
    info = StoreInfo(contract=CONTRACT, preprocessing=dict(preprocessing), fingerprint=fingerprint(preprocessing))
    if not (store / INFO).create(info.encoded()):
        check_same(store, preprocessing)


def committed(store: Place) -> set[str]:
    """The names of all commits, live or not, from one listing."""
    return {name.removesuffix(".json") for name in (store / COMMITS).names() if name.endswith(".json")}


def whole(store: Place, names: Iterable[str]) -> dict[str, Commit]:
    """Those of these commits that are there with all of their parts, each in full, by name, from one listing.

    A commit that the latest snapshot does not hold, or that lost a part and may have been replaced since, costs a read
    of its own.
    """
    there = committed(store) & set(names)
    if not there:
        return {}
    start = len(store.uri) + 1
    sizes = {file.place.uri[start:]: file.size for file in store.files()}

    def with_parts(records: Iterable[Commit]) -> dict[str, Commit]:
        return {
            record.name: record
            for record in records
            if all(sizes.get(part.file) == part.size_bytes for part in record.parts)
        }

    live = _live(store)
    found = with_parts(live[name] for name in there & live.keys())
    return found | with_parts(read_commits(store, there - found.keys()))


def standing(store: Place, name: str) -> Commit | None:
    """A commit that is there with all of its parts, each in full, else None; from one request where there is none."""
    record = _commit_at(store, name)
    return record if record and _has_parts(store, record) else None


def _has_parts(store: Place, record: Commit) -> bool:
    found = ((part, (store / part.file).entry()) for part in record.parts)
    return all(entry is not None and entry.size == part.size_bytes for part, entry in found)


def renew(store: Place, names: Iterable[str]) -> None:
    """Make those of these commits that are there count as written now, but for those of the latest snapshot.

    One that a prune takes meanwhile is not there any more, or comes back without its parts: look what is `whole` only
    once that prune has ended (`turns`).
    """
    loose = committed(store) & set(names)
    if loose:
        loose -= _live(store).keys()
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        list(pool.map(lambda name: (store / commit_file(name)).touch(), loose))


def _live(store: Place) -> dict[str, Commit]:
    latest = latest_snapshot(store)
    return {record.name: record for record in latest.snapshot.commits} if latest else {}


def read_commit(store: Place, name: str) -> Commit:
    return _parse(Commit, store / commit_file(name), f"delete it and {DO_AGAIN}")


def read_commits(store: Place, names: Iterable[str]) -> list[Commit]:
    """Those of these commits that are there."""
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(filter(None, pool.map(lambda name: _commit_at(store, name), names)))


def commit(store: Place, record: Commit) -> Commit:
    """Make a commit; returns the one that stands, which is another's where that was first.

    One that has lost a part is replaced: by another version of bfp, its parts would be other ones.
    """
    file = store / commit_file(record.name)
    stands = None
    while stands is None:
        if file.create(record.encoded()):
            return record
        stands = _commit_at(store, record.name)  # None where a prune has just taken it
    if stands != record and not _has_parts(store, stands):
        file.write(record.encoded())
        return record
    return stands


def latest_snapshot(store: Place) -> Numbered | None:
    """The highest snapshot and its number; None where there is none."""
    while numbers := snapshot_numbers(store):
        snapshot = _unless_gone(lambda: read_snapshot(store, numbers[-1]))
        if snapshot:  # else a prune took it since, and there is a higher one
            return Numbered(numbers[-1], snapshot)
    return None


def snapshot_numbers(store: Place) -> list[int]:
    stems = (name.removesuffix(".json") for name in (store / SNAPSHOTS).names())
    return sorted(int(stem) for stem in stems if stem.isdigit())


def read_snapshot(store: Place, number: int) -> Snapshot:
    return _parse(Snapshot, store / snapshot_file(number), f"put back a good copy, or delete it and {DO_AGAIN}")


def take_snapshot(store: Place, commits: Iterable[Commit], *, cohorts: Iterable[str]) -> Numbered:
    """The snapshot in which these commits are all that the cohorts have, and other cohorts keep theirs.

    The latest one is returned as it is where it says that already.
    """
    own, replaced = list(commits), set(cohorts)
    while True:
        latest = latest_snapshot(store)
        kept = [record for record in latest.snapshot.commits if record.cohort not in replaced] if latest else []
        live = sorted([*kept, *own], key=lambda record: (record.cohort, record.kind, record.name))
        if latest and latest.snapshot.commits == live:
            return latest
        following = Numbered(latest.number + 1 if latest else 1, snapshot_of(live))
        if (store / snapshot_file(following.number)).create(following.snapshot.encoded()):
            return following


def snapshot_of(commits: list[Commit]) -> Snapshot:
    """The snapshot in which exactly these commits are live."""
    return Snapshot(contract=CONTRACT, totals=_totals(commits), commits=commits)


def _totals(commits: list[Commit]) -> Totals:
    tables = ("stacks", "scans", "sessions", "rejected")
    return Totals(
        **{table: sum(record.rows(table) for record in commits) for table in tables},
        size_bytes=sum(part.size_bytes for record in commits for part in record.parts),
    )


def _parse(kind: type[Kind], file: Place, remedy: str) -> Kind:
    try:
        found = json.loads(file.read())
        contract = found.get("contract", CONTRACT)
        if isinstance(contract, int) and contract > CONTRACT:
            raise InputError(
                f"{file}: written by a newer bfp (contract {contract}; this one reads up to {CONTRACT}); update bfp"
            )
        return kind.model_validate(found)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: not a file that bfp wrote, or damaged ({_cause(error)})\n    {remedy}") from error


def _cause(error: Exception) -> str:
    """What is wrong with a file, on one line: of several fields the first."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return "no JSON object" if isinstance(error, AttributeError) else str(error)


def _commit_at(store: Place, name: str) -> Commit | None:
    """A commit, with or without its parts; None where there is none."""
    return _unless_gone(lambda: read_commit(store, name))


def _unless_gone(read: Callable[[], Kind]) -> Kind | None:
    """What is read, or None where there is no file."""
    try:
        return read()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, Mapping) else {f"{prefix}{key}": entry}
    return flat


def _text(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "nothing" if "." in key else "the default"
