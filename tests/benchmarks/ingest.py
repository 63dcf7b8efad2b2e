"""How long one scan takes from the bytes of its file to uint8 slices, beside the libraries that others would use.

    python -m tests.benchmarks.ingest SCAN... [--repeats 7]

Needs tests/benchmarks/requirements.txt. Every approach reads the file (cached by the system), turns it to RAS,
resamples it to 1 mm, scales it between two percentiles to uint8 and crops or pads it to 224 × 224; each in a process of
its own, all on one core, in alternation, so that whatever else the machine does hits all alike. bfp's process is set up
as its workers are (`bfp.memory`), the others' as they come. Printed are medians, and how many times as long as bfp
the others take.

`floor` is what no approach can do without: libdeflate on the whole file, and one pass over the voxels.

What bfp returns is checked against nibabel and scipy in double precision on the same grid: the mean difference in grey
levels, and how far the window, which bfp takes from a voxel every 4 mm, is from that of all voxels of the same head.
Exits 1 where the mean difference is more than one grey level.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import deflate
import nibabel as nib
import numpy as np
from scipy import ndimage

from bfp.imaging.foreground import find_foreground
from bfp.imaging.inflate import is_gzip
from bfp.imaging.nifti import decode
from bfp.imaging.session import Prepared, prepare_session
from bfp.imaging.stacks import Recipe
from bfp.memory import SCANS, keep_freed_memory

SIZE_PX = 224
PERCENTILES = (0.5, 99.5)
MOST_DIFFERENT = 1.0  # grey levels, in the mean
RECIPE = Recipe(
    form="modalities",
    channels=("T1w", "T2w", "FLAIR"),
    modalities=(),
    gap_mm=0.0,
    spacing_mm=1.0,
    slice_spacing_mm=1.0,
    size_px=SIZE_PX,
    register="none",
    brain="none",
    bias_field="none",
    window_percentiles=PERCENTILES,
    min_foreground=0.0,
    intensity="percentiles",
    zscore_limit=3.0,
    slice_axis="axial",
    slice_range_mm=None,
    volumes="refuse",
    interpolation="linear",
)


def with_bfp(file: Path) -> np.ndarray:
    return prepared_by_bfp(file).pixels


def prepared_by_bfp(file: Path) -> Prepared:
    done = prepare_session({"T1w": decode(file.read_bytes())}, recipe=RECIPE)
    if done.rejected:
        sys.exit(f"{file}: {done.rejected['T1w']}")
    return done.prepared[0]


def with_monai(file: Path) -> np.ndarray:
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        LoadImage,
        Orientation,
        ResizeWithPadOrCrop,
        ScaleIntensityRangePercentiles,
        Spacing,
    )

    lower, upper = PERCENTILES
    steps = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            Spacing((1.0, 1.0, 1.0), mode="bilinear"),
            ScaleIntensityRangePercentiles(lower, upper, 0, 255, clip=True),
            ResizeWithPadOrCrop((SIZE_PX, SIZE_PX, -1)),
        ]
    )
    return np.asarray(steps(str(file))).astype(np.uint8)


def with_torchio(file: Path) -> np.ndarray:
    import torchio

    image = torchio.ScalarImage(file)
    image = torchio.Resample(1)(torchio.ToCanonical()(image))
    image = torchio.RescaleIntensity((0, 255), percentiles=PERCENTILES)(image)
    image = torchio.CropOrPad((SIZE_PX, SIZE_PX, image.shape[-1]))(image)
    return np.asarray(image.data.numpy()).astype(np.uint8)


def with_simpleitk(file: Path) -> np.ndarray:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(file), SimpleITK.sitkFloat32), "RAS")
    size = [round(n * spacing) for n, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    identity, linear = SimpleITK.Transform(), SimpleITK.sitkLinear
    image = SimpleITK.Resample(image, size, identity, linear, image.GetOrigin(), (1.0, 1.0, 1.0), image.GetDirection())
    return scaled_and_fitted(SimpleITK.GetArrayViewFromImage(image))


def with_nibabel_and_scipy(file: Path) -> np.ndarray:
    image = nib.as_closest_canonical(nib.load(file))
    voxels = image.get_fdata(dtype=np.float32)
    spacing = np.array(image.header.get_zooms()[:3], dtype=float)
    if not np.allclose(spacing, 1, atol=1e-3):
        voxels = ndimage.zoom(voxels, spacing, order=1)
    return scaled_and_fitted(voxels.T)


def scaled_and_fitted(slices: np.ndarray) -> np.ndarray:
    """Slices (z, y, x) to uint8 between the percentiles, cropped or padded about their middle."""
    low, high = np.percentile(slices, PERCENTILES)
    grey = np.clip((slices - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    out = np.zeros((len(grey), SIZE_PX, SIZE_PX), np.uint8)
    (take_y, put_y), (take_x, put_x) = (_about_the_middle(extent) for extent in grey.shape[1:])
    out[:, put_y, put_x] = grey[:, take_y, take_x]
    return out


def _about_the_middle(extent: int) -> tuple[slice, slice]:
    common = min(extent, SIZE_PX)
    take, put = (extent - common) // 2, (SIZE_PX - common) // 2
    return slice(take, take + common), slice(put, put + common)


def floor(file: Path) -> float:
    data = file.read_bytes()
    if is_gzip(data):
        image = nib.load(file)
        size = int(image.dataobj.offset + np.prod(image.shape) * image.get_data_dtype().itemsize)
        data = deflate.gzip_decompress(data, size)
    return float(np.frombuffer(data, np.uint8).max())


def difference(file: Path) -> tuple[float, float]:
    """(mean difference in grey levels, how far the window's ends are off, in grey levels) of bfp and the reference."""
    ours = prepared_by_bfp(file)
    (facts,) = ours.facts
    image = nib.load(file)
    voxels = np.asarray(image.get_fdata(dtype=np.float64))
    source_from_target = np.linalg.inv(image.affine) @ ours.working.ras_from_voxel
    low, high = facts.window.low, facts.window.high
    values = ndimage.affine_transform(
        voxels,
        source_from_target[:3, :3],
        offset=source_from_target[:3, 3],
        output_shape=ours.working.shape,
        order=1,
        mode="constant",
        cval=low,
    )
    grey = np.clip((values - low) * (255 / (high - low)), 0, 255).round()
    theirs = grey.T[ours.slices][:, ::-1]
    mean = float(np.abs(theirs - ours.pixels[:, 0]).mean())

    head = find_foreground(decode(file.read_bytes()))
    whole = np.zeros(voxels.shape, bool)
    at = np.rint(head.grid.voxels(nib.affines.apply_affine(image.affine, np.argwhere(np.ones(voxels.shape, bool)))))
    inside = np.all((at >= 0) & (at < head.mask.shape), axis=1)
    whole.reshape(-1)[inside] = head.mask[tuple(at[inside].astype(int).T)]
    exact = np.percentile(voxels[whole & (voxels >= head.values.min())], PERCENTILES)
    return mean, float(np.abs(exact - (low, high)).max() * 255 / (high - low))


APPROACHES: dict[str, Callable[[Path], object]] = {
    "floor": floor,
    "bfp": with_bfp,
    "MONAI": with_monai,
    "TorchIO": with_torchio,
    "SimpleITK": with_simpleitk,
    "nibabel+scipy": with_nibabel_and_scipy,
}


class Peer:
    """An approach in a process of its own, which does one file at a time."""

    def __init__(self, name: str) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        context.Process(target=serve, args=(name, theirs), daemon=True).start()

    def milliseconds(self, file: Path) -> float:
        self._ours.send(file)
        took: float = self._ours.recv()
        return took


def serve(name: str, connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    if name == "bfp":
        keep_freed_memory(**SCANS)
    with suppress(EOFError):  # when the other side is done
        while True:
            file = connection.recv()
            began = time.perf_counter()
            APPROACHES[name](file)
            connection.send(1000 * (time.perf_counter() - began))


def medians(peers: Mapping[str, Peer], file: Path, *, repeats: int) -> dict[str, float]:
    """Milliseconds of each approach, taken in turn after a first round that does not count."""
    rounds = [{name: peer.milliseconds(file) for name, peer in peers.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(took[name] for took in rounds[1:]) for name in peers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    peers = {name: Peer(name) for name in APPROACHES}
    different = list[str]()
    for file in given.scans:
        found = medians(peers, file, repeats=given.repeats)
        image = nib.load(file)
        spacing = " × ".join(f"{zoom:.2f}" for zoom in image.header.get_zooms()[:3])
        print(f"\n{file.name}: {' × '.join(map(str, image.shape))} {image.get_data_dtype()} at {spacing} mm")
        for name, took in found.items():
            print(f"  {name:14} {took:8.1f} ms   {took / found['bfp']:6.2f} × bfp")
        mean, window = difference(file)
        print(f"  bfp differs from nibabel + scipy by {mean:.3f} grey levels in the mean; its window by {window:.2f}")
        if not mean <= MOST_DIFFERENT:
            different.append(file.name)
    if different:
        sys.exit(f"more than {MOST_DIFFERENT:g} grey level from nibabel + scipy: {', '.join(different)}")


if __name__ == "__main__":
    main()
