import os
import sys
from pathlib import Path

import pytest

from bfp.cohorts import Session, Source, discover
from bfp.cohorts.glob import glob_expression, listing_root
from bfp.errors import InputError, Reason
from bfp.storage import place
from tests.cohorts.makers import touch

PATTERN = r"(?P<subject>Subj[0-9]+)_(?P<modality>[A-Z0-9]+)[.]nii"


def found_in(glob: str, pattern: str = PATTERN) -> list[Session]:
    source = Source("c", "glob", place(glob), pattern=pattern, modalities={"T1": "T1w", "FL": "FLAIR"})
    return discover(source, wanted=("T1w", "FLAIR"))


def test_scans_in_different_folders_meet_in_one_session(tmp_path: Path) -> None:
    touch(tmp_path, "t1/Subj2_T1.nii.gz", "flair/Subj2_FL.nii.gz", "t1/Subj10_T1.nii.gz", "notes/Subj3_T1.nii.txt")
    sessions = found_in(f"{tmp_path}/*/*.nii.gz")
    assert [(session.key.subject, [scan.modality for scan in session.scans]) for session in sessions] == [
        ("Subj10", ["T1w"]),
        ("Subj2", ["FLAIR", "T1w"]),
    ]


def test_a_name_that_the_pattern_does_not_understand_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "Subj2_T1.nii.gz", "Iguana.nii.gz")
    nobody, _ = found_in(f"{tmp_path}/*.nii.gz")
    assert nobody.key == ("c", "", "")
    assert [(row.uri, row.reason) for row in nobody.left_out] == [(f"{tmp_path}/Iguana.nii.gz", Reason.NAME)]
    assert PATTERN in nobody.left_out[0].detail


def test_a_session_group_tells_visits_apart_and_the_first_by_name_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "S1_v1_T1.nii", "S1_v2_T1.nii", "S1_v2_T1b.nii")
    one, two = found_in(f"{tmp_path}/*.nii", r"(?P<subject>S\d)_(?P<session>v\d)_(?P<modality>T1)")
    assert (one.key.session, two.key.session) == ("v1", "v2")
    assert [row.detail for row in two.left_out] == ["the first by name"]


def test_labels_stand_without_the_prefixes_of_bids(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01_ses-a_T1w.nii")
    (session,) = found_in(f"{tmp_path}/*.nii", r"(?P<subject>sub-\d+)_(?P<session>ses-\w)_(?P<modality>\w+)\.nii")
    assert session.key == ("c", "01", "a")


def test_a_glob_that_finds_nothing_says_how_many_files_it_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(InputError, match=r"finds nothing in the 2 files below"):
        found_in(f"{tmp_path}/*.nii.gz")


def test_a_glob_with_brackets_that_finds_nothing_says_that_they_are_no_wildcards(tmp_path: Path) -> None:
    touch(tmp_path, "Subj2_T1.nii.gz")
    with pytest.raises(InputError, match=r"brackets .* stand for themselves: the wildcards are \*, \? and"):
        found_in(f"{tmp_path}/[A-T]*.nii.gz")


@pytest.mark.parametrize(
    ("glob", "uri", "matches"),
    [
        ("/d/**/*.nii", "/d/a/b/x.nii", True),
        ("/d/**/*.nii", "/d/x.nii", True),
        ("/d/*/x.nii", "/d/a/b/x.nii", False),
        ("/d/x?.nii", "/d/x1.nii", True),
        ("/d/x?.nii", "/d/x/.nii", False),
        ("/d/x.nii", "/d/xxnii", False),
        ("/d/x*", "/d/x [1]\n.nii", True),
        ("s3://b/**_T1w.nii.gz", "s3://b/a/sub-1_T1w.nii.gz", True),
    ],
)
def test_wildcards_stay_within_a_folder_but_for_two_stars(glob: str, uri: str, matches: bool) -> None:
    assert (glob_expression(glob).fullmatch(uri) is not None) is matches


@pytest.mark.parametrize(
    ("glob", "root"), [("/d/a*/x", "/d"), ("/d/a/x.nii", "/d/a"), ("s3://b/k/**", "s3://b/k"), ("/*.nii", "/")]
)
def test_only_what_lies_before_the_first_wildcard_is_listed(glob: str, root: str) -> None:
    assert listing_root(place(glob)).uri == root


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
def test_a_path_that_is_not_utf8_is_left_out_with_its_bytes_as_escapes(tmp_path: Path) -> None:
    touch(tmp_path, "Subj1_T1.nii", "Subj1_FL.nii")
    os.rename(tmp_path / "Subj1_T1.nii", os.fsencode(tmp_path) + b"/Subj1_T1.nii\xff")
    os.rename(tmp_path / "Subj1_FL.nii", os.fsencode(tmp_path) + b"/Sub\xe4_FL.nii")
    touch(tmp_path, "Subj2_T1.nii")
    sessions = found_in(f"{tmp_path}/*", r"(?P<subject>Sub[^/_]+)_(?P<modality>[A-Z0-9]+)[.]nii")
    assert [session.key.subject for session in sessions] == ["Sub\\udce4", "Subj1", "Subj2"]
    assert [(row.uri, row.reason) for session in sessions for row in session.left_out] == [
        (f"{tmp_path}/Sub\\udce4_FL.nii", Reason.NAME),
        (f"{tmp_path}/Subj1_T1.nii\\udcff", Reason.NAME),
    ]
    assert [len(session.scans) for session in sessions] == [0, 0, 1]
