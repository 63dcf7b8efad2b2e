"""A check passes what the writer wrote and names, by file, whatever was changed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bfp.errors import InputError
from bfp.storage import Place
from bfp.store import layout
from bfp.store.check import AGAIN, REPLACE, REPORT, RESTORE, check
from bfp.store.layout import Commit, Part, Snapshot
from tests.store.makers import MadeSession, make_store

SESSIONS = [
    MadeSession("a", "01", stacks=20),
    MadeSession("a", "02", "v1", stacks=3, present=(True, False, True)),
    MadeSession("a", "03", "", stacks=16, present=(False, True, False)),
    MadeSession("b", "01", stacks=5),
]


@pytest.fixture
def store(tmp_path: Path) -> Place:
    return make_store(tmp_path / "store", sessions=SESSIONS, segmentation="tissue")


def part_of(store: Place, table: str) -> Path:
    return sorted((store.path / table).iterdir())[0]


def told(store: Place) -> list[tuple[str, str]]:
    """What is wrong, without the remedies."""
    return [(fault.file, fault.found) for fault in check(store).faults]


def test_a_whole_store_has_no_fault_and_all_of_it_is_looked_at(store: Place) -> None:
    seen = list[tuple[int, int]]()
    found = check(store, progress=lambda done, total: seen.append((done, total)))
    assert found.faults == []
    assert seen == [(number, 5) for number in range(1, 6)]
    files = list(store.path.rglob("*.parquet"))
    assert (found.snapshot, found.commits, found.parts) == (1, 5, len(files))
    assert found.size_bytes == sum(file.stat().st_size for file in files)
    assert found.rows == 44 + 44 + (3 + 2 + 1 + 3) + 4 + 4


@pytest.mark.parametrize("table", ["stacks", "masks", "scans", "sessions", "label_maps"])
def test_one_turned_bit_is_found_in_every_table(store: Place, table: str) -> None:
    file = part_of(store, table)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)
    (fault,) = check(store).faults
    assert fault.file == f"{table}/{file.name}"
    assert fault.found.startswith("has the SHA-256 ")
    assert fault.remedy == REPLACE


def test_a_file_that_is_gone_or_cut_short_is_named(store: Place) -> None:
    gone, cut = part_of(store, "masks"), part_of(store, "stacks")
    gone.unlink()
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-7])
    faults = {fault.file: fault for fault in check(store).faults}
    assert faults[f"masks/{gone.name}"][1:] == ("nothing is there", AGAIN)
    assert f"has {len(whole) - 7:,} bytes; its commit says {len(whole):,}" == faults[f"stacks/{cut.name}"].found
    assert len(faults) == 2


@pytest.mark.parametrize(
    ("file", "change", "found", "remedy"),
    [
        (
            "store.json",
            lambda x: x["preprocessing"].update(spacing_mm=1),
            "its fingerprint is not that of its pre",
            RESTORE,
        ),
        (
            "snapshots/1.json",
            lambda x: x["totals"].update(stacks=43),
            "totals.stacks is 43; its commits come to 44",
            RESTORE,
        ),
        ("commits/SHARD.json", lambda x: x.update(imaging=7), "says something else than the snapshot", REPLACE),
        ("commits/SHARD.json", lambda x: x.pop("parts"), "not a file that bfp wrote, or damaged", REPLACE),
    ],
)
def test_a_json_file_that_was_changed_is_named(
    store: Place, file: str, change: Callable[[dict], None], found: str, remedy: str
) -> None:
    file = file.replace("SHARD", next(record.name for record in live(store).commits if record.kind == "shard"))
    content = json.loads((store / file).read())
    change(content)
    (store / file).write(json.dumps(content).encode())
    (fault,) = check(store).faults
    assert (fault.file, fault.remedy) == (file, remedy)
    assert fault.found.startswith(found)


def test_an_older_snapshot_that_cannot_be_read_is_named(store: Place) -> None:
    make_store(store.path, sessions=SESSIONS[:3], segmentation="tissue", seed=1)
    (store / "snapshots" / "1.json").write(b"{")
    assert [file for file, _ in told(store)] == ["snapshots/1.json"]


def test_a_commit_without_its_file_is_named(store: Place) -> None:
    name = live(store).commits[0].name
    (store / "commits" / f"{name}.json").delete()
    assert told(store) == [(f"commits/{name}.json", "nothing is there")]


def live(store: Place) -> Snapshot:
    return layout.read_snapshot(store, 1)


def snapshot_with(store: Place, change: Callable[[list[Commit]], list[Commit]]) -> None:
    """A second snapshot, of other commits."""
    made = layout.snapshot_of(change(live(store).commits))
    (store / "snapshots" / "2.json").write(made.encoded())


def test_a_session_without_a_row_and_one_without_a_shard_are_named(store: Place, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", sessions=[*SESSIONS[:2], MadeSession("a", "09")])
    for file in (*(other.path / "sessions").iterdir(), *(other.path / "commits").iterdir()):
        (store / file.parent.name / file.name).write(file.read_bytes())
    (foreign,) = (record for record in live(other).commits if record.kind == "sessions")
    snapshot_with(
        store, lambda own: [each for each in own if (each.cohort, each.kind) != ("a", "sessions")] + [foreign]
    )
    faults = dict(told(store))
    (shard,) = (
        record
        for record in live(store).commits
        if (record.cohort, record.kind) == ("a", "shard") and record.rows("stacks") == 16
    )
    assert faults == {
        f"commits/{shard.name}.json": "session 03 has no row in `sessions`",
        "snapshots/2.json": "session 09 of cohort a stands in no shard",
    }


def test_a_session_in_two_shards_is_named(store: Place) -> None:
    again = make_store(store.path, sessions=[SESSIONS[0]], segmentation="tissue", seed=1)
    (shard,) = (
        record for record in layout.read_snapshot(again, 2).commits if (record.cohort, record.kind) == ("a", "shard")
    )
    (store / "snapshots" / "2.json").delete()
    snapshot_with(store, lambda own: [*own, shard])
    assert told(store) == [("snapshots/2.json", "session 01 of cohort a stands in 2 shards")]


def faults_of_shard(store: Place, make: Callable[[Commit, Commit], dict]) -> list[str]:
    """What is wrong with a snapshot in which the two shards of cohort a are one, changed in some fields."""

    def changed(own: list[Commit]) -> list[Commit]:
        one, two = sorted(
            (record for record in own if (record.cohort, record.kind) == ("a", "shard")),
            key=lambda record: record.rows("stacks"),
        )
        torn = one.model_copy(update=make(one, two))
        (store / "commits" / f"{one.name}.json").write(torn.encoded())
        return [each for each in own if each not in (one, two)] + [torn]

    snapshot_with(store, changed)
    return [fault.found for fault in check(store).faults if fault.remedy == REPORT]


def test_scans_without_their_stacks_are_named(store: Place) -> None:
    found = faults_of_shard(
        store,
        lambda one, two: {"parts": [*tables(two, "scans"), *tables(one, "stacks", "masks")]},
    )
    assert "0 stacks of 01 T1w; its row in `scans` says 20" in found
    assert "16 stacks of 03 T2w; its row in `scans` says 0" in found


def tables(record: Commit, *names: str) -> list[Part]:
    return [part for part in record.parts if part.table in names]


def test_labels_without_their_stacks_are_named(store: Place) -> None:
    found = faults_of_shard(store, lambda one, two: {"parts": [*tables(two, "masks"), *tables(one, "stacks", "scans")]})
    assert found == ["labels of 01 T1w at slice 3, where no stack is"]


def test_slices_that_stand_there_twice_are_named(store: Place) -> None:
    found = faults_of_shard(
        store, lambda one, two: {"parts": [*tables(one, "stacks"), *tables(one, "stacks", "scans", "masks")]}
    )
    assert "slice 3 of 03 T2w stands there 2 times" in found


def test_a_shard_with_rows_of_another_cohort_is_named(store: Place) -> None:
    found = faults_of_shard(store, lambda one, two: {"cohort": "b"})
    assert "a shard of cohort b with rows of a" in found


def test_a_place_without_a_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no slice store there"):
        check(Place(str(tmp_path)))
