import json
import threading
from pathlib import Path

import pytest

from bfp.errors import InputError
from bfp.storage import Place, place
from bfp.store import layout
from bfp.store.layout import Commit, Part

PREPROCESSING = {"size": 28, "spacing_mm": 1.0, "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]}}


@pytest.fixture
def store(tmp_path: Path) -> Place:
    return place(str(tmp_path / "store"))


def record(name: str, *, cohort: str = "a", rows: int = 5) -> Commit:
    part = Part(table="stacks", file=f"stacks/part-{name}.parquet", size_bytes=10, sha256="", row_groups=[rows])
    return Commit(name=name, kind="shard", cohort=cohort, parts=[part])


def test_a_store_refuses_another_preprocessing_and_shows_the_difference(store: Place) -> None:
    layout.make(store, PREPROCESSING)
    layout.make(store, json.loads(json.dumps(PREPROCESSING)))
    other = {**PREPROCESSING, "size": 224, "stacks": {"form": "neighbours", "gap_mm": 1.0}}
    with pytest.raises(InputError) as caught:
        layout.make(store, other)
    assert str(caught.value).splitlines()[1:] == [
        "    preprocessing.size: the store has 28, asked for is 224",
        '    preprocessing.stacks.form: the store has "modalities", asked for is "neighbours"',
        "    preprocessing.stacks.gap_mm: the store has nothing, asked for is 1.0",
        '    preprocessing.stacks.channels: the store has ["T1w", "T2w", "FLAIR"], asked for is nothing',
    ]


def test_a_field_that_a_store_does_not_name_is_told_as_its_default(store: Place) -> None:
    layout.make(store, PREPROCESSING)
    with pytest.raises(
        InputError, match=r'preprocessing\.slice_axis: the store has the default, asked for is "coronal"'
    ):
        layout.check_same(store, {**PREPROCESSING, "slice_axis": "coronal"})


def test_equal_preprocessings_have_equal_fingerprints_whatever_the_order_of_their_fields() -> None:
    turned = dict(reversed(PREPROCESSING.items()))
    assert layout.fingerprint(turned) == layout.fingerprint(PREPROCESSING)
    assert layout.fingerprint({**PREPROCESSING, "size": 29}) != layout.fingerprint(PREPROCESSING)


def test_the_first_commit_of_a_name_stands(store: Place) -> None:
    first, second = record("x", rows=5), record("x", rows=6)
    (store / first.parts[0].file).write(bytes(10))
    assert layout.commit(store, first) == first
    assert layout.commit(store, second) == first
    assert layout.committed(store) == {"x"}


def test_a_commit_whose_part_was_cut_short_is_whole_no_more(store: Place) -> None:
    layout.make(store, PREPROCESSING)
    (store / record("x").parts[0].file).write(bytes(10))
    layout.commit(store, record("x"))
    assert set(layout.whole(store, ["x"])) == {"x"}
    assert layout.standing(store, "x") == record("x")
    (store / record("x").parts[0].file).write(bytes(9))
    assert layout.whole(store, ["x"]) == {}
    assert layout.standing(store, "x") is None


def test_a_commit_that_lost_a_part_is_whole_no_more_and_may_be_replaced(store: Place) -> None:
    first, second = record("x", rows=5), record("y", rows=6).model_copy(update={"name": "x"})
    part = store / first.parts[0].file
    layout.commit(store, first)
    assert layout.whole(store, ["x", "y"]) == {}
    part.write(bytes(10))
    assert layout.whole(store, ["x", "y"]) == {"x": first}
    layout.take_snapshot(store, [first], cohorts=["a"])
    assert layout.whole(store, ["x", "y"]) == {"x": first}
    assert layout.standing(store, "x") == first
    part.delete()
    assert layout.whole(store, ["x", "y"]) == {}
    assert layout.standing(store, "x") is None
    (store / second.parts[0].file).write(bytes(10))
    assert layout.commit(store, second) == second
    assert layout.whole(store, ["x"]) == {"x": second}, "what the snapshot says of it is of the past"


def test_what_a_prune_takes_while_it_is_looked_for_is_made_or_not_there(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, file = record("x"), store / layout.commit_file("x")
    layout.commit(store, first)
    create = Place.create

    def pruned_after(here: Place, data: bytes) -> bool:
        done = create(here, data)
        file.delete()
        monkeypatch.setattr(Place, "create", create)
        return done

    monkeypatch.setattr(Place, "create", pruned_after)
    assert layout.commit(store, first) == first
    assert layout.read_commit(store, "x") == first
    file.delete()
    monkeypatch.setattr(layout, "committed", lambda store: {"x"})
    assert layout.whole(store, ["x"]) == {}
    layout.renew(store, ["x"])
    assert not file.exists()


def test_a_snapshot_that_a_prune_takes_while_it_is_read_was_not_the_latest(
    store: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.take_snapshot(store, [record("a1")], cohorts=["a"])
    layout.take_snapshot(store, [record("a2")], cohorts=["a"])
    (store / layout.snapshot_file(1)).delete()
    listings = [[1], [2]]
    monkeypatch.setattr(layout, "snapshot_numbers", lambda store: listings.pop(0))
    latest = layout.latest_snapshot(store)
    assert latest is not None
    assert latest.number == 2


def test_a_snapshot_replaces_what_its_cohorts_had_and_keeps_the_others(store: Place) -> None:
    layout.take_snapshot(store, [record("a1"), record("a2")], cohorts=["a"])
    layout.take_snapshot(store, [record("b1", cohort="b")], cohorts=["b"])
    number, snapshot = layout.take_snapshot(store, [record("a2"), record("a3")], cohorts=["a"])
    assert number == 3
    assert [commit.name for commit in snapshot.commits] == ["a2", "a3", "b1"]
    assert snapshot.totals.stacks == 15
    assert [commit.name for commit in layout.read_snapshot(store, 1).commits] == ["a1", "a2"]


def test_an_ingest_that_changed_nothing_takes_no_snapshot(store: Place) -> None:
    layout.take_snapshot(store, [record("a2"), record("a1")], cohorts=["a"])
    assert layout.take_snapshot(store, [record("a1"), record("a2")], cohorts=["a"]).number == 1
    assert layout.snapshot_numbers(store) == [1]


def test_snapshots_taken_at_once_lose_none_of_the_cohorts(store: Place) -> None:
    names = [f"c{number}" for number in range(8)]
    threads = [
        threading.Thread(
            target=layout.take_snapshot, args=(store, [record(name, cohort=name)]), kwargs={"cohorts": [name]}
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latest = layout.latest_snapshot(store)
    assert latest is not None
    assert [commit.name for commit in latest.snapshot.commits] == names
    assert layout.snapshot_numbers(store) == list(range(1, 9))


def test_a_newer_contract_is_refused_and_an_unknown_field_is_not(store: Place) -> None:
    layout.make(store, PREPROCESSING)
    info = json.loads((store / "store.json").read())
    (store / "store.json").write(json.dumps({**info, "later": True}).encode())
    assert layout.read_info(store) is not None
    (store / "store.json").write(json.dumps({**info, "contract": layout.CONTRACT + 1}).encode())
    with pytest.raises(InputError, match="written by a newer bfp"):
        layout.read_info(store)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"contract": 1}'])
def test_a_damaged_file_is_named(store: Place, content: bytes) -> None:
    (store / "store.json").write(content)
    with pytest.raises(InputError, match=r"store\.json: not a file that bfp wrote, or damaged") as caught:
        layout.read_info(store)
    said = str(caught.value).splitlines()
    assert len(said) == 2
    assert said[1] == "    put back a good copy"


def test_of_a_damaged_commit_and_snapshot_it_is_said_what_to_do(store: Place) -> None:
    (store / layout.commit_file("x")).write(b'{"name": "x"}')
    (store / layout.snapshot_file(1)).write(b"[]")
    with pytest.raises(InputError) as caught:
        layout.read_commit(store, "x")
    assert str(caught.value) == (
        f"{store}/commits/x.json: not a file that bfp wrote, or damaged (kind: Field required)\n"
        "    delete it and submit its ingest again, which makes it anew"
    )
    with pytest.raises(InputError) as caught:
        layout.read_snapshot(store, 1)
    assert str(caught.value) == (
        f"{store}/snapshots/1.json: not a file that bfp wrote, or damaged (no JSON object)\n"
        "    put back a good copy, or delete it and submit its ingest again, which makes it anew"
    )
