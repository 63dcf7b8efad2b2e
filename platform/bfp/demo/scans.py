"""What a scanner makes of a brain: one modality on its own grid, and the NIfTI file as bytes.

Signals are linear mixtures: each tissue has a brightness in each modality (white matter of a T1w is about 1), a voxel
shows the mixture of what lies in it, and thick slices average along their axis. Brightness differs from scan to scan
by more than disease changes it on average, so that a histogram of grey values is a poor witness. Then come a smooth
bias field, Rician noise (the magnitude of a signal with noise in both channels; Gudbjartsson and Patz 1995), and the
site's way of storing numbers. There is no skull: outside the brain everything is 0, as after skull stripping.

Three spaces: `voxel`, (i, j, k) of a scan; `scanner`, mm, where the file's affine leads; `grid`, (x, y, z) of a brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import deflate
import nibabel as nib
import numpy as np
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bfp.demo.scanners import Site, scan_grid
from bfp.demo.tissue import Brain, Tumour

COMPRESSION = 2  # gzip level: higher ones cost seconds and save little, since noise does not compress
SKULL_STRIPPED_BELOW = 0.06  # of white matter: darker than any tissue, brighter than the tail of a blur


@dataclass(frozen=True, slots=True)
class Brightness:
    """How bright a modality shows each tissue, before jitter."""

    grey: float
    white: float
    fluid: float
    core: float
    oedema: float


BRIGHTNESS = {
    "T1w": Brightness(grey=0.66, white=1.0, fluid=0.26, core=0.42, oedema=0.66),
    "T2w": Brightness(grey=0.62, white=0.42, fluid=1.0, core=0.92, oedema=0.85),
    "FLAIR": Brightness(grey=0.72, white=0.55, fluid=0.17, core=1.0, oedema=1.05),
}
TISSUE_JITTER = 0.06  # standard deviation of a tissue's brightness between scans, as a share
GAMMA_SPREAD = 0.15  # standard deviation of the logarithm of a scan's gamma
GRAIN, CORE_GRAIN = 0.025, 0.12  # standard deviation within a tissue, and within a tumour's core, as a share
STILL_DEG, STILL_MM = 0.3, 0.3  # movement between the scans of a session, standard deviation
MOVED_DEG, MOVED_MM = 1.5, 2.5  # the same where the subject moved
MOVED_SHARE = 0.3  # of the T2w and FLAIR scans


class Scan(NamedTuple):
    """One modality. scaled: float32 (i, j, k), what a reader of the file gets; the matrices are float64 (4, 4)."""

    scaled: np.ndarray
    scanner_from_voxel: np.ndarray
    grid_from_voxel: np.ndarray


def draw_pose(rng: np.random.Generator) -> np.ndarray:
    """How a subject lies in the scanner, and the size of the head: (4, 4), scanner mm from template mm."""
    pose = _draw_rigid(rng, degrees=2.5, millimetres=2.5)
    pose[:3, :3] *= 1 + 0.03 * np.clip(rng.standard_normal(), -2, 2)
    return pose


def acquire(
    brain: Brain, *, modality: str, site: Site, scanner_from_grid: np.ndarray, rng: np.random.Generator
) -> Scan:
    """A scan of the brain that lies at scanner_from_grid. For all but a T1w the subject may have moved since."""
    protocol = site.protocols[modality]
    if modality != "T1w":
        scanner_from_grid = _draw_movement(rng) @ scanner_from_grid
    middle = scanner_from_grid[:3, :3] @ ((np.array(brain.grey.shape) - 1) / 2) + scanner_from_grid[:3, 3]
    shape, scanner_from_voxel = scan_grid(protocol, centre_mm=middle + rng.uniform(-3, 3, 3))
    grid_from_voxel = np.linalg.inv(scanner_from_grid) @ scanner_from_voxel

    signal = average_thick(_signal(brain, modality, rng), grid_from_voxel)
    magnitude = _disturbed(_sample(signal, grid_from_voxel, shape), site, rng)
    return Scan(magnitude * np.float32(protocol.white_level), scanner_from_voxel, grid_from_voxel)


def tissue_labels(brain: Brain, scan: Scan) -> np.ndarray:
    """What most of each voxel of the scan is: uint8 (i, j, k), 0 outside, 1 grey, 2 white, 3 fluid.

    Under a tumour, the tissue that it grew in.
    """
    shares = [
        _sample(share, scan.grid_from_voxel, scan.scaled.shape) for share in (brain.grey, brain.white, brain.fluid)
    ]
    outside = np.full_like(shares[0], 0.33)
    return np.argmax([outside, *shares], axis=0).astype(np.uint8)


def lesion_mask(tumour: Tumour, scan: Scan) -> np.ndarray:
    """Core and oedema, uint8 (i, j, k), 0 or 1."""
    share = _sample(np.maximum(tumour.core, tumour.oedema), scan.grid_from_voxel, scan.scaled.shape)
    return (share > 0.5).astype(np.uint8)


def encode(scaled: np.ndarray, scanner_from_voxel: np.ndarray, *, dtype: str, slope: float, intercept: float) -> bytes:
    """A gzipped NIfTI-1 file; scaled (i, j, k) is what a reader gets back after slope and intercept, up to rounding.

    Equal input gives equal bytes: the gzip header holds neither a time nor a name.
    """
    stored_type = np.dtype(dtype)
    stored = (scaled - np.float32(intercept)) / np.float32(slope)
    if stored_type.kind in "iu":
        limits = np.iinfo(stored_type)
        stored = np.clip(np.rint(stored), limits.min, limits.max)
    header = nib.Nifti1Header(endianness=">" if stored_type.byteorder == ">" else "<")
    header.set_data_dtype(stored_type)
    header.set_data_shape(scaled.shape)
    header.set_sform(scanner_from_voxel, code="scanner")
    header.set_qform(scanner_from_voxel, code="scanner")
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return bytes(
        deflate.gzip_compress(
            header.binaryblock + bytes(4) + stored.astype(stored_type).tobytes(order="F"), COMPRESSION
        )
    )


def average_thick(signal: np.ndarray, grid_from_voxel: np.ndarray) -> np.ndarray:
    """The signal (x, y, z) smoothed along those axes of the scan whose voxels are thicker than the grid's by half."""
    for step in grid_from_voxel[:3].T[:3]:
        thickness = float(np.linalg.norm(step))  # in voxels of the grid
        if thickness > 1.5:
            # A Gaussian of the standard deviation of a box as long as the voxel is thick.
            signal = ndimage.gaussian_filter1d(signal, thickness / np.sqrt(12), axis=int(np.argmax(np.abs(step))))
    return signal


def _draw_movement(rng: np.random.Generator) -> np.ndarray:
    """What the header does not know of: the subject's movement since the T1w, (4, 4), scanner mm from scanner mm."""
    moved = rng.random() < MOVED_SHARE
    return _draw_rigid(rng, degrees=MOVED_DEG if moved else STILL_DEG, millimetres=MOVED_MM if moved else STILL_MM)


def _draw_rigid(rng: np.random.Generator, *, degrees: float, millimetres: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees * rng.standard_normal(3), degrees=True).as_matrix()
    matrix[:3, 3] = millimetres * rng.standard_normal(3)
    return matrix


def _signal(brain: Brain, modality: str, rng: np.random.Generator) -> np.ndarray:
    """What the modality would show without a scanner's faults, float32 (x, y, z), white matter of a T1w about 1."""
    shown = BRIGHTNESS[modality]
    jitter = (1 + TISSUE_JITTER * rng.standard_normal(5)).astype(np.float32)
    signal = shown.grey * jitter[0] * brain.grey
    signal += shown.white * jitter[1] * brain.white
    signal += shown.fluid * jitter[2] * brain.fluid
    if brain.tumour is not None:
        signal += brain.tumour.oedema * (shown.oedema * jitter[3] - signal)
        signal += brain.tumour.core * (shown.core * jitter[4] * (1 + CORE_GRAIN * brain.grain) - signal)
    return signal * (1 + GRAIN * brain.grain)


def _sample(volume: np.ndarray, grid_from_voxel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A volume (x, y, z) of the brain's grid on a scan's, float32 (i, j, k), linearly, 0 beyond the volume."""
    sampler = SimpleITK.ResampleImageFilter()  # half of scipy's time
    sampler.SetNumberOfThreads(1)
    sampler.SetSize(shape)
    matrix, offset = grid_from_voxel[:3, :3].ravel().tolist(), grid_from_voxel[:3, 3].tolist()
    sampler.SetTransform(SimpleITK.AffineTransform(matrix, offset))
    source = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))  # in voxels: no origin, no spacing
    return SimpleITK.GetArrayFromImage(sampler.Execute(source)).T


def _disturbed(signal: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """The signal (i, j, k) with the site's bias field and noise, and nothing outside the brain."""
    i, j, k = (np.linspace(-1, 1, extent, dtype=np.float32) for extent in signal.shape)
    slope, bend = site.bias * rng.standard_normal((2, 3)).astype(np.float32)
    log_bias = (slope[0] * i + bend[0] * i**2)[:, None, None] + (slope[1] * j + bend[1] * j**2)[:, None]
    inside = signal > SKULL_STRIPPED_BELOW
    bias = np.exp(log_bias) * np.exp(slope[2] * k + bend[2] * k**2)
    gamma = np.float32(np.exp(GAMMA_SPREAD * rng.standard_normal()))
    received = signal[inside] ** gamma * bias[inside]
    real, imaginary = np.float32(site.noise) * rng.standard_normal((2, received.size), np.float32)
    magnitude = np.zeros_like(signal)
    magnitude[inside] = np.hypot(received + real, imaginary)
    return magnitude
