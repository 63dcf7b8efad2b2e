from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bfp.batches.plan import units_of
from bfp.cli.stores import contents_of
from bfp.cohorts import LabelMap, LeftOut, Scan, Session
from bfp.cohorts.prepare import SessionStacks, prepare
from bfp.cohorts.sessions import Key
from bfp.errors import Reason
from bfp.imaging.stacks import Recipe
from bfp.pretraining.labelled import labelled_stacks
from bfp.storage import Entry, Place, place
from bfp.store import layout, schemas, shards
from bfp.store.check import check
from bfp.store.layout import SegmentationInfo
from bfp.store.prune import survey
from bfp.store.reader import SliceStore, labels_of, pixels_of
from bfp.store.shards import commit_shard, session_row
from bfp.store.summary import summarise
from bfp.store.writer import commit_sessions
from tests.cohorts import makers
from tests.cohorts.makers import EACH, entry, heads, write_scan, write_series
from tests.store.makers import part_of

PREPROCESSING = {"size": 44, "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]}}
RECIPE = replace(makers.RECIPE, register="header")


def sessions_at(folder: Path) -> list[Session]:
    """Two sessions: one of two scans, label map and labels; one of which nothing can be used."""
    labels = np.zeros((34, 42, 30), np.uint16)
    labels[12:20, 12:30, 8:20] = 700
    one = Session(
        Key("c", "01", "a"),
        (
            Scan("FLAIR", entry(write_scan(folder / "01_FLAIR.nii.gz", seed=2))),
            Scan("T2w", entry(write_scan(folder / "01_T2w.nii.gz", seed=1)), "of 2: the first", ("doubtful",)),
        ),
        (LabelMap("core", "T2w", entry(write_scan(folder / "01_core.nii.gz", voxels=labels))),),
        {"age": "61"},
        (LeftOut(Key("c", "01", "a"), "PDw", "/x/01_PDw.nii", Reason.UNWANTED, "PDw; asked for: T1w"),),
    )
    (folder / "02_T1w.nii").write_bytes(b"no")
    return [one, Session(Key("c", "02", ""), (Scan("T1w", entry(folder / "02_T1w.nii")),))]


def pieces_of(sessions: list[Session], recipe: Recipe) -> Iterator[SessionStacks]:
    return (piece for session in sessions for piece in prepare(session, recipe=recipe, scan_timeout_s=60))


def made(sessions: list[Session], store: Place, *, recipe: Recipe = RECIPE) -> SliceStore:
    layout.make(store, PREPROCESSING)
    commits = [
        commit_shard(
            store,
            pieces_of(sessions, recipe),
            name="first",
            cohort="c",
            size_px=44,
            version=1,
        ),
        commit_sessions(
            store,
            [session_row(session) for session in sessions],
            cohort="c",
            segmentations={"core": SegmentationInfo(drawn_on="T2w", classes={"core": [700]})},
        ),
    ]
    layout.take_snapshot(store, commits, cohorts=["c"])
    return SliceStore.open(store)


def test_a_shard_holds_the_stacks_masks_scans_and_rejections_of_its_sessions(tmp_path: Path) -> None:
    store = made(sessions_at(tmp_path), place(str(tmp_path / "store")))
    index = store.stack_index()
    first = index.slice(0, 1).to_pylist()[0]
    assert (first["cohort"], first["subject"], first["session"]) == ("c", "01", "a")
    assert (first["modalities"], first["present"]) == (["T1w", "T2w", "FLAIR"], [False, True, True])
    assert index["slice"].to_pylist() == sorted(index["slice"].to_pylist())
    assert (index["height"][0].as_py(), index["height"][-1].as_py()) == (0, 1)
    (file,) = store.stack_files()
    pixels = np.concatenate([pixels_of(store.read_row_group(file, group)) for group in range(len(file.row_groups))])
    assert pixels[:, 1].any()
    assert not pixels[:, 0].any()

    masks = store.masks("core")
    assert set(masks["modality"].to_pylist()) == {"T2w"}
    assert set(np.unique(labels_of(masks))) == {0, 700}
    assert store.classes("core") == {"core": [700]}

    assert [(row["reason"], row["subject"], row["modality"]) for row in store.rejected().to_pylist()] == [
        ("modality not asked for", "01", "PDw"),
        ("not a NIfTI file", "02", "T1w"),
    ]
    assert [(row["subject"], row["modalities"], dict(row["labels"])) for row in store.sessions().to_pylist()] == [
        ("01", ["FLAIR", "T2w"], {"age": "61"}),
        ("02", ["T1w"], {}),
    ]


def test_a_scans_row_says_where_it_came_from_and_what_was_done_to_it(tmp_path: Path) -> None:
    store = made(sessions_at(tmp_path), place(str(tmp_path / "store")))
    t2w, flair = store.scans().to_pylist()
    assert (t2w["modality"], flair["modality"]) == ("T2w", "FLAIR")
    assert t2w["uri"] == str(tmp_path / "01_T2w.nii.gz")
    assert t2w["size_bytes"] == (tmp_path / "01_T2w.nii.gz").stat().st_size
    assert t2w["shape"] == [34, 42, 30]
    assert np.allclose(t2w["spacing_mm"], (5.0, 4.5, 6.0))
    assert t2w["axes"] == "RAS"
    assert np.allclose(np.reshape(t2w["ras_from_native"], (4, 4))[:3, 3], (-82.5, -92.25, -87))
    assert t2w["working_shape"][:2] == [44, 44]
    assert np.array_equal(np.reshape(t2w["reference_ras_from_scan_ras"], (4, 4)), np.eye(4))
    assert t2w["window_low"] < t2w["window_high"]
    assert (t2w["shift_mm"], t2w["register"], flair["register"]) == (None, "none", "header")
    assert flair["shift_mm"] < 5
    assert flair["similarity_before"] > 1
    assert t2w["stacks"] == flair["stacks"] == store.totals.stacks
    assert (t2w["chosen"], t2w["warnings"][0], flair["chosen"]) == ("of 2: the first", "doubtful", "")


def test_a_scans_row_says_how_strong_its_bias_field_was(tmp_path: Path) -> None:
    sessions = sessions_at(tmp_path)
    for how, known in (("none", [False, False]), ("n4", [True, True])):
        store = made(sessions, place(str(tmp_path / how)), recipe=replace(RECIPE, bias_field=how))
        ratios = store.scans()["bias_field_ratio"].to_pylist()
        assert [ratio is not None and ratio > 1 for ratio in ratios] == known


def test_a_shard_made_twice_is_the_same_to_the_byte(tmp_path: Path) -> None:
    sessions = sessions_at(tmp_path)
    for name in ("one", "two"):
        made(sessions, place(str(tmp_path / name)))
    one, two = (
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 10


def test_each_label_map_has_a_row_that_says_where_it_came_from_and_what_became_of_it(tmp_path: Path) -> None:
    one, two = sessions_at(tmp_path)
    (core,) = one.label_maps
    maps = (
        replace(core, chosen="of 2: the first", warnings=("its name says run-1",)),
        replace(core, name="gone", file=Entry(Place(f"{tmp_path}/gone\udcff.nii"), -1, "")),
        replace(core, name="other", refused="by its name it lies in space-MNI, the T2w in its own space"),
    )
    store = made([replace(one, label_maps=maps), two], place(str(tmp_path / "store")))
    used, gone, other = store.label_maps().to_pylist()
    assert (used["subject"], used["session"], used["segmentation"], used["drawn_on"]) == ("01", "a", "core", "T2w")
    assert (used["uri"], used["size_bytes"]) == (str(tmp_path / "01_core.nii.gz"), core.file.size)
    assert (used["etag"], used["chosen"]) == (core.file.etag, "of 2: the first")
    assert (used["reason"], used["detail"], used["warnings"]) == (None, None, ["its name says run-1"])
    assert (gone["uri"], gone["reason"]) == (f"{tmp_path}/gone\\udcff.nii", "file not found")
    assert other["detail"] == "by its name it lies in space-MNI, the T2w in its own space"
    assert other["reason"] == "cannot be laid on the scan that it was drawn on"
    (row,) = (each for each in summarise(store).segmentations if each.segmentation == "other")
    assert (row.maps, row.used, row.unused) == (1, 0, (f"{other['reason']}: 1",))
    assert [each[-4:-1] for each in summarise(store).segmentations if each.segmentation == "core"] == [(1, 1, 1)]
    assert check(store.place).faults == []


def test_labels_whose_map_is_not_said_to_be_used_are_a_fault(tmp_path: Path, monkeypatch) -> None:
    truly = shards._map_row
    monkeypatch.setattr(shards, "_map_row", lambda key, record: {**truly(key, record), "reason": "lost"})
    store = made(sessions_at(tmp_path), place(str(tmp_path / "store")))
    assert [fault.found for fault in check(store.place).faults] == [
        "labels of 01 a core, whose row in `label_maps` is not of one that was used"
    ]


def test_a_shard_with_an_unreadable_file_does_not_take_the_shards_name(tmp_path: Path) -> None:
    sessions, store = sessions_at(tmp_path), place(str(tmp_path / "store"))
    flair, aside = tmp_path / "01_FLAIR.nii.gz", tmp_path / "aside"

    def committed() -> str:
        return commit_shard(store, pieces_of(sessions, RECIPE), name="first", cohort="c", size_px=44, version=1).name

    flair.rename(aside)
    flair.mkdir()
    first = committed()
    assert first != "first"
    assert committed() == first
    assert "first" not in layout.committed(store)
    flair.rmdir()
    aside.rename(flair)
    assert committed() == "first"


def series_at(folder: Path) -> list[Session]:
    """Two sessions: a scan of three volumes with a label map, beside a 3-D one; a scan of two volumes, one blank."""
    labels = np.zeros((34, 42, 30), np.uint16)
    labels[12:20, 12:30, 8:20] = 7
    blank = heads(2)
    blank[..., 1] = 0
    return [
        Session(
            Key("c", "01", ""),
            (
                Scan("T1w", entry(write_scan(folder / "01_T1w.nii"))),
                Scan("dwi", entry(write_series(folder / "01_dwi.nii.gz", heads(3)))),
            ),
            (LabelMap("core", "dwi", entry(write_scan(folder / "01_core.nii", voxels=labels))),),
        ),
        Session(Key("c", "02", ""), (Scan("dwi", entry(write_series(folder / "02_dwi.nii", blank))),)),
    ]


def each_made(folder: Path) -> SliceStore:
    told = {"size": 44, "stacks": {"form": "neighbours", "modalities": ["T1w", "dwi"]}, "volumes": "each"}
    sessions, store = series_at(folder), place(str(folder / "store"))
    layout.make(store, told)
    meaning = {"core": SegmentationInfo(drawn_on="dwi", classes={"core": [7]})}
    commits = [
        commit_shard(store, pieces_of(sessions, EACH), name="first", cohort="c", size_px=44, version=1),
        commit_sessions(store, [session_row(each) for each in sessions], cohort="c", segmentations=meaning),
    ]
    layout.take_snapshot(store, commits, cohorts=["c"])
    return SliceStore.open(store)


def all_pixels(store: SliceStore) -> np.ndarray:
    return np.concatenate(
        [
            pixels_of(store.read_row_group(file, group))
            for file in store.stack_files()
            for group in range(len(file.row_groups))
        ]
    )


def test_stacks_say_which_volume_they_show_and_each_has_a_row_of_its_own_in_scans(tmp_path: Path) -> None:
    store = each_made(tmp_path)
    index, scans = store.stack_index().to_pylist(), store.scans().to_pylist()
    sets = [(row["subject"], row["modalities"][0], row["volume"]) for row in index]
    assert list(dict.fromkeys(sets)) == [
        ("01", "T1w", None),
        ("01", "dwi", 0),
        ("01", "dwi", 1),
        ("01", "dwi", 2),
        ("02", "dwi", 0),
    ]
    assert [(row["subject"], row["modality"], row["volume"]) for row in scans] == list(dict.fromkeys(sets))
    assert [row["stacks"] for row in scans] == [sets.count(each) for each in dict.fromkeys(sets)]
    highs = [row["window_high"] for row in scans if row["subject"] == "01" and row["modality"] == "dwi"]
    assert highs == sorted(set(highs))
    (row,) = store.rejected().to_pylist()
    assert (row["subject"], row["modality"], row["reason"]) == ("02", "dwi", str(Reason.EMPTY))
    groups = {(row["file"], row["row_group"], row["modalities"][0], row["volume"]) for row in index}
    assert len(groups) == sum(len(file.row_groups) for file in store.stack_files())  # none holds two volumes


def test_labels_of_a_4d_scan_are_those_of_all_its_volumes(tmp_path: Path) -> None:
    store = each_made(tmp_path)
    found = labelled_stacks(store.stack_index(), store.mask_index("core"))
    slices = sorted(store.mask_index("core")["slice"].to_pylist())
    for volume in (0, 1, 2):
        own = found.stacks.filter(pc.equal(found.stacks["volume"], volume))
        assert own["slice"].to_pylist() == slices
    assert found.stacks.num_rows == 3 * len(slices)


def test_a_store_of_volumes_is_whole_counts_scans_and_shows_each_volume(tmp_path: Path) -> None:
    store = each_made(tmp_path)
    assert check(store.place).faults == []
    summary = summarise(store)
    assert [(row.modality, row.scans, row.subjects) for row in summary.modalities] == [("T1w", 1, 1), ("dwi", 2, 2)]
    assert sum(row.stacks for row in summary.modalities) == store.totals.stacks
    contents = contents_of(store.place, pictures=place(str(tmp_path / "pictures")))
    assert (contents.totals["scans"], store.totals.scans) == (3, 5)
    assert contents.pictures[0].exists()


def test_a_stack_of_a_volume_that_is_there_twice_or_not_at_all_is_a_fault(tmp_path: Path) -> None:
    store = each_made(tmp_path)
    latest = layout.latest_snapshot(store.place)
    assert latest is not None
    shard = next(record for record in latest.snapshot.commits if record.kind == "shard")
    scans = store.scans()
    counts = scans["stacks"].to_pylist()
    counts[2], counts[3] = counts[2] + 1, counts[3] - 1  # of volumes 1 and 2: their sum is as it was
    changed = scans.set_column(scans.schema.get_field_index("stacks"), "stacks", pa.array(counts, pa.int32()))
    part = part_of(store.place, "scans", schemas.SCANS, [changed])
    parts = [part if each.table == "scans" else each for each in shard.parts]
    layout.take_snapshot(
        store.place,
        [
            layout.commit(store.place, shard.model_copy(update={"name": "changed", "parts": parts})),
            *(record for record in latest.snapshot.commits if record.kind == "sessions"),
        ],
        cohorts=["c"],
    )
    found = [fault.found for fault in check(store.place).faults]
    assert len(found) == 2
    assert "stacks of 01 dwi volume 1; its row in `scans` says" in found[0]


def test_a_shard_is_written_in_parts_that_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = each_made(tmp_path / "whole")
    monkeypatch.setattr(shards, "LONGEST_PART_BYTES", 40_000)
    parts = each_made(tmp_path / "parts")
    assert (len(whole.stack_files()), len(parts.stack_files()) > 2) == (1, True)
    assert check(parts.place).faults == []
    columns = [name for name in whole.stack_index().column_names if name not in ("file", "row_group")]
    assert parts.stack_index().select(columns).equals(whole.stack_index().select(columns))
    np.testing.assert_array_equal(all_pixels(parts), all_pixels(whole))
    units = [units_of([store.stack_index()]) for store in (whole, parts)]
    np.testing.assert_array_equal(units[0].rows, units[1].rows)
    assert survey(parts.place, keep_snapshots=1, older_than_s=0).waste == []
