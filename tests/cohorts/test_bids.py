import os
import threading
from pathlib import Path

import pytest

from bfp.cohorts import SegmentationSource, Session, Source, discover
from bfp.errors import InputError, Reason
from bfp.storage import Place, place
from tests.cohorts.makers import touch, write

WANTED = ("T1w", "T2w", "FLAIR")


def found_in(
    root: Path,
    *,
    modalities: dict[str, str] | None = None,
    segmentations: tuple[SegmentationSource, ...] = (),
    prefer: dict[str, str | None] | None = None,
) -> list[Session]:
    source = Source(
        "c", "bids", place(str(root)), modalities=modalities or {}, segmentations=segmentations, prefer=prefer or {}
    )
    return discover(source, wanted=WANTED)


def names_of(session: Session) -> list[str]:
    return [scan.file.place.name for scan in session.scans]


def reasons_of(session: Session) -> list[tuple[str, Reason]]:
    return [(row.uri.rpartition("/")[2], row.reason) for row in session.left_out]


def test_scans_are_grouped_by_subject_and_session(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "dataset_description.json",
        "sub-02/anat/sub-02_T1w.nii",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.json",
        "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
        ".git/sub-09/anat/sub-09_T1w.nii.gz",
    )
    sessions = found_in(root)
    assert [session.key for session in sessions] == [("c", "01", "a"), ("c", "01", "b"), ("c", "02", "")]
    assert [[scan.modality for scan in session.scans] for session in sessions] == [["FLAIR", "T1w"], ["T1w"], ["T1w"]]
    assert not any(session.left_out for session in sessions)


def test_of_two_scans_of_one_modality_the_plainest_is_taken_and_the_other_named_a_duplicate(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_acq-mprage_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_run-10_T1w.nii.gz",
        "sub-02/anat/sub-02_run-2_T1w.nii.gz",
        "sub-03/anat/sub-03_acq-x_run-1_T1w.nii.gz",
        "sub-03/anat/sub-03_acq-x_rec-y_run-2_T1w.nii.gz",
        "sub-03/anat/sub-03_FLAIR.nii.gz",
    )
    one, two, three = found_in(root)
    assert names_of(one) == ["sub-01_T1w.nii.gz"]
    assert names_of(two) == ["sub-02_run-2_T1w.nii.gz"]
    assert names_of(three) == ["sub-03_FLAIR.nii.gz", "sub-03_acq-x_run-1_T1w.nii.gz"]
    assert reasons_of(two) == [("sub-02_run-10_T1w.nii.gz", Reason.DUPLICATE)]
    assert two.left_out[0].detail == (
        "no contrast agent and no phase image, then the fewest entities in its name, then the lowest run, then by name"
    )
    assert [scan.chosen.partition(",")[0] for scan in three.scans] == ["", "of 2: no contrast agent and no phase image"]


def test_a_contrast_agent_or_a_phase_image_is_taken_only_where_there_is_no_other_and_says_so(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_ce-gad_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-x_rec-y_run-1_T1w.nii.gz",
        "sub-02/anat/sub-02_ce-gad_T1w.nii.gz",
        "sub-03/anat/sub-03_part-phase_T1w.nii.gz",
        "sub-03/anat/sub-03_part-mag_run-2_T1w.nii.gz",
        "sub-04/anat/sub-04_part-real_T2w.nii.gz",
    )
    one, two, three, four = found_in(root)
    assert names_of(one) == ["sub-01_acq-x_rec-y_run-1_T1w.nii.gz"]
    assert names_of(three) == ["sub-03_part-mag_run-2_T1w.nii.gz"]
    assert [scan.warnings for session in (one, three) for scan in session.scans] == [(), ()]
    assert two.scans[0].warnings == ("with a contrast agent (ce-gad), for want of a T1w without",)
    assert four.scans[0].warnings == ("part-real, for want of a T2w with magnitudes",)


def test_preferred_entities_choose_otherwise_and_lose_no_modality(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-mprage_run-01_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-mprage_run-02_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-02/anat/sub-02_ce-gad_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/m/sub-01_acq-mprage_run-02_label-lesion_mask.nii.gz",
        "derivatives/m/sub-01_label-lesion_mask.nii.gz",
    )
    masks = (SegmentationSource("tumour", "T1w", suffix="label-lesion_mask"),)
    one, two = found_in(root, prefer={"acq": "mprage", "run": "2"}, segmentations=masks)
    assert names_of(one) == ["sub-01_FLAIR.nii.gz", "sub-01_acq-mprage_run-02_T1w.nii.gz"]
    assert [each.file.place.name for each in one.label_maps] == ["sub-01_acq-mprage_run-02_label-lesion_mask.nii.gz"]
    assert one.scans[1].chosen.startswith("of 3: acq-mprage, then run-2, then no contrast agent")
    assert names_of(two) == ["sub-02_T1w.nii.gz"]
    _, two = found_in(root, prefer={"ce": "gad"})
    assert (names_of(two), two.scans[0].warnings) == (["sub-02_ce-gad_T1w.nii.gz"], ())
    one, _ = found_in(root, prefer={"acq": None})
    assert names_of(one) == ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"]


def test_processed_scans_are_a_dataset_of_their_own(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/ses-a/anat/sub-01_ses-a_desc-preproc_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/ses-a/anat/sub-01_ses-a_space-MNI_desc-preproc_T1w.nii.gz",
    )
    (raw,) = found_in(tmp_path)
    assert names_of(raw) == ["sub-01_T1w.nii.gz"]
    (own,) = found_in(tmp_path / "derivatives/fmriprep")
    assert names_of(own) == ["sub-01_ses-a_desc-preproc_T1w.nii.gz"]
    (template,) = found_in(tmp_path / "derivatives/fmriprep", prefer={"space": "MNI"})
    assert names_of(template) == ["sub-01_ses-a_space-MNI_desc-preproc_T1w.nii.gz"]


def test_no_scan_is_taken_that_bidsignore_names_and_its_line_is_told(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_run-2_T1w.nii.gz",
        "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
    )
    write(root / ".bidsignore", "# not for the validator\n*_mask.nii.gz\n\nsub-01/anat/sub-01_T1w.nii.gz\nsub-02/\n")
    masks = (SegmentationSource("tumour", "T1w", suffix="label-lesion_mask"),)
    one, two = found_in(root, segmentations=masks)
    assert names_of(one) == ["sub-01_run-2_T1w.nii.gz"]
    assert [each.file.place.name for each in one.label_maps] == ["sub-01_label-lesion_mask.nii.gz"]
    assert reasons_of(two) == [("sub-02_T1w.nii.gz", Reason.IGNORED)]
    assert [row.detail for row in (*one.left_out, *two.left_out)] == [
        "by its line sub-01/anat/sub-01_T1w.nii.gz",
        "by its line sub-02/",
    ]


def test_a_scan_of_another_modality_is_left_out_unless_it_is_mapped(tmp_path: Path) -> None:
    root = touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLASH.nii.gz")
    (plain,) = found_in(root)
    assert reasons_of(plain) == [("sub-01_FLASH.nii.gz", Reason.UNWANTED)]
    (mapped,) = found_in(root, modalities={"FLASH": "T2w"})
    assert [scan.modality for scan in mapped.scans] == ["T1w", "T2w"]


def test_a_dangling_link_is_left_out_and_never_taken_before_a_file_that_is_there(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz -> ../../.git/annex/objects/gone",
        "sub-01/anat/sub-01_run-2_T1w.nii.gz",
    )
    (session,) = found_in(root)
    assert names_of(session) == ["sub-01_run-2_T1w.nii.gz"]
    assert reasons_of(session) == [("sub-01_T1w.nii.gz", Reason.DANGLING)]


@pytest.mark.parametrize("name", ["T1.nii.gz", "sub-02_T1w.nii.gz", "sub-01_sub-01_T1w.nii.gz", "sub-01_-x_T1w.nii.gz"])
def test_a_name_that_is_not_bids_or_of_another_subject_is_left_out(tmp_path: Path, name: str) -> None:
    root = touch(tmp_path, f"sub-01/anat/{name}", "sub-01/anat/sub-01_T2w.nii.gz")
    (session,) = found_in(root)
    assert reasons_of(session) == [(name, Reason.NAME)]
    assert "sub-01_<suffix>.nii.gz" in session.left_out[0].detail


def test_an_image_that_lies_or_is_called_as_none_of_bids_is_left_out_and_not_forgotten(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_bold.nii.gz", "sub-01/dwi/sub-01_dwi.nii")
    astray = [
        "anat/sub-01_T2w.NII.GZ",
        "anat/sub-01_PDw.hdr",
        "anat/sub-01_PDw.img",
        "Anat/sub-01_T2w.nii",
        "sub-01_T2w.nii",
    ]
    touch(tmp_path, *(f"sub-01/{name}" for name in astray), "sub-01/anat/sub-01_acq-a\nb_T1w.nii")
    (session,) = found_in(tmp_path)
    names = {row.uri.partition("sub-01/")[2]: row.reason for row in session.left_out}
    assert names == dict.fromkeys(astray, Reason.NAME) | {"anat/sub-01_acq-a\nb_T1w.nii": Reason.DUPLICATE}


def test_what_lies_astray_may_be_a_label_map_or_be_named_in_bidsignore(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/masks/sub-01_lesion.nii.gz", "sub-01/old/a.nii.gz")
    write(tmp_path / ".bidsignore", "old/\n")
    lesions = SegmentationSource("lesions", "T1w", suffix="lesion")
    (session,) = found_in(tmp_path, segmentations=(lesions,))
    assert [each.file.place.name for each in session.label_maps] == ["sub-01_lesion.nii.gz"]
    assert session.left_out == ()


def test_labels_come_from_participants_and_sessions(tmp_path: Path) -> None:
    root = touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz")
    write(root / "participants.tsv", "participant_id\tage\tsex\tsite\nsub-01\t70\tF\tn/a\n")
    write(root / "sub-01/sub-01_sessions.tsv", "session_id\tage\nses-b\t72\n")
    before, after = found_in(root)
    assert before.labels == {"age": "70", "sex": "F"}
    assert after.labels == {"age": "72", "sex": "F"}


def test_a_column_called_cohort_is_a_label_of_the_dataset_like_any_other(tmp_path: Path) -> None:
    root = touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    write(root / "participants.tsv", "participant_id\tcohort\nsub-01\tcontrols\n")
    (session,) = found_in(root)
    assert session.labels == {"cohort": "controls"}


def test_a_label_map_that_is_a_dangling_link_is_named_unless_another_is_there(tmp_path: Path) -> None:
    masks = (SegmentationSource("tumour", "T1w", suffix="label-lesion_mask"),)
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_label-lesion_mask.nii.gz -> gone")
    (session,) = found_in(tmp_path, segmentations=masks)
    assert [(each.file.place.name, each.file.size) for each in session.label_maps] == [
        ("sub-01_label-lesion_mask.nii.gz", -1)
    ]
    touch(tmp_path, "derivatives/x/sub-01_acq-x_label-lesion_mask.nii.gz")
    (session,) = found_in(tmp_path, segmentations=masks)
    assert [each.file.place.name for each in session.label_maps] == ["sub-01_acq-x_label-lesion_mask.nii.gz"]


def test_label_maps_are_found_by_suffix_and_are_no_scans(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/lesions/sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz",
        "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "derivatives/lesions/sub-02/anat/sub-02_label-brain_mask.nii.gz",
        "derivatives/other/sub-02/anat/sub-02_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "sub-03/anat/sub-03_label-lesion_mask.nii.gz",
    )
    one, two, three = found_in(root, segmentations=(SegmentationSource("tumour", "T1w", suffix="label-lesion_mask"),))
    assert [(each.name, each.drawn_on, each.file.place.name) for each in one.label_maps] == [
        ("tumour", "T1w", "sub-01_label-lesion_mask.nii.gz")
    ]
    assert two.label_maps == ()
    assert names_of(two) == ["sub-02_T1w.nii.gz"]
    assert [each.file.place.name for each in three.label_maps] == ["sub-03_label-lesion_mask.nii.gz"]
    assert (names_of(three), three.left_out) == (["sub-03_T1w.nii.gz"], ())


LESION = (SegmentationSource("tumour", "T1w", suffix="label-lesion_mask"),)


@pytest.mark.parametrize(
    ("scan", "label_map", "fits"),
    [
        ("", "", True),
        ("", "space-orig_", True),
        ("", "space-T1w_", True),
        ("", "space-MNI152NLin2009cAsym_", False),
        ("", "space-FLAIR_", False),
        ("space-MNI_", "space-MNI_", True),
        ("space-MNI_", "", False),
        ("space-MNI_", "space-T1w_", False),
    ],
)
def test_a_label_map_of_another_space_than_its_scans_is_refused(
    tmp_path: Path, scan: str, label_map: str, fits: bool
) -> None:
    root = touch(
        tmp_path,
        f"sub-01/anat/sub-01_{scan}T1w.nii.gz",
        f"derivatives/f/sub-01/anat/sub-01_{label_map}label-lesion_mask.nii.gz",
    )
    (session,) = found_in(root, segmentations=LESION)
    (found,) = session.label_maps
    assert (found.refused == "") is fits
    if label_map == "space-MNI152NLin2009cAsym_":
        assert found.refused == "by its name it lies in space-MNI152NLin2009cAsym, the T1w in its own space"


def test_of_several_label_maps_one_is_taken_by_a_stated_rule(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_run-1_T1w.nii.gz -> gone",
        "sub-01/anat/sub-01_run-2_T1w.nii.gz",
        "derivatives/a/sub-01_run-1_label-lesion_mask.nii.gz",
        "derivatives/a/sub-01_run-02_label-lesion_mask.nii.gz",
        "derivatives/a/sub-01_space-MNI_label-lesion_mask.nii.gz",
        "sub-02/anat/sub-02_run-2_T1w.nii.gz",
        "derivatives/a/sub-02_run-1_label-lesion_mask.nii.gz",
    )
    one, two = found_in(root, segmentations=LESION)
    (of_one,), (of_two,) = one.label_maps, two.label_maps
    assert of_one.file.place.name == "sub-01_run-02_label-lesion_mask.nii.gz"
    assert of_one.chosen == (
        "of 2: a file that is there, then nothing in its name that its scan's denies, then as scans are chosen"
    )
    assert (of_one.warnings, of_two.chosen) == ((), "")
    assert of_two.refused == "by its name it was drawn on run-1, and another run of the T1w was taken"


def test_a_label_map_whose_name_denies_its_scan_s_otherwise_is_doubtful(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_acq-mprage_T1w.nii.gz",
        "derivatives/a/sub-01_acq-flash_label-lesion_mask.nii.gz",
    )
    ((found,),) = (session.label_maps for session in found_in(root, segmentations=LESION))
    assert (found.refused, found.warnings) == ("", ("its name says acq-flash, which its scan's denies",))


def test_a_folder_that_is_no_dataset_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    touch(tmp_path, "scan.nii.gz", "notes.txt")
    with pytest.raises(InputError, match=r"looked for sub-\*/.*found notes\.txt, scan\.nii\.gz"):
        found_in(tmp_path)


def test_a_dataset_without_a_wanted_scan_says_why_the_first_was_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_PDw.nii.gz")
    with pytest.raises(InputError, match=r"no scan of T1w, T2w, FLAIR.*PDw; asked for.*modalities: \{THEIRS: T1w\}"):
        found_in(tmp_path)


def test_a_dataset_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot list it: nothing is there"):
        found_in(tmp_path / "nowhere")


def test_a_table_of_sessions_speaks_where_the_standard_puts_it_and_nowhere_else(tmp_path: Path) -> None:
    root = touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    write(root / "sub-01/sub-01_sessions.tsv", "session_id\tage\nses-a\t50\n")
    for elsewhere in (
        "derivatives/x/sub-01/sub-01_sessions.tsv",
        "sub-01_sessions.tsv",
        "sub-01/ses-a/sub-01_sessions.tsv",
        "sub-01/sub-02_sessions.tsv",
        "x/sub-01_sessions.tsv",
    ):
        write(root / elsewhere, "session_id\tqc\nses-a\tbad\n")
    (session,) = found_in(root)
    assert session.labels == {"age": "50"}


def test_hidden_folders_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", ".git/annex/objects/x/y.nii.gz", "derivatives/.cache/z")
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scan(path))
    found_in(root)
    assert not [path for path in listed if "/." in path.removeprefix(str(tmp_path))]


def test_many_tables_of_sessions_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that wait for each other are both read."""
    for subject in ("01", "02"):
        touch(tmp_path, f"sub-{subject}/ses-a/anat/sub-{subject}_ses-a_T1w.nii.gz")
        write(tmp_path / f"sub-{subject}/sub-{subject}_sessions.tsv", f"session_id\tage\nses-a\t{subject}\n")
    both, reads = threading.Barrier(2, timeout=120), Place.read

    def read(file: Place) -> bytes:
        if file.name.endswith("_sessions.tsv"):
            both.wait()
        return reads(file)

    monkeypatch.setattr(Place, "read", read)
    assert [session.labels for session in found_in(tmp_path)] == [{"age": "01"}, {"age": "02"}]
