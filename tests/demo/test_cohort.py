import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bfp.demo.cohort import CohortFacts, make_cohort
from bfp.demo.plan import Groups
from bfp.errors import InputError, Reason

GROUPS = Groups(control=1, disease=1, tumour=1)


def make(folder: Path, *, workers: int = 1, seed: int = 1, groups: Groups = GROUPS) -> CohortFacts:
    return make_cohort(folder, subjects=groups, seed=seed, workers=workers, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> CohortFacts:
    pytest.importorskip("nilearn", reason="the demo's anatomy comes with nilearn")
    return make(tmp_path_factory.mktemp("demo") / "cohort", workers=2)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_two_workers_write_the_bytes_of_one(facts: CohortFacts, tmp_path: Path) -> None:
    make(tmp_path / "again", workers=1)
    assert files_of(tmp_path / "again") == files_of(facts.folder)


def test_the_facts_are_what_lies_on_disk(facts: CohortFacts) -> None:
    scans = sorted(facts.folder.glob("sub-*/anat/*.nii.gz"))
    assert len(scans) == facts.scans
    for subject, modality in facts.lacking:
        assert not (facts.folder / subject / "anat" / f"{subject}_{modality}.nii.gz").exists()
    broken = {facts.folder / file.path: file.reason for file in facts.broken}
    assert sorted(broken.values()) == sorted([Reason.TRUNCATED, Reason.NOT_NIFTI])
    for scan in scans:
        if broken.get(scan) is Reason.TRUNCATED:
            with pytest.raises(EOFError):
                gzip.decompress(scan.read_bytes())
        elif scan in broken:
            with pytest.raises(nib.filebasedimages.ImageFileError):
                nib.load(scan)
        else:
            assert nib.load(scan).get_fdata().max() > 0


def test_every_subject_of_the_table_has_a_folder_and_every_column_is_described(facts: CohortFacts) -> None:
    with (facts.folder / "participants.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    described = json.loads((facts.folder / "participants.json").read_text())
    assert {row["participant_id"] for row in rows} == {folder.name for folder in facts.folder.glob("sub-*")}
    assert sorted(row["diagnosis"] for row in rows) == ["control", "disease", "tumour"]
    assert set(rows[0]) == {"participant_id", *described}


def test_every_scan_has_a_sidecar_and_every_dataset_says_what_it_is(facts: CohortFacts) -> None:
    for scan in facts.folder.glob("sub-*/anat/*.nii.gz"):
        assert json.loads(scan.with_name(scan.name.replace(".nii.gz", ".json")).read_text())["Modality"] == "MR"
    kinds = {
        str(file.parent.relative_to(facts.folder)): json.loads(file.read_text())["DatasetType"]
        for file in facts.folder.rglob("dataset_description.json")
    }
    assert kinds == {".": "raw", "derivatives/tissue": "derivative", "derivatives/lesions": "derivative"}


def test_tissues_and_lesions_lie_on_the_grid_of_the_t1w(facts: CohortFacts) -> None:
    labels = [*facts.folder.glob("derivatives/*/sub-*/anat/*.nii.gz")]
    assert [file.name for file in labels if "lesion" in file.name] != []
    for file in labels:
        subject = file.name.split("_")[0]
        t1w = nib.load(facts.folder / subject / "anat" / f"{subject}_T1w.nii.gz")
        image = nib.load(file)
        assert image.shape == t1w.shape
        np.testing.assert_array_equal(image.affine, t1w.affine)
        assert set(np.unique(image.dataobj)) == ({0, 1} if "lesion" in file.name else {0, 1, 2, 3})


def test_a_cohort_that_is_there_is_left_alone(facts: CohortFacts) -> None:
    before = {file: file.stat().st_mtime_ns for file in facts.folder.rglob("*")}
    assert make(facts.folder) == facts
    assert {file: file.stat().st_mtime_ns for file in facts.folder.rglob("*")} == before


def test_a_place_that_holds_something_else_is_refused_and_kept(facts: CohortFacts, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for folder, seed in ((tmp_path, 1), (facts.folder, 2)):
        with pytest.raises(InputError, match="other than this demo cohort"):
            make(folder, seed=seed)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_what_lies_beside_the_cohort_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cohort.part").mkdir()
    (tmp_path / "cohort.part" / "mine.txt").write_text("keep")
    make(tmp_path / "cohort", groups=Groups(control=1, disease=0, tumour=0))
    assert (tmp_path / "cohort.part" / "mine.txt").read_text() == "keep"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_cohort_is_not_there_and_can_be_made_again(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    one = Groups(control=1, disease=0, tumour=0)
    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path / "cohort", subjects=one, seed=1, workers=1, progress=interrupt)
    assert not (tmp_path / "cohort").exists()
    made = make(tmp_path / "cohort", groups=one)
    assert [item.name for item in tmp_path.iterdir()] == ["cohort"]
    assert np.isnan(made.oracle_auroc)
