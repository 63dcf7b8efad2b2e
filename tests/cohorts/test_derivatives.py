"""Masks as BIDS derivatives; the validator itself is asked where it is installed (`bids-validator-deno`)."""

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from bfp.cohorts.derivatives import Masks, bids_label, bids_root, mask_stem
from bfp.cohorts.sessions import Key
from bfp.imaging.nifti import header_of
from bfp.storage import place
from tests.imaging.makers import grid

CLASSES = ("grey", "white")


def write_masks(folder):
    """A derivative dataset as a run leaves it: two sessions of one subject, and one of another."""
    masks = Masks(place(str(folder)), "wm-lesion", CLASSES, "made")
    scans = {
        Key("clinic", "01", "a"): "/data/bids/sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-2_T1w.nii.gz",
        Key("clinic", "01", "b"): "/data/bids/sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        Key("clinic", "x_7", ""): "/data/bids/sub-x_7/anat/odd.nii.gz",
    }
    at = grid(axes="PSR", shape=(9, 8, 7))
    image = nib.Nifti1Image(np.zeros(at.shape, np.int16), at.ras_from_voxel)
    labels = np.random.default_rng(0).integers(0, 3, at.shape).astype(np.uint8)
    names = [
        masks.write(key, scan, labels, header=header_of(image.to_bytes()) if number else None, grid=at)
        for number, (key, scan) in enumerate(scans.items())
    ]
    masks.describe(list(scans.items()))
    return names, labels


def test_names_keep_the_entities_of_the_scan_and_say_what_they_are(tmp_path):
    names, labels = write_masks(tmp_path)
    label = bids_label("wm-lesion")
    assert label.isalnum()
    assert names == [
        f"clinic/sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-2_space-orig_desc-{label}_dseg.nii.gz",
        f"clinic/sub-01/ses-b/anat/sub-01_ses-b_space-orig_desc-{label}_dseg.nii.gz",
        f"clinic/sub-{bids_label('x_7')}/anat/sub-{bids_label('x_7')}_space-orig_desc-{label}_dseg.nii.gz",
    ]
    for name in names:
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / name).dataobj), labels)


def test_labels_that_would_become_one_stay_apart():
    assert bids_label("ab") == "ab"
    assert len({bids_label(text) for text in ("ab", "a_b", "a-b", "a.b")}) == 4


def test_a_sidecar_names_the_scan_and_what_the_numbers_mean(tmp_path):
    names, _ = write_masks(tmp_path)
    told = json.loads((tmp_path / names[0].replace(".nii.gz", ".json")).read_text())
    source = "bids:source:sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-2_T1w.nii.gz"
    assert told["Sources"] == [source]
    assert told["SpatialReference"] == source
    assert told["LabelMap"] == {"grey": 1, "white": 2}
    dataset = json.loads((tmp_path / "clinic" / "dataset_description.json").read_text())
    assert dataset["DatasetType"] == "derivative"
    assert dataset["GeneratedBy"][0]["Name"] == "bfp"
    assert dataset["DatasetLinks"] == {"source": "file:///data/bids"}
    (table,) = (tmp_path / "clinic").glob("*_dseg.tsv")
    assert table.read_text() == "index\tname\n0\tbackground\n1\tgrey\n2\twhite\n"


def test_the_root_of_a_dataset_is_where_the_subjects_folder_lies():
    assert bids_root(Key("c", "01", ""), "s3://bucket/ds/sub-01/anat/sub-01_T1w.nii.gz") == "s3://bucket/ds"
    assert bids_root(Key("c", "01", ""), "/scans/Subj1_T1.nii.gz") is None


def test_a_scan_that_is_not_named_as_bids_has_it_still_gives_a_name():
    stem = mask_stem(Key("c", "Subj1", ""), "/scans/Subj1_T1.nii.gz", segmentation="tissue")
    assert stem == "sub-Subj1/anat/sub-Subj1_space-orig_desc-tissue_dseg"


def test_the_validator_accepts_the_dataset(tmp_path):
    program = shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("no bids-validator-deno here: pip install bids-validator-deno")
    write_masks(tmp_path)
    asked = subprocess.run([program, tmp_path / "clinic", "--json"], capture_output=True, text=True, timeout=120)
    issues = json.loads(asked.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
