"""The template: the ICBM152 maps that nilearn ships, as the shares of three tissues, and where disease acts on them.

Arrays are float32 (x, y, z), RAS+, `SPACING_MM` apart. The shares of grey matter, white matter and fluid add up to the
brain's envelope, which is 1 inside and 0 outside: there is no skull in the maps and none is made up.

nilearn brings a T1-weighted average without skull and probability maps of grey and white matter, uint8 at 1 mm
(Fonov et al. 2011, NeuroImage 54:313). An average of 152 brains is smooth where folds differ; raising the shares to a
power makes borders as sharp as in one brain, and fluid is put back where average folds have closed over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bfp.errors import InputError

SPACING_MM = 1.5
MARGIN_MM = 18.0  # of background around the brain
RIM_MM = 4.5  # of fluid around the brain, at most: what is left of it is each subject's own
SHARPNESS = 1.7  # the power
PUSH_WIDTH_MM = 7.0  # how far the widening of the ventricles reaches into the tissue
VELOCITY_STEP = 3  # template voxels between the nodes of a velocity field (see `warp`)


@dataclass(frozen=True, slots=True)
class Template:
    """The template brain.

    outside_mm: distance from the brain in the fluid around it, 0 within.
    outer: 0 to 1, how near to the outer surface of the cortex (pia) a voxel lies: there the cortex is lost first.
    ventricle_push: float32 (3, x, y, z) on the nodes of velocity fields, mm, at most 1 mm long: where to look in the
        template so that the ventricles come out wider.
    template_from_voxel: (4, 4), mm from voxel index.
    """

    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    outside_mm: np.ndarray
    outer: np.ndarray
    ventricle_push: np.ndarray
    template_from_voxel: np.ndarray


def load_template() -> Template:
    """The template from the installed nilearn. Raises InputError where nilearn is not installed."""
    files = find_maps()
    maps = [np.asarray(nib.nifti1.load(file).dataobj, np.float32) / 255 for file in files.values()]
    maps, template_from_voxel = _cropped(maps, nib.nifti1.load(files["t1"]).affine)
    t1, grey, white = (_coarsened(volume) for volume in maps)

    brain = ndimage.binary_fill_holes(ndimage.binary_closing((t1 > 0.05) | (grey + white > 0.3), iterations=3))
    inside_mm = ndimage.distance_transform_edt(brain) * SPACING_MM
    outside_mm = ndimage.distance_transform_edt(~brain) * SPACING_MM
    envelope = np.clip(0.5 + (RIM_MM + inside_mm - outside_mm) / SPACING_MM, 0, 1)

    shares = np.stack([grey, white, np.clip(1 - grey - white, 0, 1)]) ** SHARPNESS
    shares *= envelope / shares.sum(axis=0)
    grey, white, fluid = shares.astype(np.float32)
    millimetres = _millimetres(fluid.shape, template_from_voxel)
    return Template(
        grey=grey,
        white=white,
        fluid=fluid,
        outside_mm=outside_mm.astype(np.float32),
        outer=_outer_cortex(white, millimetres),
        ventricle_push=_ventricle_push(_ventricles(fluid, inside_mm, millimetres)),
        template_from_voxel=template_from_voxel,
    )


def find_maps() -> dict[str, Path]:
    """The ICBM152 maps t1, gm and wm of the installed nilearn. Raises InputError, with the remedy, without them."""
    found = find_spec("nilearn")  # locates the package without the seconds that importing it takes
    if found is None or found.origin is None:
        raise InputError("the demo's anatomy comes with nilearn, which is not installed: pip install nilearn")
    folder = Path(found.origin).parent / "datasets" / "data"
    files = {name: folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")}
    absent = [file.name for file in files.values() if not file.exists()]
    if absent:
        raise InputError(f"nilearn lacks its ICBM152 maps {', '.join(absent)}: pip install --force-reinstall nilearn")
    return files


def _cropped(maps: Sequence[np.ndarray], template_from_map: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The maps with MARGIN_MM of background on every side of the brain, and mm from the coarser voxels to come."""
    margin = round(MARGIN_MM)
    first = np.array([where.min() for where in np.nonzero(maps[0])])
    last = np.array([where.max() for where in np.nonzero(maps[0])])
    brain = tuple(slice(start, end + 1) for start, end in zip(first, last, strict=True))
    template_from_voxel = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    template_from_voxel[:3, 3] = template_from_map[:3, 3] + first - margin
    return [np.pad(volume[brain], margin) for volume in maps], template_from_voxel


def _coarsened(volume: np.ndarray) -> np.ndarray:
    """A 1 mm volume at SPACING_MM, first voxel on first voxel, smoothed so that nothing aliases."""
    shape = tuple(int((extent - 1) / SPACING_MM) + 1 for extent in volume.shape)
    smooth = ndimage.gaussian_filter(volume, 0.4)
    return ndimage.affine_transform(smooth, np.full(3, SPACING_MM), output_shape=shape, order=1)


def _millimetres(shape: tuple[int, ...], template_from_voxel: np.ndarray) -> list[np.ndarray]:
    """The three coordinates of the voxels in mm, each along its own axis, for broadcasting."""
    return [
        np.asarray(template_from_voxel[axis, 3] + SPACING_MM * index, np.float32)
        for axis, index in enumerate(np.ogrid[: shape[0], : shape[1], : shape[2]])
    ]


def _outer_cortex(white: np.ndarray, millimetres: list[np.ndarray]) -> np.ndarray:
    """Nearness to the pia, read off as farness from white matter; only the cortex of the cerebrum has any."""
    far_from_white = np.clip(1 - 4 * ndimage.gaussian_filter(white, 2.0 / SPACING_MM), 0, 1)
    x, y, z = millimetres
    nuclei = (x / 36) ** 2 + ((y + 6) / 34) ** 2 + ((z - 2) / 24) ** 2  # thalamus and striatum lie within 1
    brainstem = (x / 20) ** 2 + ((y + 28) / 18) ** 2 + ((z + 35) / 32) ** 2
    cerebellum = (x / 58) ** 2 + ((y + 66) / 36) ** 2 + ((z + 42) / 32) ** 2
    return far_from_white * np.clip(4 * (np.minimum(np.minimum(nuclei, brainstem), cerebellum) - 1), 0, 1)


def _ventricles(fluid: np.ndarray, inside_mm: np.ndarray, millimetres: list[np.ndarray]) -> np.ndarray:
    """The lateral and third ventricles, bool: the largest body of fluid deep inside the upper brain."""
    x, y, z = millimetres
    deep = (fluid > 0.4) & (inside_mm > 15) & (np.abs(x) < 45) & (y > -60) & (y < 45) & (z > -12) & (z < 35)
    bodies, count = ndimage.label(deep)
    sizes = ndimage.sum_labels(deep, bodies, np.arange(1, count + 1))
    return bodies == 1 + int(np.argmax(sizes))


def _ventricle_push(ventricles: np.ndarray) -> np.ndarray:
    """The smoothed ventricles' gradient on velocity nodes: it points inwards, where a wider ventricle has to look."""
    near = ndimage.gaussian_filter(ventricles.astype(np.float32), PUSH_WIDTH_MM / SPACING_MM)
    push = np.stack(np.gradient(near))[:, ::VELOCITY_STEP, ::VELOCITY_STEP, ::VELOCITY_STEP]
    return (push / np.linalg.norm(push, axis=0).max()).astype(np.float32)
