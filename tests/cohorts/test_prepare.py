import contextlib
import gc
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import bfp.cohorts.prepare as cohorts_prepare
from bfp.cohorts import LabelMap, LeftOut, Scan, Session, Source, discover
from bfp.cohorts.prepare import SessionStacks, prepare, prepare_in_turn, within
from bfp.cohorts.sessions import Key
from bfp.errors import InputError, Reason, StorageError
from bfp.imaging.nifti import MAX_FILE_BYTES, Volume, decode
from bfp.imaging.session import PreparedSession, prepare_series
from bfp.imaging.stacks import Recipe
from bfp.storage import Entry, Place
from tests.cohorts.makers import EACH, RECIPE, as_pair, entry, head, heads, write_scan, write_series

SPACING_MM = (5.0, 5.0, 6.0)


def session_of(folder: Path, *modalities: str, label_maps: tuple[LabelMap, ...] = ()) -> Session:
    scans = [
        Scan(modality, entry(write_scan(folder / f"{modality}.nii.gz", spacing_mm=SPACING_MM, seed=seed)))
        for seed, modality in enumerate(modalities)
    ]
    return Session(Key("c", "01", ""), tuple(scans), label_maps)


def prepared(session: Session, *, recipe: Recipe = RECIPE, scan_timeout_s: float = 60) -> SessionStacks:
    (done,) = prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s)
    return done


def test_a_session_becomes_stacks_of_the_modalities_it_has(tmp_path: Path) -> None:
    done = prepared(session_of(tmp_path, "T1w", "FLAIR"))
    (stacks,) = done.prepared
    assert stacks.present == (True, False, True)
    assert stacks.pixels.shape[1:] == (3, 44, 44)
    assert [(record.scan.modality, record.stacks) for record in done.scans] == [
        ("T1w", len(stacks.slices)),
        ("FLAIR", len(stacks.slices)),
    ]
    assert done.left_out == ()


def test_a_scan_that_cannot_be_used_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w", "T2w", "FLAIR")
    (tmp_path / "T1w.nii.gz").write_bytes((tmp_path / "T1w.nii.gz").read_bytes()[:2000])
    (tmp_path / "FLAIR.nii.gz").write_bytes(b"hello")
    session = replace(session, scans=tuple(replace(scan, file=entry(scan.file.place.path)) for scan in session.scans))
    done = prepared(session)
    assert [record.scan.modality for record in done.scans] == ["T2w"]
    assert {(row.modality, row.reason) for row in done.left_out} == {
        ("T1w", Reason.TRUNCATED),
        ("FLAIR", Reason.NOT_NIFTI),
    }
    assert all(row.uri.startswith(str(tmp_path)) and row.detail for row in done.left_out)


def test_a_scan_off_its_references_grid_is_left_out_by_imaging(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w")
    other = write_scan(tmp_path / "T2w.nii.gz", spacing_mm=SPACING_MM, shift_mm=(0, 2, 0), seed=5)
    done = prepared(replace(session, scans=(*session.scans, Scan("T2w", entry(other)))))
    assert [(row.modality, row.reason) for row in done.left_out] == [("T2w", Reason.OFF_GRID)]


def test_a_4d_scan_becomes_stacks_where_a_choice_is_stated(tmp_path: Path) -> None:
    series = np.stack([head((34, 42, 30), seed=seed) for seed in range(3)], axis=3)
    affine = np.diag([5.0, 5.0, 6.0, 1.0])
    nibabel.Nifti1Image(series, affine).to_filename(tmp_path / "T1w.nii.gz")
    nibabel.Nifti1Image(series[..., 0], affine).to_filename(tmp_path / "first.nii.gz")
    session = Session(Key("c", "01", ""), (Scan("T1w", entry(tmp_path / "T1w.nii.gz")),))
    alone = replace(session, scans=(Scan("T1w", entry(tmp_path / "first.nii.gz")),))

    refused = prepared(session)
    assert [row.reason for row in refused.left_out] == [Reason.NOT_3D]
    assert "`volumes: first` or `volumes: mean`" in refused.left_out[0].detail
    (first,) = prepared(session, recipe=replace(RECIPE, volumes="first")).prepared
    (mean,) = prepared(session, recipe=replace(RECIPE, volumes="mean")).prepared
    (single,) = prepared(alone).prepared
    np.testing.assert_array_equal(first.pixels, single.pixels)
    assert not np.array_equal(mean.pixels, single.pixels)


def series_of(folder: Path, series: np.ndarray, *, modality: str = "dwi") -> Scan:
    return Scan(modality, entry(write_series(folder / f"{modality}.nii.gz", series)), warnings=("doubtful",))


def test_the_volumes_of_a_4d_scan_come_one_by_one_each_as_it_would_by_itself(tmp_path: Path) -> None:
    series = heads(3)
    session = Session(Key("c", "01", ""), (series_of(tmp_path, series),))
    pieces = list(prepare(session, recipe=EACH, scan_timeout_s=60))
    assert len(pieces) == 3
    for number, piece in enumerate(pieces):
        alone = write_series(tmp_path / f"{number}.nii", series[..., number])
        expected = prepared(replace(session, scans=(Scan("dwi", entry(alone)),)), recipe=EACH)
        np.testing.assert_array_equal(piece.prepared[0].pixels, expected.prepared[0].pixels)
        (record,), (by_itself,) = piece.scans, expected.scans
        assert (record.facts.volume, by_itself.facts.volume) == (number, None)
        assert (record.facts.window, record.stacks) == (by_itself.facts.window, by_itself.stacks)
        assert record.warnings == (("doubtful",) if number == 0 else ())
        assert (piece.left_out, piece.passing) == ((), False)


def test_volumes_that_cannot_be_used_make_one_row_that_names_them(tmp_path: Path) -> None:
    series = heads(12)
    series[..., 1] = 0
    session = Session(Key("c", "01", ""), (series_of(tmp_path, series),))
    *pieces, last = prepare(session, recipe=EACH, scan_timeout_s=60)
    assert [piece.prepared[0].volume for piece in pieces] == [0, *range(2, 12)]
    assert (last.prepared, last.scans) == ((), ())
    (row,) = last.left_out
    assert row.reason is Reason.EMPTY
    assert row.detail.startswith("1 of 12 volumes (from 0: 1); the first: all 42,840 voxels are zero")

    series[..., :] = 0
    (nothing,) = prepare(
        replace(session, scans=(series_of(tmp_path, series, modality="T1w"),)), recipe=EACH, scan_timeout_s=60
    )
    assert nothing.prepared == ()
    assert nothing.left_out[0].detail.startswith("12 of 12 volumes (from 0: 0, 1, 2, 3, 4, 5, 6, 7, …); the first: all")


def test_scans_of_one_volume_and_of_several_stand_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    early = LeftOut(Key("c", "01", ""), "PDw", "x", Reason.UNWANTED, "")
    session = Session(
        Key("c", "01", ""), (series_of(tmp_path, heads(2)), *session_of(tmp_path, "T1w").scans), left_out=(early,)
    )
    pieces = list(prepare(session, recipe=EACH, scan_timeout_s=60))
    assert [(piece.prepared[0].modalities[0], piece.prepared[0].volume) for piece in pieces] == [
        ("T1w", None),
        ("dwi", 0),
        ("dwi", 1),
    ]
    assert [piece.left_out for piece in pieces] == [(early,), (), ()]
    (whole,) = prepared(session, recipe=replace(EACH, volumes="refuse")).prepared
    np.testing.assert_array_equal(pieces[0].prepared[0].pixels, whole.pixels)


def test_a_4d_scan_that_cannot_be_read_does_not_harm_the_scan_beside_it(tmp_path: Path) -> None:
    cut = series_of(tmp_path, heads(2)).file.place.path
    cut.write_bytes(cut.read_bytes()[:-4000])
    session = session_of(tmp_path, "T1w")
    session = replace(session, scans=(*session.scans, Scan("dwi", entry(cut))))
    good, bad = prepare(session, recipe=EACH, scan_timeout_s=60)
    assert [record.scan.modality for record in good.scans] == ["T1w"]
    assert [(row.modality, row.reason) for row in bad.left_out] == [("dwi", Reason.TRUNCATED)]


def test_labels_of_a_4d_scan_and_what_is_wrong_with_them_are_told_once(tmp_path: Path) -> None:
    maps = tuple(
        label_map(write_scan(tmp_path / f"{name}.nii", voxels=np.full((34, 42, 30), value)), name, drawn_on="dwi")
        for name, value in (("core", np.uint8(3)), ("odd", np.float32(0.5)))
    )
    session = Session(Key("c", "01", ""), (series_of(tmp_path, heads(2)),), maps)
    first, second = prepare(session, recipe=EACH, scan_timeout_s=60)
    assert (set(first.prepared[0].labels), set(second.prepared[0].labels)) == ({"core"}, set())
    assert [len(piece.scans[0].warnings) for piece in (first, second)] == [2, 0]
    assert first.scans[0].warnings[1].startswith("no labels of odd: ")


def test_a_4d_scan_that_takes_too_long_keeps_the_volumes_that_are_ready(tmp_path: Path, monkeypatch) -> None:
    def slow(*args: object, **kwargs: object) -> Iterator[PreparedSession]:
        for number, done in enumerate(prepare_series(*args, **kwargs)):  # type: ignore[arg-type]
            if number == 2:
                time.sleep(1.5)
            yield done

    monkeypatch.setattr(cohorts_prepare, "prepare_series", slow)
    session = Session(Key("c", "01", ""), (series_of(tmp_path, heads(4)),))
    *pieces, late = prepare(session, recipe=EACH, scan_timeout_s=0.7)
    assert [piece.prepared[0].volume for piece in pieces] == [0, 1]
    assert late.passing
    (row,) = late.left_out
    assert row.reason is Reason.TIMEOUT
    assert row.detail == "2 of 4 volumes (from number 2, counted from 0); the first: no stacks after 0.7 s"


def test_memory_grows_by_the_bytes_of_the_file_alone_however_many_volumes_there_are(tmp_path: Path) -> None:
    def peak(count: int) -> tuple[int, int]:
        """Of the file, and of what was held at most while every volume was prepared and let go: bytes."""
        file = write_series(tmp_path / f"{count}.nii", heads(count).astype(np.float32))
        session = Session(Key("c", "01", ""), (Scan("dwi", entry(file)),))
        tracemalloc.start()
        stacks = sum(len(piece.prepared[0].pixels) for piece in prepare(session, recipe=EACH, scan_timeout_s=60))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stacks > 15 * count
        return entry(file).size, most

    (small, before), (large, after) = peak(3), peak(30)
    assert after - before < 1.1 * (large - small)


def test_refused_scans_leave_nothing_in_memory(tmp_path: Path) -> None:
    blank, off = np.zeros((80, 80, 80), np.int16), head((80, 80, 80))
    file, other = write_scan(tmp_path / "blank.nii", voxels=blank), write_scan(tmp_path / "head.nii", voxels=off)
    moved = write_scan(tmp_path / "moved.nii", voxels=off, shift_mm=(3, 0, 0))  # off the grid of the other
    sessions = [
        Session(Key("c", f"{number:02d}", ""), (Scan("FLAIR", entry(moved)), Scan("T1w", entry(other))))
        if number % 2
        else Session(Key("c", f"{number:02d}", ""), (Scan("T1w", entry(file)),))
        for number in range(12)
    ]
    gc.collect()
    gc.disable()  # it runs when many objects were made, however large they are
    tracemalloc.start()
    try:
        for done in prepare_in_turn(sessions, recipe=RECIPE, scan_timeout_s=60):
            assert len(done.left_out) == 1
            del done
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < blank.nbytes


def test_a_label_map_of_several_volumes_is_not_used_whatever_the_choice_for_scans(tmp_path: Path) -> None:
    labels = np.ones((34, 42, 30, 2), np.uint8)
    nibabel.Nifti1Image(labels, np.diag([5.0, 5.0, 6.0, 1.0])).to_filename(tmp_path / "core.nii")
    session = session_of(tmp_path, "T1w", label_maps=(label_map(tmp_path / "core.nii", "core"),))
    (record,) = prepared(session, recipe=replace(RECIPE, volumes="first")).scans
    assert "no labels of core: not one 3-D volume" in record.warnings[0]


def test_a_file_larger_than_any_volume_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "T1w.nii", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    done = prepared(Session(Key("c", "01", ""), (Scan("T1w", entry(tmp_path / "T1w.nii")),)))
    assert [(row.reason, row.detail) for row in done.left_out] == [
        (Reason.TOO_LARGE, "a file of 2,147,483,649 bytes; the limit is 2,147,483,648")
    ]


def test_a_session_without_a_usable_scan_has_no_stacks(tmp_path: Path) -> None:
    file = write_scan(tmp_path / "T1w.nii", voxels=np.zeros((20, 22, 24), np.uint8))
    done = prepared(Session(Key("c", "01", ""), (Scan("T1w", entry(file)),)))
    assert (done.prepared, done.scans) == ((), ())
    assert [row.reason for row in done.left_out] == [Reason.EMPTY]


def test_a_file_that_is_gone_since_the_listing_is_left_out(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w", "FLAIR")
    (tmp_path / "FLAIR.nii.gz").unlink()
    assert [(row.modality, row.reason) for row in prepared(session).left_out] == [("FLAIR", Reason.UNREADABLE)]


def test_a_file_that_cannot_be_read_is_left_out_and_may_be_read_the_next_time(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w", "FLAIR")
    (tmp_path / "FLAIR.nii.gz").unlink()
    (tmp_path / "FLAIR.nii.gz").mkdir()
    done = prepared(session)
    assert [(row.modality, row.reason) for row in done.left_out] == [("FLAIR", Reason.UNREADABLE)]
    assert done.passing


def test_what_a_files_bytes_are_at_fault_for_does_not_pass(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w", "FLAIR")
    (tmp_path / "FLAIR.nii.gz").write_bytes(b"hello")
    scans = (session.scans[0], replace(session.scans[1], file=entry(tmp_path / "FLAIR.nii.gz")))
    done = prepared(replace(session, scans=scans))
    assert [row.reason for row in done.left_out] == [Reason.NOT_NIFTI]
    assert not done.passing


def test_a_file_that_changed_since_the_listing_is_no_rejection_but_an_error(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w")
    with open(tmp_path / "T1w.nii.gz", "ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="being written to; submit again"):
        prepared(session)


def test_a_file_that_was_replaced_by_one_of_its_length_is_an_error_too(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w")
    file = tmp_path / "T1w.nii.gz"
    other = bytearray(file.read_bytes())
    other[-100] ^= 1
    (tmp_path / "new").write_bytes(other)
    os.utime(tmp_path / "new", ns=(0, file.stat().st_mtime_ns + 1))
    (tmp_path / "new").replace(file)
    with pytest.raises(StorageError, match=r"T1w\.nii\.gz: not the file that it was when it was listed"):
        prepared(session)


def label_map(file: Path, name: str, *, drawn_on: str = "T1w") -> LabelMap:
    return LabelMap(name, drawn_on, entry(file))


def test_label_maps_ride_along_and_a_blank_one_says_that_there_is_nothing(tmp_path: Path) -> None:
    labels = np.zeros((34, 42, 30), np.uint8)
    labels[10:20, 12:30, 8:20] = 3
    some = write_scan(tmp_path / "some.nii.gz", spacing_mm=SPACING_MM, voxels=labels)
    blank = write_scan(tmp_path / "blank.nii.gz", spacing_mm=SPACING_MM, voxels=np.zeros_like(labels))
    session = session_of(tmp_path, "T1w", label_maps=(label_map(some, "core"), label_map(blank, "lesion")))
    (stacks,) = prepared(session).prepared
    assert set(np.unique(stacks.labels["core"])) == {0, 3}
    assert set(np.unique(stacks.labels["lesion"])) == {0}


def test_a_label_map_that_cannot_be_used_is_a_warning_on_its_scan(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    maps = (label_map(tmp_path / "broken.nii.gz", "core", drawn_on="FLAIR"),)
    done = prepared(session_of(tmp_path, "T1w", "FLAIR", label_maps=maps))
    (stacks,) = done.prepared
    assert stacks.labels == {}
    warnings = {record.scan.modality: record.warnings for record in done.scans}
    assert warnings["T1w"] == ()
    assert [text.partition(":")[0] for text in warnings["FLAIR"]] == ["no labels of core"]
    assert "not a NIfTI file" in warnings["FLAIR"][0]


def test_a_label_map_that_is_not_there_is_a_warning_that_stays(tmp_path: Path) -> None:
    (tmp_path / "link.nii").symlink_to("gone")
    maps = (
        label_map(tmp_path / "link.nii", "core"),
        LabelMap("edema", "T1w", Entry(Place(f"{tmp_path}/none.nii"), -1, "")),
    )
    done = prepared(session_of(tmp_path, "T1w", label_maps=maps))
    core, edema = done.scans[0].warnings
    assert core.startswith("no labels of core: dangling link (a DataLad file that was never fetched?)")
    assert edema == "no labels of edema: file not found: nothing is where its .nii should be"
    assert not done.passing


def test_a_label_map_that_cannot_be_read_may_be_read_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "core.nii").mkdir()
    maps = (LabelMap("core", "T1w", Entry(Place(f"{tmp_path}/core.nii"), 100, "")),)
    done = prepared(session_of(tmp_path, "T1w", label_maps=maps))
    assert "no labels of core: file cannot be read" in done.scans[0].warnings[0]
    assert done.passing
    without = prepared(
        session_of(tmp_path, "T1w", label_maps=(replace(maps[0], name="brain"),)), recipe=replace(RECIPE, brain="given")
    )
    (row,) = without.left_out
    assert (row.reason, row.detail.partition(":")[0]) == (Reason.NO_BRAIN_MASK, "file cannot be read")
    assert without.passing


def test_a_brain_mask_is_the_segmentation_of_that_name_and_what_of_it_is_inside(tmp_path: Path) -> None:
    mask = np.zeros((34, 42, 30), np.uint8)
    mask[4:30, 5:37, 3:27] = 2  # a skull
    mask[8:26, 10:32, 6:24] = 1
    file = write_scan(tmp_path / "mask.nii", spacing_mm=SPACING_MM, voxels=mask)
    brain = replace(label_map(file, "brain"), inside=(1,))
    recipe = replace(RECIPE, brain="given")
    done = prepared(session_of(tmp_path, "T1w", label_maps=(brain,)), recipe=recipe)
    (stacks,) = done.prepared
    assert stacks.labels == {}
    at = np.stack(np.meshgrid(np.arange(44), np.arange(44), stacks.slices, indexing="ij"), axis=-1)
    voxels = np.rint(stacks.facts[0].native.voxels(stacks.working.ras(at))).astype(int)
    within = ((voxels >= 0) & (voxels < mask.shape)).all(axis=-1)
    is_brain = np.zeros(within.shape, bool)
    is_brain[within] = mask[tuple(voxels[within].T)] == 1
    shown = stacks.pixels[:, 0].transpose(2, 1, 0)[:, ::-1] > 0  # (x, y, n)
    assert not shown[~is_brain].any()
    assert shown[is_brain].mean() > 0.9  # what is darker than the window is black
    assert stacks.facts[0].brain_ml == pytest.approx(np.count_nonzero(mask == 1) * 0.15)
    (record,) = done.label_maps
    assert (record.label_map, record.unusable) == (brain, None)
    without = prepared(session_of(tmp_path / "other", "T1w"), recipe=recipe)
    assert [row.reason for row in without.left_out] == [Reason.NO_BRAIN_MASK]


def test_what_became_of_each_label_map_is_recorded_and_told_of_its_scan(tmp_path: Path) -> None:
    some = np.zeros((34, 42, 30), np.uint8)
    some[10:20, 12:30, 8:20] = 3
    file = write_scan(tmp_path / "some.nii.gz", spacing_mm=SPACING_MM, voxels=some)
    maps = (
        replace(label_map(file, "core"), warnings=("its name says run-1, which its scan's denies",)),
        label_map(write_scan(tmp_path / "far.nii", spacing_mm=SPACING_MM, shift_mm=(0, 9, 0), voxels=some), "far"),
        label_map(file, "lost", drawn_on="FLAIR"),
        replace(label_map(file, "mni"), refused="by its name it lies in space-MNI, the T1w in its own space"),
    )
    done = prepared(session_of(tmp_path, "T1w", label_maps=maps))
    assert set(done.prepared[0].labels) == {"core"}
    fate = {record.label_map.name: record.unusable and record.unusable.reason for record in done.label_maps}
    assert fate == {"core": None, "far": Reason.UNPLACED, "lost": Reason.UNPLACED, "mni": Reason.UNPLACED}
    assert [text.partition(":")[0] for text in done.scans[0].warnings] == [
        "labels of core", "no labels of far", "no labels of lost", "no labels of mni"
    ]  # fmt: skip
    assert "corners lie up to 9 mm from those" in done.scans[0].warnings[1]
    (blank,) = (label_map(write_scan(tmp_path / "blank.nii", spacing_mm=SPACING_MM, voxels=some * 0), "brain"),)
    without = prepared(session_of(tmp_path, "T1w", label_maps=(blank,)), recipe=replace(RECIPE, brain="given"))
    assert [(row.reason, row.detail) for row in without.left_out] == [
        (Reason.NO_BRAIN_MASK, "the mask is blank: every voxel is 0")
    ]
    assert str(without.label_maps[0].unusable) == "no brain mask: the mask is blank: every voxel is 0"


def runs(root: Path, *, broken: tuple[int, ...]) -> Session:
    """A session with three runs of T1w and a FLAIR, of which some runs are cut short."""
    for run in (1, 2, 3):
        file = write_scan(root / f"sub-01/anat/sub-01_run-{run}_T1w.nii.gz", spacing_mm=SPACING_MM, seed=run)
        if run in broken:
            file.write_bytes(file.read_bytes()[:2000])
    write_scan(root / "sub-01/anat/sub-01_FLAIR.nii.gz", spacing_mm=SPACING_MM, seed=9)
    source = Source("c", "bids", Place(str(root)))
    (session,) = discover(source, wanted=("T1w", "T2w", "FLAIR"))
    return session


def left_out(done: SessionStacks) -> dict[str, Reason]:
    return {row.uri.rpartition("_run-")[2]: row.reason for row in done.left_out}


def test_a_scan_that_cannot_be_used_gives_its_place_to_the_next_of_its_duplicates(tmp_path: Path) -> None:
    done = prepared(runs(tmp_path / "one", broken=(1,)))
    taken = {record.scan.modality: record.scan for record in done.scans}
    assert taken["T1w"].file.place.name == "sub-01_run-2_T1w.nii.gz"
    assert taken["T1w"].chosen.startswith("of 3: no contrast agent")
    assert taken["T1w"].chosen.endswith("; one before it was refused")
    assert taken["FLAIR"].chosen == ""
    assert left_out(done) == {"1_T1w.nii.gz": Reason.TRUNCATED, "3_T1w.nii.gz": Reason.DUPLICATE}

    done = prepared(runs(tmp_path / "two", broken=(1, 2)))
    assert {record.scan.file.place.name for record in done.scans} == {"sub-01_FLAIR.nii.gz", "sub-01_run-3_T1w.nii.gz"}
    assert left_out(done) == {"1_T1w.nii.gz": Reason.TRUNCATED, "2_T1w.nii.gz": Reason.TRUNCATED}

    done = prepared(runs(tmp_path / "all", broken=(1, 2, 3)))
    assert [record.scan.modality for record in done.scans] == ["FLAIR"]
    assert set(left_out(done).values()) == {Reason.TRUNCATED}
    assert not done.passing


def test_a_scan_that_imaging_refuses_gives_its_place_too(tmp_path: Path) -> None:
    runs(tmp_path / "moved", broken=())
    moved = write_scan(
        tmp_path / "moved/sub-01/anat/sub-01_run-1_FLAIR.nii.gz", spacing_mm=SPACING_MM, shift_mm=(0, 2, 0)
    )
    (tmp_path / "moved/sub-01/anat/sub-01_FLAIR.nii.gz").rename(moved.with_name("sub-01_run-2_FLAIR.nii.gz"))
    (session,) = discover(Source("c", "bids", Place(f"{tmp_path}/moved")), wanted=("T1w", "T2w", "FLAIR"))
    done = prepared(session)
    assert [record.scan.file.place.name for record in done.scans][1] == "sub-01_run-2_FLAIR.nii.gz"
    assert [row.reason for row in done.left_out if row.modality == "FLAIR"] == [Reason.OFF_GRID]


def test_a_scan_that_may_be_read_the_next_time_keeps_its_place(tmp_path: Path) -> None:
    session = runs(tmp_path, broken=())
    (tmp_path / "sub-01/anat/sub-01_run-1_T1w.nii.gz").unlink()
    done = prepared(session)
    assert [record.scan.modality for record in done.scans] == ["FLAIR"]
    assert left_out(done)["1_T1w.nii.gz"] is Reason.UNREADABLE
    assert done.passing


def test_a_later_modality_s_duplicate_that_is_taken_is_not_left_out_as_well(tmp_path: Path) -> None:
    session = session_of(tmp_path, "T1w", "dwi")
    t1w, dwi = session.scans
    (tmp_path / "dwi.nii.gz").write_bytes(b"hello")
    spare = Scan("dwi", entry(write_scan(tmp_path / "second.nii.gz", spacing_mm=SPACING_MM)))
    unwanted = LeftOut(session.key, "T2w", "t2w.nii", Reason.UNWANTED, "")
    duplicate = LeftOut(session.key, "dwi", spare.file.place.uri, Reason.DUPLICATE, "")
    session = replace(
        session,
        scans=(t1w, replace(dwi, file=entry(tmp_path / "dwi.nii.gz"))),
        left_out=(duplicate, unwanted),
        spares=(spare,),
    )
    pieces = list(prepare(session, recipe=EACH, scan_timeout_s=60))
    assert [record.scan.file.place.name for piece in pieces for record in piece.scans] == [
        "T1w.nii.gz",
        "second.nii.gz",
    ]
    left_out = [(row.modality, row.reason) for piece in pieces for row in piece.left_out]
    assert left_out == [("T2w", Reason.UNWANTED), ("dwi", Reason.NOT_NIFTI)]


@pytest.mark.parametrize("recipe", [RECIPE, EACH], ids=["together", "each"])
def test_every_file_is_read_once_and_a_map_that_is_refused_by_name_never(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = []
    for number in range(6):
        folder = tmp_path / f"{number}"
        drawn = write_scan(folder / "core.nii", spacing_mm=SPACING_MM, voxels=np.ones((34, 42, 30), np.uint8))
        maps = (replace(label_map(drawn, "far"), refused="of another space"), label_map(drawn, "core"))
        sessions.append(session_of(folder, "T1w", label_maps=maps))
    read: list[str] = []
    whole = Entry.read
    monkeypatch.setattr(Entry, "read", lambda file: read.append(file.place.uri) or whole(file))
    list(prepare_in_turn(sessions, recipe=recipe, scan_timeout_s=60))
    assert sorted(read) == sorted(f"{tmp_path}/{n}/{name}" for n in range(6) for name in ("T1w.nii.gz", "core.nii"))


def test_labels_that_may_be_another_runs_are_doubted(tmp_path: Path) -> None:
    labels = write_scan(tmp_path / "m.nii", spacing_mm=SPACING_MM, voxels=np.ones((34, 42, 30), np.uint8))
    session = replace(runs(tmp_path, broken=(1,)), label_maps=(label_map(labels, "core"),))
    warnings = {record.scan.modality: record.warnings for record in prepared(session).scans}
    assert warnings["T1w"] == ("core: perhaps drawn on the scan that was refused in favour of this one",)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Entry]:
    """A file that whoever reads it waits for, until the test is over."""
    fifo = tmp_path / "slow.nii"
    os.mkfifo(fifo)  # opening it to read waits for a writer, for ever
    yield Entry(Place(str(fifo)), 0, "")
    with contextlib.suppress(OSError):  # nobody waits
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # lets all that wait end


def test_a_scan_that_hangs_is_left_out_and_its_siblings_stay(tmp_path: Path, hanging: Entry) -> None:
    session = session_of(tmp_path, "T1w", "FLAIR")
    session = replace(session, scans=(session.scans[0], Scan("T2w", hanging), session.scans[1]))
    start = time.monotonic()
    done = prepared(session, scan_timeout_s=1)
    assert time.monotonic() - start < 5
    assert [(row.modality, row.reason, row.detail) for row in done.left_out] == [
        ("T2w", Reason.TIMEOUT, "not read and decoded after 1 s")
    ]
    assert [record.scan.modality for record in done.scans] == ["T1w", "FLAIR"]
    assert done.passing


def test_a_label_map_that_hangs_is_a_warning_and_may_be_there_the_next_time(tmp_path: Path, hanging: Entry) -> None:
    done = prepared(session_of(tmp_path, "T1w", label_maps=(LabelMap("core", "T1w", hanging),)), scan_timeout_s=1)
    (record,) = done.scans
    assert record.warnings == ("no labels of core: took longer than the limit: not read and decoded after 1 s",)
    assert done.passing


def test_scans_that_take_too_long_together_are_left_out_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr("bfp.cohorts.prepare.prepare_session", lambda *volumes, **how: over.wait(20))
    session = session_of(tmp_path, "T1w", "FLAIR")
    (tmp_path / "FLAIR.nii.gz").unlink()
    done = prepared(session, scan_timeout_s=0.5)
    over.set()
    assert [(row.modality, row.reason, row.detail) for row in done.left_out] == [
        ("FLAIR", Reason.UNREADABLE, "it was listed, and is gone"),
        ("T1w", Reason.TIMEOUT, "no stacks after 0.5 s"),
    ]
    assert done.passing


def test_the_next_session_is_read_while_one_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other here, and would for ever if they took turns."""
    first, second = (session_of(tmp_path / name, "T1w") for name in ("first", "second"))
    reads, is_decoding, is_reading = Place._read, threading.Event(), threading.Event()
    overlaps = []

    def read(file: Place) -> tuple[bytes, str]:
        if file == second.scans[0].file.place:
            is_reading.set()
            overlaps.append(is_decoding.wait(10))
        return reads(file)

    def decoded(data: bytes, **how: Any) -> Volume:
        is_decoding.set()
        overlaps.append(is_reading.wait(10))
        return decode(data, **how)

    monkeypatch.setattr(Place, "_read", read)
    monkeypatch.setattr("bfp.cohorts.prepare.decode", decoded)
    done = list(prepare_in_turn([first, second], recipe=RECIPE, scan_timeout_s=60))
    assert [len(each.scans) for each in done] == [1, 1]
    assert overlaps == [True, True, True]


def test_sessions_in_turn_give_what_they_give_alone(tmp_path: Path, hanging: Entry) -> None:
    """Whatever the files: a broken one, a gone one, a hanging one and a pair among them."""
    sessions = [session_of(tmp_path / str(number), "T1w", "T2w", "FLAIR") for number in range(4)]
    (tmp_path / "0/T2w.nii.gz").unlink()
    (tmp_path / "1/FLAIR.nii.gz").write_bytes(b"hello")
    sessions[1] = replace(
        sessions[1], scans=(*sessions[1].scans[:2], Scan("FLAIR", entry(tmp_path / "1/FLAIR.nii.gz")))
    )
    sessions[2] = replace(sessions[2], scans=(Scan("T1w", hanging), *sessions[2].scans[1:]))
    header = as_pair(tmp_path / "3/T1w.nii.gz")
    pair = Scan("T1w", entry(header), voxels=entry(header.with_suffix(".img")))
    sessions[3] = replace(sessions[3], scans=(pair, *sessions[3].scans[1:]))
    together = prepare_in_turn(sessions, recipe=RECIPE, scan_timeout_s=2)
    for session, done in zip(sessions, together, strict=True):
        alone = prepared(session, scan_timeout_s=2)
        assert done.session == session
        assert (done.left_out, done.passing) == (alone.left_out, alone.passing)
        for here, there in zip(done.prepared, alone.prepared, strict=True):
            np.testing.assert_array_equal(here.pixels, there.pixels)


def test_what_work_raises_within_its_limit_is_raised() -> None:
    def fail() -> int:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        within(5, fail)
    assert within(5, lambda: 3) == 3
