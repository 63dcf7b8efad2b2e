"""A prune removes what no kept snapshot needs and nothing that anybody builds on, wherever it is cut off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bfp.cli.stores import pruned
from bfp.errors import InputError
from bfp.storage import Place
from bfp.store import layout, turns
from bfp.store.check import check
from bfp.store.layout import Commit, Part
from bfp.store.prune import (
    DAY_S,
    Kind,
    StoreFile,
    Survey,
    decide,
    kept_snapshots,
    remove,
    spared_commits,
    survey,
    young_among,
)
from bfp.store.reader import SliceStore
from tests.store.makers import MadeSession, make_store
from tests.store.test_reader import files_of

FIRST = [MadeSession("a", "01"), MadeSession("a", "02"), MadeSession("b", "01")]


def aged(store: Place, days: float = 2) -> None:
    """Make everything in the store so old."""
    for file in store.path.rglob("*"):
        if file.is_file():
            then = file.stat().st_mtime - days * DAY_S
            os.utime(file, (then, then))


@pytest.fixture
def store(tmp_path: Path) -> Place:
    """Two snapshots: the second has another cohort a; all of it two days old."""
    store = make_store(tmp_path / "store", sessions=FIRST, segmentation="tissue")
    make_store(tmp_path / "store", sessions=FIRST[:1], segmentation="tissue", seed=1)
    aged(store)
    return store


def unfinished(store: Place, *, seed: int = 7) -> list[Commit]:
    """What an ingest committed and never took a snapshot of."""
    number = layout.snapshot_numbers(store)[-1] + 1
    make_store(store.path, sessions=[MadeSession("c", "09")], seed=seed)
    commits = [record for record in layout.read_snapshot(store, number).commits if record.cohort == "c"]
    (store / "snapshots" / f"{number}.json").delete()
    return commits


def kinds(found: Survey) -> dict[str, int]:
    return {kind: sum(each.kind == kind for each in found.waste) for kind in {each.kind for each in found.waste}}


def test_a_store_of_which_all_is_needed_loses_nothing(store: Place) -> None:
    before = files_of(store.path)
    found = survey(store)
    assert (found.waste, found.young, found.kept) == ([], 0, [1, 2])
    assert remove(found) == []
    assert files_of(store.path) == before


def test_older_snapshots_go_with_all_that_they_alone_need(store: Place, tmp_path: Path) -> None:
    found = survey(store, keep_snapshots=1)
    assert found.kept == [2]
    tables = {"stacks": 1, "masks": 1, "scans": 1, "label_maps": 1, "sessions": 1}
    assert kinds(found) == {"snapshots": 1, "commits": 2, **tables}
    assert remove(found) == found.waste
    assert check(store).faults == []
    assert survey(store, keep_snapshots=1).waste == []
    live = {part.file for record in layout.read_snapshot(store, 2).commits for part in record.parts}
    assert {file for file in files_of(store.path) if file.endswith(".parquet")} == live
    with pytest.raises(InputError, match="has no snapshot 1; it has 2 to 2; a prune removed it"):
        SliceStore.open(store, snapshot=1)
    with pytest.raises(InputError, match=r"has no snapshot 3; it has 2 to 2\Z"):
        SliceStore.open(store, snapshot=3)


def test_what_a_killed_ingest_left_goes_after_a_day(store: Place) -> None:
    before = files_of(store.path)
    unfinished(store)
    (store / "stacks" / ".part-00.parquet.0a1b2c3d").write(b"half")
    (store / ".bfp-0123456789ab").write(b"")
    found = survey(store)
    assert (found.waste, found.young) == ([], 4)  # two commits, whose parts are theirs, and two leftovers
    aged(store, days=0.9)
    assert survey(store).waste == []
    aged(store, days=0.2)
    found = survey(store)
    assert kinds(found) == {"commits": 2, "stacks": 1, "scans": 1, "sessions": 1, "left by a kill": 2}
    assert remove(found) == found.waste
    assert files_of(store.path) == before


def test_a_store_that_lost_its_snapshots_or_never_had_one_is_not_emptied(store: Place) -> None:
    for number in (1, 2):
        (store / "snapshots" / f"{number}.json").delete()
    before = files_of(store.path)
    with pytest.raises(
        InputError, match="has no snapshot, so that all of its files would go: an ingest did not finish"
    ):
        pruned(store, keep_snapshots=None, older_than="0m", yes=True, ask=False)
    assert files_of(store.path) == before


def test_an_ingest_of_many_days_keeps_its_first_commits(store: Place) -> None:
    first = unfinished(store, seed=7)
    aged(store)
    unfinished(store, seed=8)
    found = survey(store)
    assert found.waste == []
    assert found.young >= len(first) + 1


def test_what_is_not_of_bfp_is_not_touched(store: Place) -> None:
    for name in ("README.md", "stacks/notes.txt", "stacks/.hidden", "other/part-00.parquet", "snapshots/old.json"):
        (store / name).write(b"mine")
    aged(store)
    assert survey(store).waste == []


def test_a_store_that_cannot_be_understood_is_left_alone(store: Place) -> None:
    unfinished(store)
    aged(store)
    (store / "snapshots" / "1.json").write(b"{")
    with pytest.raises(InputError, match=r"snapshots/1\.json: not a file that bfp wrote, or damaged"):
        survey(store)
    with pytest.raises(InputError, match="no slice store there"):
        survey(store / "elsewhere")
    with pytest.raises(InputError, match="the latest is always kept"):
        survey(store, keep_snapshots=0)


class Killed(BaseException):
    pass


def test_a_prune_that_is_killed_anywhere_leaves_a_whole_store_and_the_next_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = Place.delete

    def made(name: str) -> Place:
        store = make_store(tmp_path / name, sessions=FIRST, segmentation="tissue")
        make_store(store.path, sessions=FIRST[:1], segmentation="tissue", seed=1)
        unfinished(store)
        aged(store)
        return store

    undisturbed = made("undisturbed")
    total = len(remove(survey(undisturbed, keep_snapshots=1)))
    assert total > 10
    for moment in range(total):
        store, left = made(str(moment)), [moment]

        def dies(here: Place, left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return delete(here)

        found = survey(store, keep_snapshots=1)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Place, "delete", dies)
            remove(found)
        assert check(store).faults == []
        remove(survey(store, keep_snapshots=1))
        (marker,) = files_of(store.path).keys() - files_of(undisturbed.path).keys()
        assert layout.marker_of(marker) == "prune"
        aged(store)
        assert [each.file for each in remove(survey(store, keep_snapshots=1))] == [marker]
        assert files_of(store.path) == files_of(undisturbed.path)


def test_a_snapshot_that_is_taken_before_the_parts_go_keeps_them(store: Place) -> None:
    commits = unfinished(store)
    aged(store)
    found = survey(store)
    assert kinds(found)["commits"] == 2
    layout.take_snapshot(store, commits, cohorts=["c"])
    assert remove(found) == []
    assert check(store).faults == []
    assert SliceStore.open(store).stack_index().num_rows == layout.read_snapshot(store, 3).totals.stacks


def test_what_an_ingest_builds_on_between_the_look_and_the_removal_stays(store: Place) -> None:
    commits = unfinished(store)
    aged(store)
    found = survey(store)
    layout.renew(store, [record.name for record in commits])
    assert remove(found) == []
    layout.take_snapshot(store, commits, cohorts=["c"])
    assert check(store).faults == []


def test_a_part_that_is_written_again_stays_before_its_commit_is_there(store: Place) -> None:
    def without_commits() -> list[Commit]:
        commits = unfinished(store)
        for record in commits:
            (store / "commits" / f"{record.name}.json").delete()
        return commits

    without_commits()
    aged(store)
    found = survey(store)
    assert kinds(found) == {"stacks": 1, "scans": 1, "sessions": 1}
    again = without_commits()
    assert remove(found) == []
    for record in again:
        layout.commit(store, record)
    layout.take_snapshot(store, again, cohorts=["c"])
    assert check(store).faults == []


def test_the_latest_snapshot_and_a_young_one_are_kept(store: Place) -> None:
    make_store(store.path, sessions=FIRST, segmentation="tissue", seed=2)
    os.utime(store.path / "snapshots" / "2.json")
    assert survey(store, keep_snapshots=1).kept == [2, 3]


def test_a_survey_writes_nothing_and_asks_nothing_of_single_files(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(store)
    aged(store)
    for name in ("write", "create", "touch", "delete", "modified_s", "now_s"):
        monkeypatch.setattr(Place, name, lambda *arguments, name=name: pytest.fail(name))
    assert len(survey(store, keep_snapshots=1).waste) > 10


def test_a_store_whose_clock_is_ahead_is_surveyed_by_its_own(store: Place) -> None:
    unfinished(store)
    aged(store, days=-3)
    assert kinds(survey(store, older_than_s=0)) == {"commits": 2, "stacks": 1, "scans": 1, "sessions": 1}
    assert survey(store).waste == []


# deciding -------------------------------------------------------------------------------------------------------------


def commit_of(name: str, *files: str) -> Commit:
    parts = [Part(table="stacks", file=file, size_bytes=1, sha256="", row_groups=[1]) for file in files]
    return Commit(name=name, kind="shard", cohort="a", parts=parts)


def made(**ages_s: float) -> list[StoreFile]:
    """Files by what they are: `s1` a snapshot, `c…` a commit, `p…` a part, `m` a marker; each so old at time 0."""
    name: dict[str, tuple[Kind, Callable[[str], str]]] = {
        "s": ("snapshots", lambda text: layout.snapshot_file(int(text[1:]))),
        "c": ("commits", layout.commit_file),
        "p": ("stacks", lambda text: f"stacks/{text}"),
        "m": ("left by a kill", lambda text: ".bfp-prune-0123456789ab"),
    }
    return [StoreFile(name[text[0]][0], name[text[0]][1](text), 1, -age) for text, age in ages_s.items()]


def test_files_are_young_until_they_are_as_old_as_the_grace_and_a_marker_for_its_lease() -> None:
    files = made(c1=9.9, c2=10, m=turns.LEASE_S - 1)
    assert young_among(files, older_than_s=10, now_s=0) == {"commits/c1.json", files[2].file}
    assert young_among(files, older_than_s=10, now_s=1) == set()
    assert young_among(files, older_than_s=2 * turns.LEASE_S, now_s=0) == {each.file for each in files}


def test_the_latest_snapshots_and_the_young_ones_are_kept_in_order_of_number() -> None:
    files = made(s10=5, s9=5, s2=5, s1=5)
    assert kept_snapshots(files, keep=None, young=()) == [1, 2, 9, 10]
    assert kept_snapshots(files, keep=2, young=()) == [9, 10]
    assert kept_snapshots(files, keep=1, young=("snapshots/2.json",)) == [2, 10]


def test_commits_of_no_snapshot_are_spared_together_while_one_is_young() -> None:
    files, held = made(c1=5, c2=5, c3=5), [commit_of("c1")]
    assert spared_commits(files, needed=held, young=()) == set()
    assert spared_commits(files, needed=held, young=("commits/c1.json", "stacks/p1")) == set()
    assert spared_commits(files, needed=held, young=("commits/c3.json",)) == {"c2", "c3"}


def test_what_goes_is_what_neither_snapshots_nor_spared_commits_need_snapshots_first() -> None:
    files = made(m=5, p3=5, p2=5, p1=5, p0=5, c3=5, c2=5, c1=5, s2=5, s1=5)
    kept, needed, spared = [2], [commit_of("c1", "stacks/p1")], [commit_of("c2", "stacks/p2")]
    waste, count = decide(files, kept=kept, needed=needed, spared=spared, young=("stacks/p0",))
    assert [each.file for each in waste] == [
        "snapshots/1.json", "commits/c3.json", "stacks/p3", ".bfp-prune-0123456789ab"
    ]  # fmt: skip
    assert count == 2  # p0 and c2


def test_a_store_in_an_object_store_is_checked_and_pruned_alike(tmp_path: Path, s3_bucket: str) -> None:
    here = make_store(tmp_path / "store", sessions=FIRST, segmentation="tissue")
    make_store(tmp_path / "store", sessions=FIRST[:1], segmentation="tissue", seed=1)
    there = Place(f"{s3_bucket}/prune-{os.getpid()}")
    for name, data in files_of(here.path).items():
        (there / name).write(data)
    assert check(there).faults == []
    assert survey(there, keep_snapshots=1).waste == []  # they are young
    found = survey(there, keep_snapshots=1, older_than_s=0)
    tables = {"stacks": 1, "masks": 1, "scans": 1, "label_maps": 1, "sessions": 1}
    assert kinds(found) == {"snapshots": 1, "commits": 2, **tables}
    touched, before_s = there / found.waste[0].file, found.waste[0].modified_s
    assert before_s == pytest.approx(time.time(), abs=60)
    time.sleep(1.1)  # an object's time may be told in whole seconds
    assert touched.touch()
    assert not (there / "stacks" / "part-0.parquet").touch()
    assert {each.place: each.modified_s for each in there.files()}[touched] > before_s + 1
    assert [each.file for each in remove(found)] == [each.file for each in found.waste]
    assert survey(there, keep_snapshots=1, older_than_s=0).waste == []
    assert check(there).faults == []
    part = next(entry.place for entry in there.files() if "/stacks/" in entry.place.uri)
    part.write(part.read()[:-1])
    assert [fault.file for fault in check(there).faults] == [f"stacks/{part.name}"]
