from pathlib import Path

import pytest

from bfp.cohorts import SegmentationSource, Session, Source, discover
from bfp.errors import InputError, Reason, StorageError
from bfp.storage import place
from tests.cohorts.makers import touch, write


def found_in(
    table: Path,
    *,
    modalities: dict[str, str] | None = None,
    segmentations: tuple[SegmentationSource, ...] = (),
    labels: Path | None = None,
) -> list[Session]:
    source = Source(
        "c",
        "table",
        place(str(table)),
        modalities=modalities or {},
        segmentations=segmentations,
        labels=place(str(labels)) if labels else None,
    )
    return discover(source, wanted=("T1w", "FLAIR"))


def test_relative_uris_are_relative_to_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "b.nii.gz")
    table = write(
        tmp_path / "lists/scans.csv",
        f"subject,session,modality,uri\nS1,1,T1w,../scans/a.nii.gz\nS1,1,FL,{tmp_path}/b.nii.gz\n",
    )
    (session,) = found_in(table, modalities={"FL": "FLAIR"})
    assert session.key == ("c", "S1", "1")
    assert [(scan.modality, scan.file.place.uri) for scan in session.scans] == [
        ("FLAIR", f"{tmp_path}/b.nii.gz"),
        ("T1w", f"{tmp_path}/scans/a.nii.gz"),
    ]
    assert all(scan.file.size > 0 and scan.file.etag for scan in session.scans)


def test_further_columns_are_labels_and_those_that_differ_within_a_session_are_kept_by_modality(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    table = write(
        tmp_path / "t.tsv", "subject\tmodality\turi\tage\tcoil\nS1\tT1w\ta.nii\t64\t8ch\nS1\tFLAIR\tb.nii\t64\t32ch\n"
    )
    (session,) = found_in(table)
    assert session.labels == {"age": "64", "coil.T1w": "8ch", "coil.FLAIR": "32ch"}


def test_the_labels_of_several_cohorts_may_stand_in_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    table = write(tmp_path / "t.csv", "subject,modality,uri\nS1,T1w,a.nii\n")
    text = "cohort,subject,diagnosis\nother,S1,CN\nc,S1,AD\n"
    (session,) = found_in(table, labels=write(tmp_path / "labels.csv", text))
    assert session.labels == {"diagnosis": "AD"}
    with pytest.raises(InputError, match="its column cohort says other, and not c"):
        found_in(table, labels=write(tmp_path / "labels.csv", "cohort,subject,diagnosis\nother,S1,CN\n"))
    with pytest.raises(InputError, match=r"labels\.csv:3: subject S1 has no cohort; every row needs one"):
        found_in(table, labels=write(tmp_path / "labels.csv", "cohort,subject,age\nc,S1,7\n,S1,8\n"))


def test_labels_of_a_file_replace_those_of_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    table = write(tmp_path / "t.csv", "subject,modality,uri,age\nS1,T1w,a.nii,64\n")
    labels = write(tmp_path / "labels.csv", "subject,diagnosis\nsub-S1,AD\nS2,CN\n")
    (session,) = found_in(table, labels=labels)
    assert session.labels == {"diagnosis": "AD"}


def test_a_file_that_is_not_there_is_left_out_as_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "link.nii -> gone")
    table = write(
        tmp_path / "t.csv", "subject,modality,uri\nS1,T1w,a.nii\nS1,FLAIR,nowhere.nii\nS2,T1w,link.nii\nS3,T1w,a.nii\n"
    )
    sessions = found_in(table)
    reasons = [(row.key.subject, row.modality, row.reason) for session in sessions for row in session.left_out]
    assert reasons == [("S1", "FLAIR", Reason.MISSING), ("S2", "T1w", Reason.DANGLING)]


def test_the_first_row_of_a_modality_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    table = write(tmp_path / "t.csv", "subject,modality,uri\nS1,T1w,b.nii\nS1,T1w,a.nii\n")
    (session,) = found_in(table)
    assert [scan.file.place.name for scan in session.scans] == ["b.nii"]
    assert session.left_out[0].detail == "the first row of the table"


def test_a_label_map_comes_from_its_column(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "m.nii")
    table = write(
        tmp_path / "t.csv", "subject,modality,uri,lesions\nS1,T1w,a.nii,\nS1,FLAIR,b.nii,m.nii\nS2,T1w,a.nii,n/a\n"
    )
    one, two = found_in(table, segmentations=(SegmentationSource("wml", "FLAIR", column="lesions"),))
    assert [(each.name, each.file.place.name) for each in one.label_maps] == [("wml", "m.nii")]
    assert two.label_maps == ()
    assert one.labels == {}


def test_of_several_label_maps_the_one_in_the_row_of_the_scan_is_taken_by_a_stated_rule(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii", "c.nii", "m1.nii", "m2.nii", "m3.nii")
    rows = "S1,FLAIR,c.nii,m3.nii\nS1,T1w,gone.nii,m1.nii\nS1,T1w,b.nii,m2.nii\n"
    table = write(tmp_path / "t.csv", f"subject,modality,uri,wml\n{rows}")
    (session,) = found_in(table, segmentations=(SegmentationSource("wml", "T1w", column="wml", inside=(2,)),))
    (found,) = session.label_maps
    assert [scan.file.place.name for scan in session.scans] == ["c.nii", "b.nii"]
    assert (found.file.place.name, found.inside) == ("m2.nii", (2,))
    assert found.chosen == (
        "of 3: the row of the scan it was drawn on, then rows of its modality, then the first row of the session"
    )


def test_a_label_map_that_is_not_there_is_named_all_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "link.nii -> gone")
    table = write(tmp_path / "t.csv", "subject,modality,uri,wml\nS1,T1w,a.nii,none.nii\nS2,T1w,a.nii,link.nii\n")
    found = found_in(table, segmentations=(SegmentationSource("wml", "T1w", column="wml"),))
    maps = [(each.file.place.name, each.file.size) for session in found for each in session.label_maps]
    assert maps == [("none.nii", -1), ("link.nii", -1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,path\nS1,a.nii\n", r"t\.csv: lacks the columns modality, uri; found subject, path"),
        ("subject,modality,uri\n", r"t\.csv: no rows"),
        ("", r"t\.csv: no rows"),
        ("subject,modality,uri\nS1,,a.nii\n", r"t\.csv:2: no modality"),
        ("subject,modality,uri\n\nS1,T1w,\n", r"t\.csv:3: no uri"),
        ("subject,modality,uri\nNA,T1w,a.nii\n", r"t\.csv:2: no subject \(NA says that there is none\)"),
        ("subject,modality,uri\n,,a.nii\nS1,T1w,\n", r"t\.csv:2: no subject and no modality\n.*t\.csv:3: no uri$"),
        ("subject,modality,uri\n" + 13 * "S1,T1w,\n", r"(t\.csv:\d+: no uri\n.*){10}and 3 lines more like these$"),
        ('subject,modality,uri\nS1,T1w,"' + 140_000 * "a", r"t\.csv:2: not a CSV or TSV table: field larger"),
        ("subject,modality,uri\nS1,T1w,a.nii,x\n", r"t\.csv:2: 4 cells, but 3 columns"),
        ("subject,uri,uri\nS1,T1w,a.nii\n", r"t\.csv: two columns have the same name"),
        ("subject,modality,uri\nS1,T1w,gone.nii\n", r"no scan of T1w, FLAIR .* file not found: the table names it"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        found_in(write(tmp_path / "t.csv", text))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read it: it is a folder, and a file is expected"):
        found_in(tmp_path)


def test_bytes_that_are_no_text_are_no_table(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"subject,modality,uri\n\xff\xfe")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        found_in(file)


def test_labels_are_those_of_the_scan_that_was_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "c.nii")
    rows = "S1,T1w,gone.nii,Trio,1\nS1,T1w,a.nii,Prisma,\nS1,T1w,b.nii,Verio,3\nS1,FLAIR,c.nii,Prisma,4\n"
    (session,) = found_in(write(tmp_path / "t.csv", f"subject,modality,uri,scanner,coil\n{rows}"))
    assert [scan.file.place.name for scan in session.scans] == ["c.nii", "a.nii"]
    assert session.labels == {"scanner": "Prisma", "coil": "4"}


def test_both_halves_of_a_pair_are_one_scan(tmp_path: Path) -> None:
    touch(tmp_path, "p.hdr", "p.img")
    (session,) = found_in(write(tmp_path / "t.csv", "subject,modality,uri\nS1,T1w,p.img\nS1,T1w,p.hdr\n"))
    (scan,) = session.scans
    assert (scan.file.place.name, scan.chosen, session.left_out) == ("p.hdr", "", ())
