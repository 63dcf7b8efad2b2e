"""The brain in a reference scan: from a mask that the cohort brings, from a scan that is skull-stripped, by deepbet
or by a program of the user's own (`mask_program`).

A scan is taken for skull-stripped when two things hold, which are told with their figures where they do not:

    one value fills its faces        at least FACES of the voxels on the six faces of the volume, as nothing else does
                                     but air that was set to zero
    the rest is as large as a brain  SMALLEST_ML to LARGEST_ML differ from that value; a head has 2,700 ml and more

deepbet (Fisch et al. 2023, arXiv 2308.07003; MIT) is an extra that carries its weights; it was trained on T1w. It runs
on a CPU, in the threads that torch has been given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.nifti import Volume
from bfp.imaging.stacks import BrainMask

FACES = 0.9  # of a defaced head with its air at zero: 0.87; of a skull-stripped one: 1.0
SMALLEST_ML, LARGEST_ML = 300.0, 2100.0  # from a newborn's brain to the largest skull's inside

# How deepbet says that there is nothing to cut out: its own words, and NumPy's where no component is left.
_NOTHING_FOUND = ("Not enough foreground", "argmax of an empty sequence")


class Brain(NamedTuple):
    """mask: non-zero in the brain. source: where it comes from. size_ml: of all that it holds."""

    mask: Volume
    source: BrainMask
    size_ml: float
    warnings: tuple[str, ...] = ()


def find_brain(
    volume: Volume,
    *,
    how: BrainMask,
    given: Volume | None,
    for_deepbet: bool,
    by_program: Callable[[], Volume] | None = None,
) -> Brain | None:
    """The brain in a scan, by the recipe's `brain`; None where it asks for none.

    given: the mask that the cohort brings, non-zero in the brain, in the scan's space; its warnings are the brain's.
    for_deepbet: whether this is the scan that deepbet may look at. by_program: makes the mask, as `given`, where the
    recipe wants one by the user's program.
    Raises Unusable (NO_BRAIN_MASK), and what by_program raises.
    """
    match how:
        case "none":
            return None
        case "given":
            if given is None:
                raise Unusable(Reason.NO_BRAIN_MASK, "`brain: given` needs a mask for each session")
            return _checked(given, "given")
        case "image":
            return stripped_brain(volume)
        case "deepbet" | "program":
            if how == "deepbet" and not for_deepbet:
                raise Unusable(Reason.NO_BRAIN_MASK, "deepbet finds it in a T1w, and there is none that can be used")
            try:
                stripped = stripped_brain(volume)
            except Unusable:
                if how == "deepbet":
                    return _checked(deepbet_mask(volume), how)
                assert by_program is not None
                return _checked(by_program(), how)
            told = f"skull-stripped already: what is not background, {stripped.size_ml:,.0f} ml, is taken for the brain"
            return stripped._replace(warnings=(told,))


def stripped_brain(volume: Volume) -> Brain:
    """All that is not background in a scan that is skull-stripped already.

    Raises Unusable (NO_BRAIN_MASK) where it is not.
    """
    stored = volume.stored
    faces = np.concatenate([stored.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    share = float(counts.max() / faces.size)
    if share < FACES:
        raise Unusable(
            Reason.NO_BRAIN_MASK,
            f"not skull-stripped: {share:.0%} of the voxels on the volume's faces have one value, {FACES:.0%} are "
            "expected",
        )
    mask = _mask(volume, stored != values[counts.argmax()])
    size_ml = _size_ml(mask)
    if not SMALLEST_ML <= size_ml <= LARGEST_ML:
        raise Unusable(
            Reason.NO_BRAIN_MASK,
            f"not skull-stripped: {size_ml:,.0f} ml are not background; a brain has {SMALLEST_ML:,.0f} to "
            f"{LARGEST_ML:,.0f} ml",
        )
    return Brain(mask, "image", size_ml)


def deepbet_mask(volume: Volume) -> Volume:
    """The brain that deepbet finds in a T1w, on its grid.

    Raises Unusable (NO_BRAIN_MASK) where it finds none or fails.
    """
    import nibabel

    image = nibabel.Nifti1Image(volume.scaled(volume.stored), volume.grid.ras_from_voxel)
    try:
        _, mask, _ = _deepbet().run(image)
    except (AssertionError, ValueError) as error:
        nothing = any(words in str(error) for words in _NOTHING_FOUND)
        detail = "deepbet finds no brain in the scan" if nothing else f"deepbet failed: {type(error).__name__}: {error}"
        raise Unusable(Reason.NO_BRAIN_MASK, detail) from error
    return _mask(volume, np.asarray(mask.dataobj) != 0)


@cache
def _deepbet() -> Any:
    """The networks, once in a process."""
    from deepbet import BrainExtraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of how the weights were saved
        return BrainExtraction(no_gpu=True)


def _mask(volume: Volume, mask: np.ndarray) -> Volume:
    return replace(volume, stored=mask.view(np.uint8), slope=1.0, intercept=0.0, warnings=())


def _checked(mask: Volume, source: BrainMask) -> Brain:
    """A mask and, where it is too small or too large for a brain, a warning."""
    size_ml = _size_ml(mask)
    told = (
        f"the brain mask holds {size_ml:,.0f} ml, {SMALLEST_ML:,.0f} to {LARGEST_ML:,.0f} are expected: is it a brain?"
    )
    doubts = () if SMALLEST_ML <= size_ml <= LARGEST_ML else (told,)
    return Brain(mask, source, size_ml, mask.warnings + doubts)


def _size_ml(mask: Volume) -> float:
    voxel_ml = abs(float(np.linalg.det(mask.grid.ras_from_voxel[:3, :3]))) / 1000
    return float(np.count_nonzero(mask.stored)) * voxel_ml
