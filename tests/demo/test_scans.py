import gzip
import io

import nibabel as nib
import numpy as np
import pytest

from bfp.demo.anatomy import Template
from bfp.demo.scanners import MODALITIES, SITES, scan_grid
from bfp.demo.scans import acquire, average_thick, draw_pose, encode, lesion_mask, tissue_labels
from bfp.demo.tissue import Brain, grow_brain

EVERY_PROTOCOL = [(site, modality) for site in SITES for modality in MODALITIES]


@pytest.fixture(scope="module")
def brain(template: Template) -> Brain:
    return grow_brain(template, np.random.default_rng(3), severity=1.0, tumour=True)


def decode(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))


@pytest.mark.parametrize(("site", "modality"), EVERY_PROTOCOL)
def test_a_grid_has_the_axes_and_spacing_of_its_protocol_and_its_centre_where_asked(site: str, modality: str) -> None:
    protocol = SITES[site].protocols[modality]
    centre_mm = np.array([3.0, -20.0, 11.0])
    shape, scanner_from_voxel = scan_grid(protocol, centre_mm=centre_mm)
    assert "".join(nib.aff2axcodes(scanner_from_voxel)) == protocol.axes
    np.testing.assert_allclose(nib.affines.voxel_sizes(scanner_from_voxel), protocol.spacing_mm)
    np.testing.assert_allclose((scanner_from_voxel @ (*((np.array(shape) - 1) / 2), 1))[:3], centre_mm)


def test_the_sites_differ_in_grid_orientation_and_storage() -> None:
    t1w = [site.protocols["T1w"] for site in SITES.values()]
    assert len({protocol.axes for protocol in t1w}) == len({protocol.spacing_mm for protocol in t1w}) == len(SITES)
    assert {protocol.dtype for site in SITES.values() for protocol in site.protocols.values()} >= {
        "<i2",
        ">u2",
        "u1",
        "<f4",
    }


@pytest.mark.parametrize(("site", "modality"), EVERY_PROTOCOL)
def test_a_file_reads_back_as_what_was_scanned_with_its_geometry_and_storage(
    template: Template, brain: Brain, site: str, modality: str
) -> None:
    protocol = SITES[site].protocols[modality]
    scan = acquire(
        brain,
        modality=modality,
        site=SITES[site],
        scanner_from_grid=template.template_from_voxel,
        rng=np.random.default_rng(1),
    )
    content = encode(
        scan.scaled,
        scan.scanner_from_voxel,
        dtype=protocol.dtype,
        slope=protocol.slope,
        intercept=protocol.intercept,
    )
    image = decode(content)
    read = image.get_fdata(dtype=np.float32)
    step = 0 if protocol.dtype == "<f4" else protocol.slope
    assert image.get_data_dtype() == np.dtype(protocol.dtype)
    np.testing.assert_allclose(image.affine, scan.scanner_from_voxel, atol=1e-4)
    np.testing.assert_allclose(image.header.get_qform(), scan.scanner_from_voxel, atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), protocol.spacing_mm, rtol=1e-5)
    np.testing.assert_allclose(read, scan.scaled, atol=step / 2 + 1e-4)
    assert (read[scan.scaled == 0] == 0).all()
    for axis in range(3):  # the whole brain is in the field of view
        assert np.mean(scan.scaled.take([0, -1], axis) > 0) < 0.01


def test_equal_scans_are_equal_bytes() -> None:
    volume = np.random.default_rng(0).random((7, 9, 5), np.float32)
    first, second = (encode(volume, np.eye(4), dtype="<i2", slope=0.01, intercept=0.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("site", SITES)
def test_whatever_the_site_the_same_place_in_the_scanner_is_the_same_tissue(
    template: Template, brain: Brain, site: str
) -> None:
    pose = draw_pose(np.random.default_rng(5))
    scanner_from_grid = pose @ template.template_from_voxel
    scan = acquire(
        brain, modality="T1w", site=SITES[site], scanner_from_grid=scanner_from_grid, rng=np.random.default_rng(2)
    )
    labels = tissue_labels(brain, scan)
    places = np.argwhere(brain.white > 0.99)[::97]  # (n, 3), in the brain's grid
    voxel_from_grid = np.linalg.inv(scan.scanner_from_voxel) @ scanner_from_grid
    found = labels[tuple(np.rint(nib.affines.apply_affine(voxel_from_grid, places)).astype(int).T)]
    assert np.mean(found == 2) > 0.97


def test_white_matter_is_bright_in_t1w_and_fluid_in_t2w_and_neither_shines_in_flair(
    template: Template, brain: Brain
) -> None:
    assert brain.tumour is not None
    means = {}
    for modality in MODALITIES:
        of_scans = []
        for seed in range(4):  # a single scan may be an exception
            scan = acquire(
                brain,
                modality=modality,
                site=SITES["alder"],
                scanner_from_grid=template.template_from_voxel,
                rng=np.random.default_rng(seed),
            )
            lesion = lesion_mask(brain.tumour, scan)
            labels = np.where(lesion == 1, 4, tissue_labels(brain, scan))
            of_scans.append([scan.scaled[labels == label].mean() for label in (1, 2, 3, 4)])
        means[modality] = np.mean(of_scans, axis=0)
    grey, white, fluid, lesion = means["T1w"]
    assert fluid < grey < white
    assert fluid < lesion < white
    grey, white, fluid, lesion = means["T2w"]
    assert white < grey < min(fluid, lesion)
    grey, white, fluid, lesion = means["FLAIR"]
    assert fluid < white < grey < lesion


def test_a_thick_slice_averages_what_lies_in_it() -> None:
    thick = np.diag([1.0, 1.0, 4.0, 1.0])
    stripes = np.zeros((9, 8, 40), np.float32)
    stripes[:, :, ::2] = 1
    averaged = average_thick(stripes, thick)
    np.testing.assert_allclose(averaged[:, :, 12:28], 0.5, atol=0.01)
    np.testing.assert_array_equal(average_thick(stripes, np.eye(4)), stripes)


def test_movement_between_scans_is_in_the_voxels_and_not_in_the_header(template: Template, brain: Brain) -> None:
    """How far the brain's middle lies from where the T1w showed it."""
    centre = np.argwhere(brain.white > 0.5).mean(axis=0)

    def offset_mm(modality: str, seed: int) -> float:
        scan = acquire(
            brain,
            modality=modality,
            site=SITES["birch"],
            scanner_from_grid=template.template_from_voxel,
            rng=np.random.default_rng(seed),
        )
        scanner_from_grid = scan.scanner_from_voxel @ np.linalg.inv(scan.grid_from_voxel)
        there = nib.affines.apply_affine(scanner_from_grid, centre)
        return float(np.linalg.norm(there - nib.affines.apply_affine(template.template_from_voxel, centre)))

    assert offset_mm("T1w", 0) < 1e-6
    moved_mm = [offset_mm("FLAIR", seed) for seed in range(6)]
    assert max(moved_mm) > 2
    assert min(moved_mm) < 1.5
