"""Masks come back to where they belong. The model is replaced by the truth on the stacks: what is left is geometry."""

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from bfp.cohorts.derivatives import Masks
from bfp.cohorts.prepare import prepare
from bfp.cohorts.sessions import Key, Scan, Session
from bfp.errors import Reason
from bfp.inference.segmenting import written
from bfp.inference.way_back import to_segment
from bfp.storage import place
from tests.imaging.makers import grid, head, motion, recipe

CENTRE_RAS, RADIUS_MM = np.array([-21.0, 13.0, 8.0]), 20.0
EVERY_ORIENTATION = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]
GEOMETRY = (
    *("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def write_scan(file, at, *, contrast="T1w", moved=None, kind=nib.Nifti1Image, endianness="<"):
    """A head as a NIfTI file with both forms, the qform of a scanner's own precision, and a name in its header."""
    header = kind.header_class(endianness=endianness)
    header["descrip"] = b"Jane Doe"
    header["cal_max"] = 300
    values = np.rint(head(at, contrast=contrast, moved=moved)).astype(f"{endianness}i2")
    image = kind(values, at.ras_from_voxel, header=header)
    image.set_qform(at.ras_from_voxel, code=1)
    image.set_sform(at.ras_from_voxel, code=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
    return place(str(file)).entry()


def prepared(folder, entries, *, drawn_on=("T1w",), shown=("T1w", "T2w", "FLAIR"), **changes):
    own = recipe(spacing_mm=3.0, slice_spacing_mm=3.0, size_px=76, **changes)
    key = Key("clinic", "01", "")
    scans = tuple(Scan(modality, entry) for modality, entry in sorted(entries.items()))
    session = Session(key, scans)
    pieces = list(prepare(session, recipe=own, scan_timeout_s=60))
    return to_segment(session, pieces, recipe=own, shown=shown, drawn_on=drawn_on, inputs="inputs")


def truth(way_back, centre_ras=CENTRE_RAS):
    """What a perfect model says of the stacks: float16 (n, 2, S, S)."""
    points = way_back.working.ras(np.moveaxis(np.indices(way_back.working.shape), 0, -1))
    inside = np.clip(RADIUS_MM - np.linalg.norm(points - centre_ras, axis=-1) + 0.5, 0, 1)
    planes = inside[:, :, way_back.slices].T[:, ::-1]
    return np.stack([1 - planes, planes], axis=1).astype(np.float16)


def masked(folder, found, **changes):
    """The mask's file, after it was written."""
    masks = Masks(place(str(folder / "derivatives")), "ball", ("ball",), "made")
    maps = truth(found.way_back, **changes)
    outcome = written(found.ready, found.way_back, maps, masks=masks, shown=("T1w",))
    return folder / "derivatives" / outcome.row["mask"], outcome


@pytest.mark.parametrize("axes", EVERY_ORIENTATION)
def test_a_sphere_returns_within_half_a_voxel_whatever_the_orientation_with_the_header_equal_to_the_bit(axes, tmp_path):
    extents = {"R": (44, 4.1), "L": (44, 4.1), "A": (58, 3.6), "P": (58, 3.6), "S": (38, 4.7), "I": (38, 4.7)}
    shape, spacing_mm = zip(*(extents[letter] for letter in axes), strict=True)
    tilt_deg = (0, 0, 0) if axes.startswith("R") else (9, -7, 13)
    at = grid(axes=axes, shape=shape, spacing_mm=spacing_mm, tilt_deg=tilt_deg)
    endianness = "<" if "S" in axes else ">"
    kind = nib.Nifti1Image if axes.endswith(("S", "A", "L")) else nib.Nifti2Image
    file = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    entry = write_scan(file, at, kind=kind, endianness=endianness)
    mask_file, _ = masked(tmp_path, prepared(tmp_path, {"T1w": entry}))
    mask, scan = nib.load(mask_file), nib.load(file)
    assert type(mask) is type(scan)
    for name in GEOMETRY:
        assert mask.header[name].tobytes() == scan.header[name].tobytes(), name
    assert mask.affine.tobytes() == scan.affine.tobytes()
    inside = np.asarray(mask.dataobj) == 1
    centre = np.argwhere(inside).mean(axis=0)
    assert np.abs(centre - at.voxels(CENTRE_RAS)).max() < 0.5
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    there = np.linalg.norm(points - CENTRE_RAS, axis=-1) < RADIUS_MM
    assert 2 * (inside & there).sum() / (inside.sum() + there.sum()) > 0.93
    assert b"Jane" not in gzip.decompress(mask_file.read_bytes())
    assert mask.header["cal_max"] == 0


def test_thick_oblique_slices_are_no_exception(tmp_path):
    at = grid(axes="LAS", shape=(120, 132, 26), spacing_mm=(1.4, 1.4, 6.5), tilt_deg=(15, 0, 3))
    entry = write_scan(tmp_path / "sub-01_T1w.nii.gz", at)
    mask_file, _ = masked(tmp_path, prepared(tmp_path, {"T1w": entry}))
    centre = np.argwhere(np.asarray(nib.load(mask_file).dataobj)).mean(axis=0)
    assert np.abs(centre - at.voxels(CENTRE_RAS)).max() < 0.5


def test_a_mask_goes_to_the_scan_it_was_drawn_on_through_its_registration(tmp_path):
    off = motion(turn_deg=(3, -2, 5), shift_mm=(2, 9, -4))
    one = grid(axes="LPS", shape=(70, 86, 62), spacing_mm=(2.4, 2.2, 2.6))
    other = grid(axes="PSR", shape=(80, 64, 70), spacing_mm=(2.4, 2.6, 2.3), tilt_deg=(5, -4, 7))
    entries = {
        "T1w": write_scan(tmp_path / "sub-01_T1w.nii.gz", one),
        "FLAIR": write_scan(tmp_path / "sub-01_FLAIR.nii.gz", other, contrast="FLAIR", moved=off),
    }
    found = prepared(tmp_path, entries, drawn_on=("FLAIR",), register="rigid")
    assert found.way_back.scan.endswith("sub-01_FLAIR.nii.gz")
    mask_file, outcome = masked(tmp_path, found)
    assert outcome.row["space"] == found.way_back.scan
    centre_ras = other.ras(np.argwhere(np.asarray(nib.load(mask_file).dataobj)).mean(axis=0))
    np.testing.assert_allclose(centre_ras, off[:3, :3] @ CENTRE_RAS + off[:3, 3], atol=1.3)


def test_where_the_scan_it_was_drawn_on_is_missing_the_reference_has_the_mask(tmp_path):
    at = grid(shape=(50, 60, 44), spacing_mm=(3.4, 3.2, 3.6))
    found = prepared(tmp_path, {"T1w": write_scan(tmp_path / "sub-01_T1w.nii.gz", at)}, drawn_on=("FLAIR",))
    assert found.way_back.scan.endswith("sub-01_T1w.nii.gz")


def test_of_neighbours_only_the_scan_it_was_drawn_on_is_segmented(tmp_path):
    at = grid(shape=(50, 60, 44), spacing_mm=(3.4, 3.2, 3.6))
    entries = {name: write_scan(tmp_path / f"sub-01_{name}.nii.gz", at, contrast=name) for name in ("T1w", "FLAIR")}
    found = prepared(tmp_path, entries, drawn_on=("FLAIR",), form="neighbours", shown=("T1w", "FLAIR"))
    assert found.way_back.scan.endswith("sub-01_FLAIR.nii.gz")
    assert len(found.ready.pixels) == len(found.way_back.slices)
    assert [(row.modality, row.reason) for row in found.ready.left_out] == [("T1w", Reason.UNWANTED)]
    alone = prepared(tmp_path, {"T1w": entries["T1w"]}, drawn_on=("FLAIR",), form="neighbours")
    assert alone.way_back is None
    assert len(alone.ready.pixels) == 0


def test_a_row_tells_the_volume_of_each_class(tmp_path):
    at = grid(shape=(50, 60, 44), spacing_mm=(3.4, 3.2, 3.6))
    _, outcome = masked(tmp_path, prepared(tmp_path, {"T1w": write_scan(tmp_path / "sub-01_T1w.nii.gz", at)}))
    assert outcome.row["ml_ball"] == pytest.approx(4 / 3 * np.pi * (RADIUS_MM / 10) ** 3, rel=0.05)
    assert outcome.row["missing"] == []
    assert outcome.preview.labels.max() == 1
