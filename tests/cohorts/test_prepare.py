import os
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from bfp.cohorts import LabelMap, Scan, Session
from bfp.cohorts.prepare import SessionStacks, prepare, within
from bfp.cohorts.sessions import Key
from bfp.errors import InputError, Reason, StorageError
from bfp.imaging.nifti import MAX_FILE_BYTES
from bfp.imaging.stacks import Recipe
from bfp.storage import Entry, Place
from tests.cohorts.makers import RECIPE, entry, head, write_scan

SPACING_MM = (5.0, 5.0, 6.0)


def session_of(folder: Path, *modalities: str, label_maps: tuple[LabelMap, ...] = ()) -> Session:
    scans = [
        Scan(modality, entry(write_scan(folder / f"{modality}.nii.gz", spacing_mm=SPACING_MM, seed=seed)))
        for seed, modality in enumerate(modalities)
    ]
    return Session(Key("c", "01", ""), tuple(scans), label_maps)


def prepared(session: Session, *, recipe: Recipe = RECIPE, scan_timeout_s: float = 60) -> SessionStacks:
    return prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s)


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


def test_a_session_that_takes_too_long_is_left_out_as_a_whole(tmp_path: Path) -> None:
    fifo = tmp_path / "slow.nii"
    os.mkfifo(fifo)  # opening it to read waits for a writer, for ever
    session = session_of(tmp_path, "T1w")
    session = replace(session, scans=(*session.scans, Scan("T2w", Entry(Place(str(fifo)), 0, ""))))
    start = time.monotonic()
    done = prepared(session, scan_timeout_s=0.1)
    assert time.monotonic() - start < 2
    assert [(row.modality, row.reason) for row in done.left_out] == [("T1w", Reason.TIMEOUT), ("T2w", Reason.TIMEOUT)]
    assert done.passing
    assert done.left_out[0].detail == "not ready after 0.2 s (2 scans of 0.1 s)"
    alone = prepared(replace(session, scans=session.scans[1:]), scan_timeout_s=0.1)
    assert alone.left_out[0].detail == "not ready after 0.1 s (1 scan of 0.1 s)"
    for _ in range(2):
        with open(fifo, "wb"):  # lets a waiting thread end
            pass


def test_what_work_raises_within_its_limit_is_raised() -> None:
    def fail() -> int:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        within(5, fail)
    assert within(5, lambda: 3) == 3
