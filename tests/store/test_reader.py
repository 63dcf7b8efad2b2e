import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bfp.cohorts.sessions import Key
from bfp.errors import InputError, StorageError
from bfp.storage import place
from bfp.store import layout, schemas
from bfp.store.check import check
from bfp.store.layout import Commit
from bfp.store.reader import SliceStore, labels_of, pixels_of
from bfp.store.summary import summarise
from bfp.store.where import read_subjects, select
from bfp.store.writer import ROWS_PER_GROUP, mask_table
from tests.store import makers
from tests.store.makers import MadeSession, make_store, part_of

SESSIONS = [
    MadeSession("a", "01", stacks=20),
    MadeSession("a", "02", "v1", stacks=3, present=(True, False, True)),
    MadeSession("a", "02", "v2", stacks=16, present=(False, True, False)),
    MadeSession("b", "01", stacks=40),
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_stacks_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name, sessions=SESSIONS, segmentation="tissue")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_every_stack_of_the_index_is_where_the_index_says(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS, size_px=12))
    index, files = store.stack_index(), store.stack_files()
    assert index.num_rows == sum(file.rows for file in files) == store.totals.stacks == 79
    for row in index.to_pylist():
        table = store.read_row_group(files[row["file"]], row["row_group"])
        assert table.num_rows == files[row["file"]].row_groups[row["row_group"]] <= ROWS_PER_GROUP
        there = table.slice(row["row"], 1)
        expected = {name: value for name, value in row.items() if name not in ("file", "row_group", "row")}
        assert there.drop_columns("pixels").to_pylist() == [expected]
        filled = pixels_of(there)[0].reshape(3, -1).max(axis=1) > 0
        assert filled.tolist() == row["present"]


def test_no_row_group_holds_two_sessions(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS))
    groups = (
        store.stack_index()
        .group_by(["file", "row_group"])
        .aggregate([("subject", "count_distinct"), ("session", "count_distinct")])
    )
    assert set(groups["subject_count_distinct"].to_pylist()) == {1}
    assert set(groups["session_count_distinct"].to_pylist()) == {1}


def test_pixels_come_back_as_they_were_and_without_a_copy(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01", stacks=5)], size_px=10, seed=3))
    (file,) = store.stack_files()
    table = store.read_row_group(file, 0)
    pixels = pixels_of(table)
    assert pixels.shape == (5, 3, 10, 10)
    assert pixels.ctypes.data == table["pixels"].chunk(0).buffers()[1].address
    again = SliceStore.open(make_store(tmp_path / "t", sessions=[MadeSession("a", "01", stacks=5)], size_px=10, seed=3))
    assert np.array_equal(pixels, pixels_of(again.read_row_group(again.stack_files()[0], 0)))
    assert np.array_equal(pixels_of(table.slice(2, 2)), pixels[2:4])
    assert pixels_of(table.slice(0, 0)).shape == (0, 3, 10, 10)


def test_masks_lie_beside_their_stacks(tmp_path: Path) -> None:
    made = make_store(
        tmp_path / "s", sessions=SESSIONS, size_px=12, segmentation="tissue", classes={"grey": [1], "white": [2, 3]}
    )
    store = SliceStore.open(made)
    masks, index = store.masks("tissue"), store.stack_index()
    identity = ["cohort", "subject", "session", "slice"]
    assert masks.select(identity).to_pylist() == index.select(identity).to_pylist()
    assert set(masks["modality"].to_pylist()) == {"T1w", "T2w"}
    labels = labels_of(masks)
    assert labels.dtype == np.uint16
    assert labels.shape == (79, 12, 12)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert store.classes("tissue") == {"grey": [1], "white": [2, 3]}
    assert store.masks("lesion").num_rows == 0
    with pytest.raises(InputError, match="has no segmentation lesion; it has tissue"):
        store.classes("lesion")


def test_of_two_segmentations_only_the_one_that_is_asked_for_is_read(tmp_path: Path) -> None:
    store = place(str(tmp_path / "s"))
    make_store(tmp_path / "s", sessions=SESSIONS[:1], size_px=12)
    tables = [
        mask_table(
            Key("a", "01", ""),
            segmentation=name,
            modality="T1w",
            slices=np.arange(20),
            labels=np.full((20, 12, 12), value, np.uint16),
        )
        for value, name in enumerate(("core", "edema"), start=1)
    ]
    part = part_of(store, "masks", schemas.masks(12), tables)
    assert part is not None
    made = SliceStore.of_commits(store, [Commit(name="x", kind="shard", cohort="a", parts=[part])])
    assert part.row_groups == [16, 4, 16, 4]
    data = bytearray((store / part.file).read())
    with (store / part.file).open_parquet() as file:
        for group in (0, 1):
            labels = file.metadata.row_group(group).column(6)
            start = labels.data_page_offset
            data[start : start + labels.total_compressed_size] = bytes(labels.total_compressed_size)
    (store / part.file).write(bytes(data))  # whoever reads the labels of core fails
    assert set(np.unique(labels_of(made.masks("edema")))) == {2}


def test_a_store_is_read_as_of_its_snapshot(tmp_path: Path) -> None:
    make_store(tmp_path / "s", sessions=SESSIONS[:1])
    before = SliceStore.open(place(str(tmp_path / "s")))
    make_store(tmp_path / "s", sessions=SESSIONS)
    assert before.stack_index().num_rows == 20
    assert SliceStore.open(place(str(tmp_path / "s"))).stack_index().num_rows == 79
    assert SliceStore.open(place(str(tmp_path / "s")), snapshot=1).stack_index().num_rows == 20


def test_a_place_without_a_store_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no slice store there"):
        SliceStore.open(place(str(tmp_path / "nowhere")))
    store = make_store(tmp_path / "s", sessions=SESSIONS)
    with pytest.raises(InputError, match="has no snapshot 4; it has 1 to 1"):
        SliceStore.open(store, snapshot=4)
    (store / "snapshots" / "1.json").delete()
    with pytest.raises(InputError, match="it has 5 commits, but no snapshot"):
        SliceStore.open(store)


def test_a_store_can_be_pickled_and_read_from_several_threads(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=12))
    (file, *_) = store.stack_files()
    one = pixels_of(store.read_row_group(file, 0))
    copy = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: pixels_of(copy.read_row_group(file, 0)), range(40)):
            assert np.array_equal(read, one)


def test_labels_are_carried_as_text(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS, labels={"02": {"age": "70", "sex": "F"}}))
    assert [dict(row["labels"]) for row in store.sessions().to_pylist()] == [
        {},
        {"age": "70", "sex": "F"},
        {"age": "70", "sex": "F"},
        {},
    ]


def test_filters_hold_together(tmp_path: Path) -> None:
    index = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS)).stack_index()
    assert select(index).num_rows == 79
    assert select(index, cohorts=["a"]).num_rows == 39
    assert select(index, modalities=["T2w"]).num_rows == 20 + 16 + 40
    assert select(index, cohorts=["a"], modalities=["T2w", "FLAIR"], subjects=["sub-02"]).num_rows == 19
    assert set(select(index, exclude_subjects=["a/01", "b/01"])["subject"].to_pylist()) == {"02"}
    assert select(index, cohorts=[]).num_rows == 0


def test_a_subject_that_two_cohorts_have_is_named_with_its_cohort(tmp_path: Path) -> None:
    index = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS)).stack_index()
    for filters in ({"subjects": ["01", "02"]}, {"exclude_subjects": ["sub-01"]}):
        with pytest.raises(InputError, match="where: subject 01 of the list stands in the cohorts a and b; write a/01"):
            select(index, **filters)
    assert select(index, subjects=["a/sub-01", "02"]).num_rows == 39
    assert select(index, exclude_subjects=["b/01"]).num_rows == 39
    assert select(index, subjects=["01"], cohorts=["b"]).num_rows == 40
    assert select(index, subjects=["c/01"]).num_rows == 0


def test_a_list_of_subjects_may_have_remarks(tmp_path: Path) -> None:
    file = tmp_path / "subjects.txt"
    file.write_text("# held out\nsub-01\n\n02  # twin\n")
    assert read_subjects(place(str(file))) == ["sub-01", "02"]


def test_a_summary_counts_scans_by_cohort_and_modality(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS))
    summary = summarise(store)
    assert [(row.cohort, row.modality, row.scans, row.subjects, row.stacks) for row in summary.modalities] == [
        ("a", "FLAIR", 2, 2, 23),
        ("a", "T1w", 2, 2, 23),
        ("a", "T2w", 2, 2, 36),
        ("b", "FLAIR", 1, 1, 40),
        ("b", "T1w", 1, 1, 40),
        ("b", "T2w", 1, 1, 40),
    ]
    assert summarise(store, cohorts=["b"]).modalities == summary.modalities[3:]
    assert summary.rejected == []
    assert pc.sum(store.scans()["stacks"]).as_py() == sum(row.stacks for row in summary.modalities)


def scans_of(store: SliceStore, foreground: list[float], **others: list[float | None]) -> SliceStore:
    """One scan a subject with these figures."""
    rows = [
        {
            **Key("a", f"{number:02d}", "")._asdict(),
            "modality": "T1w",
            "stacks": 1,
            "warnings": ["odd"] if number == 0 else [],
            "foreground": value,
            **{name: values[number] for name, values in others.items()},
        }
        for number, value in enumerate(foreground)
    ]
    part = part_of(store.place, "scans", schemas.SCANS, [pa.Table.from_pylist(rows, schemas.SCANS)])
    assert part is not None
    return SliceStore.of_commits(store.place, [Commit(name="x", kind="shard", cohort="a", parts=[part])])


def test_a_summary_says_how_figures_are_spread_and_puts_the_furthest_outlier_first(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS[:1]))
    foreground = [0.4 + 0.001 * number for number in range(30)]
    foreground[7], foreground[11] = 0.1, 0.9
    shifts = [None, *[float(number) for number in range(29)]]
    summary = summarise(scans_of(store, foreground, shift_mm=shifts, bias_field_ratio=[1.2] * 30))
    spreads = {row.figure: row for row in summary.spreads}
    assert set(spreads) == {"foreground", "shift_mm", "bias_field_ratio"}
    assert (spreads["foreground"].least, spreads["foreground"].most) == pytest.approx((0.1, 0.9))
    assert spreads["foreground"].median == pytest.approx(0.4145, abs=0.002)
    assert (spreads["foreground"].bins[0], sum(spreads["foreground"].bins)) == (1, 30)
    assert (spreads["shift_mm"].scans, sum(spreads["shift_mm"].bins)) == (29, 29)
    assert [row.subject for row in summary.flagged] == ["11", "07", "00"]
    assert summary.flagged[0].warnings == ("foreground is 0.9; from 0.406 to 0.423 in half of the T1w of a",)
    assert summary.flagged[2].warnings == ("odd",)
    assert summary.modalities[0].flagged == 3


def test_what_is_worth_a_look_in_a_4d_scan_is_said_of_its_volumes_in_one_row(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS[:1]))
    rows = [
        {
            **Key("a", "01", "")._asdict(),
            "modality": "dwi",
            "volume": volume,
            "stacks": 2,
            "warnings": ["odd"] if volume == 0 else [],
            "foreground": 0.9 if volume in (5, 7) else 0.4,
        }
        for volume in range(30)
    ]
    part = part_of(store.place, "scans", schemas.SCANS, [pa.Table.from_pylist(rows, schemas.SCANS)])
    made = SliceStore.of_commits(store.place, [Commit(name="x", kind="shard", cohort="a", parts=[part])])
    summary = summarise(made)
    (flagged,) = summary.flagged
    usual = "foreground is 0.9; from 0.4 to 0.4 in half of the dwi of a"
    assert flagged.warnings == ("volume 0: odd", f"volume 5: {usual}", f"volume 7: {usual}")
    assert [(row.scans, row.stacks, row.flagged) for row in summary.modalities] == [(1, 60, 1)]


def test_no_scan_of_a_few_and_none_of_much_the_same_is_called_an_outlier(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS[:1]))
    assert len(summarise(scans_of(store, [0.4] * 10 + [0.9])).flagged) == 1
    assert len(summarise(scans_of(store, [0.4] * 30 + [0.42], qform_sform_mm=[0.0] * 30 + [0.01])).flagged) == 1


def test_a_damaged_file_of_stacks_is_named(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=SESSIONS))
    file = store.stack_files()[0]
    whole = file.place.path.read_bytes()
    file.place.path.write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageError, match=str(file.place)):
        store.stack_index()
    file.place.path.write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])  # its footer is as it was
    with pytest.raises(StorageError, match=str(file.place)):
        store.read_row_group(file, 0)


def test_a_store_of_the_first_contract_has_no_label_maps_and_reads_as_before(tmp_path: Path, monkeypatch) -> None:
    now = layout.CONTRACT
    monkeypatch.setattr(layout, "CONTRACT", 1)
    monkeypatch.setattr(
        makers, "part_of", lambda store, table, *rest: table != "label_maps" and part_of(store, table, *rest)
    )
    made = make_store(tmp_path / "s", sessions=SESSIONS, segmentation="tissue")
    monkeypatch.setattr(layout, "CONTRACT", now)
    store = SliceStore.open(made)
    assert layout.read_snapshot(made, 1).contract == 1 < now
    assert (store.label_maps().num_rows, summarise(store).segmentations) == (0, [])
    assert store.masks("tissue").num_rows == store.totals.stacks
    assert check(made).faults == []


def test_what_an_earlier_bfp_wrote_lacks_columns_and_reads_as_null(tmp_path: Path, monkeypatch) -> None:
    now = schemas.SCANS
    monkeypatch.setattr(schemas, "SCANS", now.remove(now.get_field_index("chosen")))
    make_store(tmp_path / "s", sessions=[MadeSession("a", "01")])
    monkeypatch.setattr(schemas, "SCANS", now)
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("b", "01")]))
    scans = store.scans()
    assert scans.schema == now
    assert scans["cohort"].to_pylist() == ["a"] * 3 + ["b"] * 3
    assert scans["chosen"].to_pylist() == [None] * 6
