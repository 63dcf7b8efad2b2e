"""Pairs of header and voxels: one scan, found by either half, changed by either, rejected where one is not there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bfp.cohorts import SegmentationSource, Session, Source, discover, plan_shards
from bfp.cohorts.prepare import prepare
from bfp.errors import Reason
from bfp.inference.ready import inputs_of
from bfp.storage import place
from tests.cohorts.makers import RECIPE, as_pair, touch, write, write_scan

PATTERN = r"(?P<subject>S\d)_(?P<modality>[A-Za-z0-9]+)[.]"


def by_glob(glob: str, pattern: str = PATTERN) -> list[Session]:
    return discover(Source("c", "glob", place(glob), pattern=pattern), wanted=("T1w", "FLAIR"))


def by_table(table: Path, *segmentations: SegmentationSource) -> list[Session]:
    return discover(Source("c", "table", place(str(table)), segmentations=segmentations), wanted=("T1w", "FLAIR"))


def names(session: Session) -> list[tuple[str, ...]]:
    return [tuple(file.place.name for file in scan.files) for scan in session.scans]


@pytest.mark.parametrize("glob", ["*", "*.hdr", "*.img", "*.hdr*", "*_*.img*"])
def test_a_glob_that_finds_either_half_or_both_finds_one_scan(tmp_path: Path, glob: str) -> None:
    touch(tmp_path, "S1_T1w.hdr", "S1_T1w.img")
    (session,) = by_glob(f"{tmp_path}/{glob}")
    assert names(session) == [("S1_T1w.hdr", "S1_T1w.img")]
    assert session.left_out == ()


def test_a_half_that_the_pattern_does_not_understand_belongs_to_the_other(tmp_path: Path) -> None:
    touch(tmp_path, "S1_T1w.hdr", "S1_T1w.img", "Iguana.hdr")
    nobody, session = by_glob(f"{tmp_path}/*", r"(?P<subject>S\d)_(?P<modality>T1w)\.img")
    assert names(session) == [("S1_T1w.hdr", "S1_T1w.img")]
    assert [(row.uri, row.reason) for row in nobody.left_out] == [(f"{tmp_path}/Iguana.hdr", Reason.NAME)]


def test_of_a_plain_and_a_zipped_half_the_one_like_the_other_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "S1_T1w.hdr", "S1_T1w.img", "S1_T1w.img.gz", "S2_T1w.hdr.gz", "S2_T1w.img.gz", "S2_T1w.img")
    touch(tmp_path, "S3_T1w.hdr", "S3_T1w.img.gz")
    found = [names(session) for session in by_glob(f"{tmp_path}/*.hdr*")]
    assert found == [
        [("S1_T1w.hdr", "S1_T1w.img")],
        [("S2_T1w.hdr.gz", "S2_T1w.img.gz")],
        [("S3_T1w.hdr", "S3_T1w.img.gz")],
    ]
    (one, _, _) = by_glob(f"{tmp_path}/*")
    assert [row.detail for row in one.left_out] == ["the first by name"]


def test_a_half_without_the_other_is_left_out_and_another_scan_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a/S1_T1w.hdr", "b/S1_T1w.nii", "a/S2_T1w.img", "b/S2_T1w.nii", "a/S3_T1w.hdr", "b/S3_T1w.nii")
    touch(tmp_path, "a/S3_T1w.img -> gone")
    one, two, three = by_glob(f"{tmp_path}/*/*")
    assert names(one) == [("S1_T1w.nii",)]
    assert names(two) == [("S2_T1w.nii",)]
    assert names(three) == [("S3_T1w.nii",)]
    rows = [(row.uri, row.reason, row.detail) for session in (one, two, three) for row in session.left_out]
    at = f"{tmp_path}/a"
    assert rows == [
        (f"{at}/S1_T1w.hdr", Reason.MISSING, "nothing is where its .img should be"),
        (f"{at}/S2_T1w.hdr", Reason.MISSING, "nothing is where its .hdr should be"),
        (f"{at}/S3_T1w.hdr", Reason.DANGLING, "nothing is where its .img should be"),
    ]


def test_a_table_may_name_either_half(tmp_path: Path) -> None:
    touch(tmp_path, "a.hdr", "a.img", "b.hdr.gz", "b.img.gz", "c.hdr")
    table = write(
        tmp_path / "t.csv",
        "subject,modality,uri,wml\nS1,T1w,a.img,b.hdr.gz\nS1,FLAIR,b.hdr.gz,\nS2,T1w,c.hdr,\nS3,T1w,a.hdr,c.hdr\n",
    )
    one, two, three = by_table(table, SegmentationSource("wml", "T1w", column="wml"))
    assert names(one) == [("b.hdr.gz", "b.img.gz"), ("a.hdr", "a.img")]
    assert [file.place.name for file in one.label_maps[0].files] == ["b.hdr.gz", "b.img.gz"]
    assert [(row.reason, row.detail) for row in two.left_out] == [
        (Reason.MISSING, "nothing is where its .img should be")
    ]
    assert [(file.place.name, file.size) for file in three.label_maps[0].files] == [("c.hdr", 5), ("c.img", -1)]


@pytest.mark.parametrize("half", ["S1_T1w.hdr", "S1_T1w.img"])
def test_a_change_of_either_half_gives_the_shard_and_the_prediction_another_name(tmp_path: Path, half: str) -> None:
    touch(tmp_path, "S1_T1w.hdr", "S1_T1w.img")

    def made_of() -> tuple[str, str]:
        sessions = by_glob(f"{tmp_path}/*.hdr")
        (shard,) = plan_shards(sessions, mean_sessions=8, preprocessing="p", version=1)
        return shard.name, inputs_of(sessions[0], model="m")

    before = made_of()
    os.utime(tmp_path / half, ns=(1, 1))
    assert all(old != new for old, new in zip(before, made_of(), strict=True))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pair_becomes_the_stacks_that_the_whole_file_becomes(tmp_path: Path, zipped: bool) -> None:
    whole = write_scan(tmp_path / "S1_T1w.nii.gz")
    labels = np.zeros((34, 42, 30), np.uint8)
    labels[10:20, 12:30, 8:20] = 3
    drawn = write_scan(tmp_path / "wml.nii.gz", voxels=labels)
    table = write(tmp_path / "t.csv", "subject,modality,uri,wml\nS1,T1w,S1_T1w.nii.gz,wml.nii.gz\n")
    column = SegmentationSource("wml", "T1w", column="wml")
    (before,) = prepare(by_table(table, column)[0], recipe=RECIPE, scan_timeout_s=60)

    names = [as_pair(file, zipped=zipped).name for file in (whole, drawn)]
    write(table, "subject,modality,uri,wml\nS1,T1w,{},{}\n".format(*names))
    (after,) = prepare(by_table(table, column)[0], recipe=RECIPE, scan_timeout_s=60)
    np.testing.assert_array_equal(after.prepared[0].pixels, before.prepared[0].pixels)
    np.testing.assert_array_equal(after.prepared[0].labels["wml"], before.prepared[0].labels["wml"])
    assert after.left_out == ()


def test_a_label_map_that_lacks_its_voxels_is_a_warning_on_its_scan(tmp_path: Path) -> None:
    write_scan(tmp_path / "S1_T1w.nii.gz")
    touch(tmp_path, "wml.hdr")
    table = write(tmp_path / "t.csv", "subject,modality,uri,wml\nS1,T1w,S1_T1w.nii.gz,wml.hdr\n")
    (session,) = by_table(table, SegmentationSource("wml", "T1w", column="wml"))
    (done,) = prepare(session, recipe=RECIPE, scan_timeout_s=60)
    (record,) = done.scans
    assert record.warnings == ("no labels of wml: file not found: nothing is where its .img should be",)
