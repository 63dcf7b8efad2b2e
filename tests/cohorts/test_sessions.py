from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bfp.cohorts import Session, Source, discover, plan_shards
from bfp.cohorts.sessions import absent
from bfp.errors import Reason
from bfp.storage import Entry, Place
from tests.cohorts.makers import touch, write

CLOSED = "no permission to look at it; is its folder, or that of what it links to, closed (no x)?"
BIDS = ("sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_FLAIR.nii", "sub-02/anat/sub-02_T1w.nii")


def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = errno.EACCES) -> None:
    """Of what lies in the folder no more than the names can be seen: without x on it by all but root, hence so."""

    def refusing(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def refused(path: str | Path, *arguments: object, **more: object) -> os.stat_result:
            if isinstance(path, str | Path) and str(path).startswith(f"{folder}/"):
                raise OSError(code, os.strerror(code), str(path))
            return look(path, *arguments, **more)

        return refused

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def found(kind: str, at: str, *, dicom: bool = False) -> list[Session]:
    pattern = r"(?P<subject>S\d)/(?P<modality>[^/]+)/" if kind == "glob" else ""
    return discover(Source("c", kind, Place(at), pattern=pattern, dicom=dicom), wanted=("T1w", "FLAIR"))  # type: ignore[arg-type]


def told(sessions: list[Session]) -> list[tuple[str, int, list[tuple[Reason, str]]]]:
    """Of each session its subject, how many scans it has, and why others are left out."""
    return [
        (each.key.subject, len(each.scans), [(row.reason, row.detail) for row in each.left_out]) for each in sessions
    ]


def test_a_folder_that_nobody_may_look_into_costs_its_scans_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *BIDS)
    refuse(tmp_path / "sub-01/anat", monkeypatch)
    assert told(found("bids", str(tmp_path))) == [("01", 0, [(Reason.UNREADABLE, CLOSED)] * 2), ("02", 1, [])]


def test_a_table_that_names_a_file_of_such_a_folder_is_not_told_that_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "closed/a.nii", "b.nii")
    rows = "S1,T1w,closed/a.nii\nS1,FLAIR,b.nii\nS2,T1w,none.nii\n"
    table = write(tmp_path / "t.csv", f"subject,modality,uri\n{rows}")
    refuse(tmp_path / "closed", monkeypatch)
    assert told(found("table", str(table))) == [
        ("S1", 1, [(Reason.UNREADABLE, CLOSED)]),
        ("S2", 0, [(Reason.MISSING, "the table names it")]),
    ]


def test_a_series_that_nobody_may_look_at_is_not_called_dangling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "S1/T1w/1.dcm", "S1/T1w/2.dcm", "S2/T1w/1.dcm", "S3/T1w/1.dcm", "S3/T1w/2.dcm -> gone")
    refuse(tmp_path / "S1/T1w", monkeypatch)
    assert told(found("glob", f"{tmp_path}/*/*/*.dcm", dicom=True)) == [
        ("S1", 0, [(Reason.UNREADABLE, f"a file of the series: {CLOSED}")]),
        ("S2", 1, []),
        ("S3", 0, [(Reason.DANGLING, "a file of the series is a link to nothing")]),
    ]


def test_a_disk_that_fails_is_not_an_absent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(touch(tmp_path, "a.nii"), monkeypatch, code=errno.ESTALE)
    why = absent(Entry(Place(f"{tmp_path}/a.nii"), -1, ""))
    assert (why.reason, why.detail) == (Reason.UNREADABLE, f"it cannot be looked at: {os.strerror(errno.ESTALE)}")


def test_scans_that_may_be_looked_at_again_make_another_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shard() -> str:
        (only,) = plan_shards(found("bids", str(tmp_path)), mean_sessions=1000, preprocessing="p", version=1)
        return only.name

    touch(tmp_path, *BIDS)
    open_before = shard()
    with monkeypatch.context() as closing:
        refuse(tmp_path / "sub-01/anat", closing)
        closed = shard()
    assert closed != open_before
    assert shard() == open_before
