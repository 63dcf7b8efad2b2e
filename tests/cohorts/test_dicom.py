"""DICOM series: a folder is one scan, and becomes the same stacks as its NIfTI file."""

from __future__ import annotations

import errno
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bfp.cohorts.dicom as cohorts_dicom
from bfp.cohorts import SegmentationSource, Session, Source, discover, plan_shards
from bfp.cohorts.dicom import Series, nifti_of, series_at
from bfp.cohorts.prepare import SessionStacks, prepare
from bfp.errors import Reason, StorageError, Unusable
from bfp.imaging.nifti import decode
from bfp.storage import Place, place
from tests.cohorts.makers import RECIPE, touch, write, write_dicom, write_scan

pytest.importorskip("dcm2niix")

PATTERN = r"(?P<subject>P\d+)/(?P<modality>[^/]+)/$"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.nii.gz")


@pytest.fixture
def dicom(tmp_path: Path, scan: Path) -> Path:
    """A folder of patients' folders of series' folders."""
    write_dicom(tmp_path / "dicom/P1/t1_mprage", scan, patient="DOE^JANE")
    return tmp_path / "dicom"


def found_in(dicom: Path, glob: str = "**/*.dcm", pattern: str = PATTERN) -> list[Session]:
    source = Source("c", "glob", place(f"{dicom}/{glob}"), pattern=pattern, modalities={"t1_mprage": "T1w"}, dicom=True)
    return discover(source, wanted=("T1w", "FLAIR"))


def prepared(session: Session, *, scan_timeout_s: float = 60) -> SessionStacks:
    (done,) = prepare(session, recipe=RECIPE, scan_timeout_s=scan_timeout_s)
    return done


def test_a_series_becomes_the_stacks_of_its_nifti_file(dicom: Path, scan: Path) -> None:
    (session,) = found_in(dicom)
    assert session.key == ("c", "P1", "")
    assert [(each.modality, each.file.place) for each in session.scans] == [("T1w", Place(f"{dicom}/P1/t1_mprage"))]
    (stacks,) = prepared(session).prepared
    table = write(scan.parent / "t.csv", "subject,modality,uri\nP1,T1w,scan.nii.gz\n")
    (of_nifti,) = discover(Source("c", "table", place(str(table))), wanted=("T1w", "FLAIR"))
    (expected,) = prepared(of_nifti).prepared
    np.testing.assert_array_equal(stacks.slices, expected.slices)
    np.testing.assert_allclose(stacks.position_mm, expected.position_mm, atol=1e-3)
    assert np.abs(stacks.pixels.astype(int) - expected.pixels).max() <= 1  # of rounding, where rows run the other way
    assert np.mean(stacks.pixels != expected.pixels) < 0.01


def test_the_series_of_a_session_are_told_apart_by_their_folders(dicom: Path, scan: Path) -> None:
    write_dicom(dicom / "P1/t1_mprage/again", scan, number=2)  # within the other: not of it
    write_dicom(dicom / "P1/FLAIR", scan, number=3)
    touch(dicom, "P1/notes.txt", "P1/FLAIR/.DS_Store", "odd/IM1.dcm")
    write_dicom(dicom / "P2/t1_mprage", scan, number=4)
    nobody, one, two = found_in(dicom)
    assert [(row.uri, row.reason) for row in nobody.left_out] == [
        (f"{dicom}/P1/t1_mprage/again", Reason.NAME),
        (f"{dicom}/odd", Reason.NAME),
    ]
    assert [each.modality for each in one.scans] == ["FLAIR", "T1w"]
    assert [each.modality for each in two.scans] == ["T1w"]
    assert len(prepared(one).scans) == 2


def test_a_table_names_folders_and_its_label_maps_are_nifti(dicom: Path, scan: Path) -> None:
    write_scan(dicom / "lesion.nii.gz", voxels=np.ones((34, 42, 30), np.int16))
    table = write(
        dicom / "t.csv",
        "subject,modality,uri,lesion\nP1,T1w,P1/t1_mprage/,lesion.nii.gz\nP2,T1w,P2/t1,\nP3,T1w,t.csv,\n",
    )
    lesion = SegmentationSource("lesion", "T1w", column="lesion")
    source = Source("c", "table", place(str(table)), segmentations=(lesion,), dicom=True)
    one, two, three = discover(source, wanted=("T1w",))
    (stacks,) = prepared(one).prepared
    assert (stacks.labels["lesion"] == 1).any()
    for session, uri in ((two, f"{dicom}/P2/t1"), (three, f"{dicom}/t.csv")):
        assert [(row.uri, row.reason) for row in session.left_out] == [(uri, Reason.MISSING)]


def test_files_that_change_make_another_series_and_hidden_ones_do_not(dicom: Path) -> None:
    folder = dicom / "P1/t1_mprage"
    before = series_at(Place(str(folder)))
    assert before is not None
    assert before.size == sum(file.stat().st_size for file in folder.iterdir())
    touch(folder, ".DS_Store")
    (folder / "empty").touch()
    assert series_at(Place(str(folder))) == before
    assert len(before.read_files()) == 30
    (folder / "IM0007.dcm").unlink()
    assert series_at(Place(str(folder))) != before
    with pytest.raises(StorageError, match=r"t1_mprage: not the files that were there when it was listed"):
        before.read_files()


def test_a_dangling_link_in_a_series_is_called_one(dicom: Path) -> None:
    (dicom / "P1/t1_mprage/IM0007.dcm").unlink()
    touch(dicom, "P1/t1_mprage/IM0007.dcm -> gone")
    write_dicom(dicom / "P2/t1_mprage", dicom.parent / "scan.nii.gz")
    one, _ = found_in(dicom)
    assert [row.reason for row in one.left_out] == [Reason.DANGLING]


def rejected(session: Session) -> tuple[Reason, str]:
    ((row),) = prepared(session).left_out
    return row.reason, row.detail


def test_what_is_no_series_of_one_image_is_rejected_and_told(dicom: Path, scan: Path) -> None:
    folder = dicom / "P1/t1_mprage"
    second = write_dicom(dicom.parent / "second", write_scan(dicom.parent / "b.nii.gz", shape=(20, 22, 24)), number=2)
    for file in second.iterdir():
        file.rename(folder / f"second-{file.name}")
    reason, detail = rejected(found_in(dicom)[0])
    assert reason is Reason.NOT_SERIES
    assert detail == "dcm2niix makes 2 images (image, imagea) of 54 files; give each series a folder of its own"
    for file in folder.iterdir():
        file.write_bytes(b"\x00" * 200)
    assert rejected(found_in(dicom)[0]) == (Reason.NOT_SERIES, "dcm2niix finds no image in them, of 54 files")


def test_a_series_without_its_end_gives_a_reason_and_no_crash(dicom: Path) -> None:
    for file in (dicom / "P1/t1_mprage").iterdir():
        file.write_bytes(file.read_bytes()[:-500])
    reason, _ = rejected(found_in(dicom)[0])
    assert reason is Reason.NOT_SERIES


@pytest.fixture
def scratches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders lie."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_nothing_of_a_patient_is_in_the_image_and_nothing_is_left_behind(
    dicom: Path, scratches: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = []
    convert = cohorts_dicom._convert

    def looking(series: Path, images: Path, **limits: float) -> int:
        (folder,) = scratches.iterdir()
        seen.append((stat.S_IMODE(folder.stat().st_mode), sorted(file.name for file in series.iterdir())[0]))
        return convert(series, images, **limits)

    monkeypatch.setattr(cohorts_dicom, "_convert", looking)
    series = series_at(Place(str(dicom / "P1/t1_mprage")))
    assert series is not None
    files = series.read_files()
    assert b"DOE^JANE" in files[0]
    image = nifti_of(files, timeout_s=60, max_bytes=1 << 31)
    assert b"DOE" not in image[:352]
    assert decode(image).grid.shape == (34, 42, 30)
    assert seen == [(0o700, "000000.dcm")]
    assert list(scratches.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_process_left_of_a_patient_is_removed_by_the_next_conversion(
    dicom: Path, scratches: Path, ends: Callable[[str], None]
) -> None:
    code = f"""
import tempfile, dcm2niix
tempfile.tempdir = {str(scratches)!r}
dcm2niix.bin = "/bin/cat"
from bfp.cohorts.dicom import nifti_of
import bfp.cohorts.dicom as dicom
dicom._convert = lambda *folders, **limits: print("here", flush=True) or __import__("time").sleep(60)
nifti_of([b"DOE^JANE"], timeout_s=60, max_bytes=1000)
"""
    left = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert left.stdout is not None
    assert left.stdout.readline() == b"here\n"
    left.kill()
    left.wait()
    left.stdout.close()
    assert [file.read_bytes() for file in scratches.rglob("*.dcm")] == [b"DOE^JANE"]
    prepared(found_in(dicom)[0])
    assert list(scratches.iterdir()) == []


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """In place of dcm2niix a shell that does as it is told."""
    import dcm2niix

    def end(how: str) -> None:
        program = write(tmp_path / "program", f"#!/bin/sh\n{how}\n")
        program.chmod(0o700)
        monkeypatch.setattr(dcm2niix, "bin", str(program))

    return end


def test_a_conversion_that_takes_too_long_is_ended(dicom: Path, ends: Callable[[str], None]) -> None:
    ends("exec sleep 60")
    done = prepared(found_in(dicom)[0], scan_timeout_s=0.5)
    assert [row.reason for row in done.left_out] == [Reason.TIMEOUT]
    assert done.passing


def test_no_room_to_convert_is_no_fault_of_the_scan(
    scratches: Path, ends: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = rf"{scratches}: dcm2niix cannot write the image; make room there, or name another folder by TMPDIR"
    ends("exit 7")
    with pytest.raises(OSError, match=told):
        nifti_of([b"x"], timeout_s=10, max_bytes=1 << 31)
    ends("exit 1")  # so it ends, too, where a disk is full
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=told):
        nifti_of([b"x"], timeout_s=10, max_bytes=1 << 31)


def test_files_for_which_there_is_no_room_are_no_fault_of_the_scan(
    scratches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=rf"{scratches}: No space left on device; make room there, or name another"):
        nifti_of([b"x"], timeout_s=10, max_bytes=1 << 31)
    assert list(scratches.iterdir()) == []


@pytest.mark.parametrize("killed", ["KILL", "TERM"])
def test_a_conversion_that_is_killed_is_no_fault_of_the_scan(killed: str, ends: Callable[[str], None]) -> None:
    ends(f"kill -{killed} $$")
    with pytest.raises(MemoryError, match=r"ended by signal \d+, as where memory runs out; lower compute.workers"):
        nifti_of([b"x"], timeout_s=10, max_bytes=1 << 31)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_an_image_larger_than_allowed_is_not_written(ends: Callable[[str], None]) -> None:
    ends('for each; do images=$series; series=$each; done; sleep 0.5; exec head -c 100000 /dev/zero > "$images/a.nii"')
    with pytest.raises(Unusable, match="an image of more than 50,000 bytes") as refused:
        nifti_of([b"x"], timeout_s=60, max_bytes=50_000)
    assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("how", "told"), [("exit 4", "cannot convert all of 1 file (its exit code 4)"), ("kill -SEGV $$", "(signal 11)")]
)
def test_how_dcm2niix_ended_is_told(how: str, told: str, ends: Callable[[str], None]) -> None:
    ends(how)
    with pytest.raises(Unusable, match=re.escape(told)):
        nifti_of([b"x"], timeout_s=10, max_bytes=1 << 31)


def test_a_series_that_lacks_a_slice_is_called_uneven(dicom: Path) -> None:
    (dicom / "P1/t1_mprage/IM0007.dcm").unlink()
    assert rejected(found_in(dicom)[0]) == (
        Reason.NOT_SERIES,
        "the slices do not lie evenly, of 29 files: is one missing?",
    )


@pytest.mark.parametrize(
    ("uri", "dicom_cohort", "why"),
    [
        ("P1/t1_mprage/IM0001.dcm", True, "the table names a file; with `dicom: true` it names the folder of a series"),
        ("P1", True, "no file lies in the folder itself, as those of a series do"),
        ("P1/t1_mprage", False, "the table names a folder; of DICOM series say `dicom: true`"),
        ("empty", True, "no file lies in the folder itself, as those of a series do"),
        ("P9/t1_mprage", True, "the table names it"),
    ],
)
def test_a_cell_that_names_no_scan_is_told_for_what_it_is(
    uri: str, dicom_cohort: bool, why: str, dicom: Path, scan: Path
) -> None:
    write_scan(dicom / "b.nii.gz")
    (dicom / "empty").mkdir()
    other = "P1/t1_mprage" if dicom_cohort else "b.nii.gz"
    table = write(dicom / "t.csv", f"subject,modality,uri\nA,T1w,{uri}\nB,T1w,{other}\n")
    first, _ = discover(Source("c", "table", place(str(table)), dicom=dicom_cohort), wanted=("T1w",))
    assert [(row.reason, row.detail) for row in first.left_out] == [(Reason.MISSING, why)]


def test_the_shards_of_series_are_named_after_their_converter(dicom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[str]:
        return [shard.name for shard in plan_shards(found_in(dicom), mean_sessions=4, preprocessing="p", version=1)]

    before = names()
    assert names() == before
    monkeypatch.setattr("bfp.cohorts.shards.converter", lambda: "dcm2niix 9")
    assert names() != before


def test_a_series_that_is_too_large_is_not_read(dicom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = found_in(dicom)
    (scan,) = session.scans
    huge = replace(scan, file=Series(scan.file.place, 1 << 40, scan.file.etag))
    assert rejected(replace(session, scans=(huge,)))[0] is Reason.TOO_LARGE
