"""What pretraining has learned of anatomy: residual tissue R² of an encoder's patch tokens (see `metrics.tissue`).

The same patches are read several times over: through each encoder that is given (the pretrained one, the same one
untrained), and as sorted pixels without any. Training never saw the held-out subjects, nor a label of anyone; the probe
learns from the other subjects' labels and is judged on the held-out ones.

Only a part of a large store is read: `MAX_PATCHES` patches, of stacks spread evenly over subjects and slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from bfp.batches.absent import fill_absent, present_in
from bfp.batches.held_out import is_held_out
from bfp.features.tokens import tokens
from bfp.metrics.bootstrap import Interval
from bfp.metrics.tissue import (
    ResidualFit,
    fit_residuals,
    inside_brain,
    patch_shares,
    places,
    r2,
    r2_by_tissue,
    r2_difference,
    sorted_pixels,
)
from bfp.models.encoder import LoadedEncoder
from bfp.pretraining.labelled import Read, check_enough, labelled_stacks, read_stacks, subjects_of
from bfp.store.reader import SliceStore, labels_of

MAX_PATCHES = 250_000
SORTED_PIXELS = "sorted pixels"
EXAMPLES, EXAMPLE_HEIGHT = 6, 0.55  # pictures: of so many subjects, the slice nearest to this height of the head


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """r2, by_tissue: of each reading by its name; gain: how much the first reading is above each of the others.

    patches, subjects: learned from and judged on. images uint8 (n, H, W) and patch_tokens float32 (n, N, D): held-out
    slices (first present channel) with the first encoder's tokens, to look at.
    """

    tissues: list[str]
    r2: dict[str, Interval]
    by_tissue: dict[str, list[float]]
    gain: dict[str, Interval]
    patches: tuple[int, int]
    subjects: tuple[int, int]
    images: np.ndarray
    patch_tokens: np.ndarray


def probe(
    store: SliceStore,
    index: pa.Table,
    encoders: Mapping[str, LoadedEncoder],
    *,
    segmentation: str,
    share: float,
    device: torch.device,
    seed: int,
) -> ProbeResult:
    """Judge encoders, made for the store's size, on the part of the store that `index` holds.

    encoders: by name, the one in question first; all have the same patch and the same filling of absent channels,
    which sorted pixels are shown too. share: of the subjects that were held out.
    Raises InputError where the store lacks the segmentation or has too few subjects with it.
    """
    classes = store.classes(segmentation)
    ((patch_px, fill),) = {(encoder.patch_px, encoder.fill) for encoder in encoders.values()}
    most = MAX_PATCHES // (store.size_px // patch_px) ** 2
    labelled = stacks_with_labels(store, index, segmentation=segmentation, share=share, most=most)
    held = is_held_out(labelled, share=share)
    pictured = _examples(labelled, held)
    for encoder in encoders.values():
        encoder.model.to(device)

    parts: list[Patches] = []
    examples: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for stacks in read_stacks(store, labelled):
        features = {name: tokens(encoder, stacks.pixels).patches.cpu().numpy() for name, encoder in encoders.items()}
        for place in np.flatnonzero(np.isin(stacks.at, pictured)):
            image = next(channel for channel in stacks.pixels[place] if channel.any())
            examples[stacks.at[place]] = image, next(iter(features.values()))[place]
        pixels = torch.from_numpy(stacks.pixels)
        shown = fill_absent(pixels, present_in(pixels), fill).numpy()
        features[SORTED_PIXELS] = sorted_pixels(shown, patch_px=patch_px)
        parts.append(brain_patches(stacks, held[stacks.at], features, classes=classes, patch_px=patch_px))
    return _judge(parts, [examples[at] for at in sorted(examples)], tissues=list(classes), seed=seed)


def stacks_with_labels(store: SliceStore, index: pa.Table, *, segmentation: str, share: float, most: int) -> pa.Table:
    """At most so many rows of the index that have label maps, with them as `labels`, spread over subjects and slices.

    Raises InputError where the store lacks the segmentation or has too few subjects with it.
    """
    masks = store.masks(segmentation)
    found = labelled_stacks(index, masks)
    check_enough(found.stacks, share=share)
    few = np.unique(np.linspace(0, len(found.masks) - 1, most).astype(int))
    return found.stacks.take(few).append_column("labels", masks["labels"].take(found.masks[few]))


class Patches(NamedTuple):
    """The patches inside the brain of some stacks, P in all."""

    features: dict[str, np.ndarray]  # float32 (P, F)
    shares: np.ndarray
    places: np.ndarray
    subjects: np.ndarray
    held_out: np.ndarray


def brain_patches(
    stacks: Read,
    held: np.ndarray,
    found: Mapping[str, np.ndarray],
    *,
    classes: Mapping[str, Sequence[int]],
    patch_px: int,
) -> Patches:
    """Of stacks with labels the patches that count. held: bool (n,); found: features of each reading, (n, N, F)."""
    shares = patch_shares(labels_of(stacks.rows.combine_chunks()), classes=classes, patch_px=patch_px)  # (n, N, C)
    brain = inside_brain(shares)
    stack_of = np.nonzero(brain)[0]
    return Patches(
        features={name: values[brain] for name, values in found.items()},
        shares=shares[brain],
        places=places(stacks.rows["height"].to_numpy(), patches=brain.shape[1])[brain],
        subjects=np.array(subjects_of(stacks.rows))[stack_of],
        held_out=held[stack_of],
    )


def residual_fit(parts: Sequence[Patches], name: str) -> ResidualFit:
    """What the reading `name` leaves unexplained. Raises InputError with too few subjects or patches of brain."""
    features = np.concatenate([part.features[name] for part in parts])
    shares, where, subjects, held = (
        np.concatenate([getattr(part, name) for part in parts]) for name in Patches._fields[1:]
    )
    return fit_residuals(features, shares, places=where, subjects=subjects, held_out=held)


def _examples(labelled: pa.Table, held: np.ndarray) -> list[int]:
    """The slice nearest to the middle of the head of each of a few held-out subjects, as places in the table."""
    off, subjects = np.abs(labelled["height"].to_numpy() - EXAMPLE_HEIGHT), subjects_of(labelled)
    nearest: dict[str, int] = {}
    for at in np.flatnonzero(held).tolist():
        best = nearest.setdefault(subjects[at], at)
        if off[at] < off[best]:
            nearest[subjects[at]] = at
    return list(nearest.values())[:EXAMPLES]


def _judge(
    parts: Sequence[Patches],
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    tissues: list[str],
    seed: int,
) -> ProbeResult:
    fits = {name: residual_fit(parts, name) for name in parts[0].features}
    subjects, held = (np.concatenate([getattr(part, name) for part in parts]) for name in ("subjects", "held_out"))
    first, *others = fits
    return ProbeResult(
        tissues=tissues,
        r2={name: r2(fit, seed=seed) for name, fit in fits.items()},
        by_tissue={name: r2_by_tissue(fit) for name, fit in fits.items()},
        gain={name: r2_difference(fits[first], fits[name], seed=seed) for name in others},
        patches=fits[first].patches,
        subjects=(len(np.unique(subjects[~held])), len(np.unique(subjects[held]))),
        images=np.stack([image for image, _ in examples]),
        patch_tokens=np.stack([patches for _, patches in examples]),
    )
