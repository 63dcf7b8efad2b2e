"""Cohorts: folders of files whose names alone matter, and small scans of heads."""

from __future__ import annotations

import gzip
import locale
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

from bfp.imaging.grid import Grid
from bfp.imaging.nifti import encode
from bfp.imaging.stacks import Recipe
from bfp.storage import Entry, Place

RECIPE = Recipe(
    form="modalities",
    channels=("T1w", "T2w", "FLAIR"),
    modalities=(),
    gap_mm=0.0,
    spacing_mm=5.0,
    slice_spacing_mm=6.0,
    size_px=44,
    register="none",
    brain="none",
    bias_field="none",
    window_percentiles=(0.5, 99.5),
    min_foreground=0.05,
    intensity="percentiles",
    zscore_limit=3.0,
    slice_axis="axial",
    slice_range_mm=None,
    volumes="refuse",
    interpolation="linear",
)
"""Quick, coarse stacks of the heads below."""


EACH = replace(RECIPE, form="neighbours", channels=("", "", ""), modalities=("T1w", "dwi"), gap_mm=9.0, volumes="each")
"""Stacks of every volume."""


def touch(root: Path, *names: str) -> Path:
    """Files of these names below a folder, each with its own content; "name -> target" is a link."""
    for name in names:
        path, _, target = name.partition(" -> ")
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if target:
            file.symlink_to(target)
        else:
            file.write_bytes(name.encode())
    return root


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def entry(file: Path) -> Entry:
    """A file as discovery lists it."""
    found = Place(str(file)).entry()
    assert found is not None
    return found


def head(shape: tuple[int, int, int], *, seed: int = 0) -> np.ndarray:
    """A head of sorts, int16 (x, y, z): an ellipsoid of tissue with a dark core off its centre, and noise all over."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in shape), indexing="ij")
    inside = (x / 0.75) ** 2 + (y / 0.85) ** 2 + (z / 0.9) ** 2 < 1
    core = ((x - 0.2) / 0.25) ** 2 + ((y + 0.1) / 0.4) ** 2 + ((z - 0.1) / 0.3) ** 2 < 1
    values = 300 * inside + 150 * inside * np.sin(3 * x + 5 * y) - 200 * core + random.normal(0, 8, shape)
    return np.clip(values, 0, 1000).astype(np.int16)


def write_scan(
    file: Path,
    *,
    shape: tuple[int, int, int] = (34, 42, 30),
    spacing_mm: tuple[float, float, float] = (5.0, 4.5, 6.0),
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 0,
    voxels: np.ndarray | None = None,
) -> Path:
    """A NIfTI file of a head (or of the voxels), RAS, centred on 0 but for the shift."""
    voxels = head(shape, seed=seed) if voxels is None else voxels
    ras_from_voxel = np.diag([*spacing_mm, 1.0])
    ras_from_voxel[:3, 3] = -np.array(spacing_mm) * (np.array(voxels.shape) - 1) / 2 + shift_mm
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(voxels, grid=Grid(voxels.shape, ras_from_voxel)))
    return file


def write_dicom(folder: Path, scan: Path, *, patient: str = "", number: int = 1) -> Path:
    """A NIfTI scan of whole numbers as a DICOM series, a file of its own for each slice. number: of the series."""
    image = SimpleITK.Cast(SimpleITK.ReadImage(str(scan)), SimpleITK.sitkInt16)
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    series = f"1.2.826.0.1.3680043.2.1125.{number}"
    locale_before = locale.setlocale(locale.LC_ALL)
    for slice_number in range(image.GetDepth()):
        plane = image[:, :, slice_number]
        position = image.TransformIndexToPhysicalPoint((0, 0, slice_number))
        tags = {
            "0008|0020": "20200101",  # one time for all slices: dcm2niix stacks no others
            "0008|0030": "120000",
            "0008|0060": "MR",
            "0008|103e": f"series {number}",
            "0008|0018": f"{series}.{slice_number + 1}",
            "0010|0010": patient,
            "0018|0050": f"{image.GetSpacing()[2]:.6f}",
            "0018|0088": f"{image.GetSpacing()[2]:.6f}",
            "0018|5100": "HFS",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.99",
            "0020|000e": series,
            "0020|0011": str(number),
            "0020|0013": str(slice_number + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{direction[at]:.6f}" for at in (0, 3, 6, 1, 4, 7)),
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{slice_number:04d}.dcm"))
        writer.Execute(plane)
    locale.setlocale(locale.LC_ALL, locale_before)  # GDCM leaves "C", in which no text but ASCII is read
    return folder


def heads(count: int, *, shape: tuple[int, int, int] = (34, 42, 30)) -> np.ndarray:
    """Volumes of one head, int16 (x, y, z, count): the same outline in each, filled with grey values of its own."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in shape), indexing="ij")
    inside = (x / 0.75) ** 2 + (y / 0.85) ** 2 + (z / 0.9) ** 2 < 1
    random = np.random.default_rng(0)
    volumes = [(number + 1) * random.integers(150, 400, shape) * inside for number in range(count)]
    return np.stack(volumes, axis=3).astype(np.int16)


def write_series(file: Path, series: np.ndarray, *, spacing_mm: tuple[float, float, float] = (5.0, 4.5, 6.0)) -> Path:
    """A 4-D NIfTI file of volumes (x, y, z, n), RAS, centred on 0."""
    ras_from_voxel = np.diag([*spacing_mm, 1.0])
    ras_from_voxel[:3, 3] = -np.array(spacing_mm) * (np.array(series.shape[:3]) - 1) / 2
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(series, ras_from_voxel).to_filename(file)
    return file


def as_pair(file: Path, *, zipped: bool = False) -> Path:
    """The scan of a file as a pair beside it, in its place; returns the header's file."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[344:348] = b"ni1\0"  # magic
    content[108:112] = bytes(4)  # vox_offset
    header, voxels = bytes(content[:352]), bytes(content[352:])
    ending = ".gz" if zipped else ""
    stem = file.name.partition(".")[0]
    for name, half in ((f"{stem}.hdr{ending}", header), (f"{stem}.img{ending}", voxels)):
        (file.parent / name).write_bytes(gzip.compress(half) if zipped else half)
    file.unlink()
    return file.parent / f"{stem}.hdr{ending}"


def write_bids(root: Path, *, subjects: int, modalities: tuple[str, ...] = ("T1w", "FLAIR")) -> Path:
    """A dataset of heads: a participants.tsv with ages, sub-01's scans broken one way, sub-02's FLAIR another."""
    ages = "".join(f"sub-{number:02d}\t{50 + number}\n" for number in range(1, subjects + 1))
    write(root / "participants.tsv", f"participant_id\tage\n{ages}")
    for number in range(1, subjects + 1):
        for modality in modalities:
            name = f"sub-{number:02d}/anat/sub-{number:02d}_{modality}.nii.gz"
            write_scan(root / name, seed=10 * number + len(modality))
    broken = root / "sub-01/anat/sub-01_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:3000])
    (root / "sub-02/anat/sub-02_FLAIR.nii.gz").write_bytes(b"not a scan")
    return root
