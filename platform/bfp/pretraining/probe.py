"""What pretraining has learned of anatomy: residual tissue R² of an encoder's patch tokens (see `metrics.tissue`).

The same patches are read several times over: through each encoder that is given (the pretrained one, the same one
untrained), and as sorted pixels without any. Training never saw the held-out subjects, nor a label of anyone; the probe
learns from the other subjects' labels and is judged on the held-out ones.

Only a part of a large store is read: `MAX_PATCHES` patches, of stacks spread evenly over subjects and slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from bfp.batches.absent import fill_absent
from bfp.batches.held_out import is_held_out
from bfp.batches.reader import present_of
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
from bfp.store.reader import SliceStore, labels_of, pixels_of

MAX_PATCHES = 250_000
SORTED_PIXELS = "sorted pixels"
IDENTITY = ("cohort", "subject")
EXAMPLES, EXAMPLE_HEIGHT = 6, 0.55  # pictures: of so many subjects, a slice about so high in the head


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

    encoders: by name, the one in question first; all have the same patch. share: of the subjects that were held out.
    Raises InputError where the store lacks the segmentation or has too few subjects with it.
    """
    classes = store.classes(segmentation)
    labelled = _labelled(store, index, segmentation)
    (patch_px,) = {encoder.patch_px for encoder in encoders.values()}
    most = MAX_PATCHES // (store.size_px // patch_px) ** 2
    labelled = labelled.take(np.unique(np.linspace(0, len(labelled) - 1, most).astype(int)))
    for encoder in encoders.values():
        encoder.model.to(device)

    parts: list[_Patches] = []
    examples: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stacks in _read(store, labelled):
        shown = fill_absent(torch.tensor(stacks.pixels), torch.tensor(stacks.present))
        found = {
            name: tokens(encoder.model, shown, mean=encoder.mean, std=encoder.std).patches.cpu().numpy()
            for name, encoder in encoders.items()
        }
        held = is_held_out(stacks.rows, share=share)
        _add_examples(examples, stacks, held, next(iter(found.values())))
        found[SORTED_PIXELS] = sorted_pixels(shown.numpy(), patch_px=patch_px)
        parts.append(_inside_brain(stacks, held, found, classes=classes, patch_px=patch_px))
    return _judge(parts, examples, tissues=list(classes), seed=seed)


def _labelled(store: SliceStore, index: pa.Table, segmentation: str) -> pa.Table:
    """The stacks of the index that have labels, in order of subject and slice, with their labels as a column."""
    masks = store.masks(segmentation)
    # Labels lie on the working grid of the scan that is the stack's first present channel.
    where = {key: row for row, key in enumerate(_keys(masks, masks["modality"].to_pylist()))}
    shown = zip(index["modalities"].to_pylist(), index["present"].to_pylist(), strict=True)
    first = [modalities[present.index(True)] for modalities, present in shown]
    found = [(key, row, where[key]) for row, key in enumerate(_keys(index, first)) if key in where]
    rows = [row for _, row, _ in sorted(found)]
    labels = [mask for _, _, mask in sorted(found)]
    return index.take(rows).append_column("labels", masks["labels"].take(labels))


def _keys(table: pa.Table, modality: list[str]) -> Iterator[tuple[str, str, str, str, int]]:
    columns = [table[name].to_pylist() for name in ("cohort", "subject", "session")]
    return zip(*columns, modality, table["slice"].to_pylist(), strict=True)


class _Stacks(NamedTuple):
    """Some stacks: their rows of the index, pixels uint8 (n, 3, H, W), present bool (n, 3), labels uint16 (n, H, W)."""

    rows: pa.Table
    pixels: np.ndarray
    present: np.ndarray
    labels: np.ndarray


def _read(store: SliceStore, labelled: pa.Table) -> Iterator[_Stacks]:
    """The stacks with their pixels, a row group at a time."""
    files = store.stack_files()
    places_of = np.stack([labelled["file"].to_numpy(), labelled["row_group"].to_numpy()], axis=1)
    for file, group in np.unique(places_of, axis=0):
        rows = labelled.take(np.flatnonzero((places_of == (file, group)).all(axis=1)))
        pixels = pixels_of(store.read_row_group(files[file], int(group)))[rows["row"].to_numpy()]
        yield _Stacks(rows, pixels, present_of(rows), labels_of(rows.combine_chunks()))


class _Patches(NamedTuple):
    """The patches inside the brain of some stacks, P in all."""

    features: dict[str, np.ndarray]  # float32 (P, F)
    shares: np.ndarray
    places: np.ndarray
    subjects: np.ndarray
    held_out: np.ndarray


def _inside_brain(
    stacks: _Stacks,
    held: np.ndarray,
    found: Mapping[str, np.ndarray],
    *,
    classes: Mapping[str, Sequence[int]],
    patch_px: int,
) -> _Patches:
    shares = patch_shares(stacks.labels, classes=classes, patch_px=patch_px)  # (n, N, C)
    brain = inside_brain(shares)
    stack_of = np.nonzero(brain)[0]
    return _Patches(
        features={name: values[brain] for name, values in found.items()},
        shares=shares[brain],
        places=places(stacks.rows["height"].to_numpy(), patches=brain.shape[1])[brain],
        subjects=np.array(_subjects(stacks.rows))[stack_of],
        held_out=held[stack_of],
    )


def _subjects(rows: pa.Table) -> list[str]:
    """Text that tells subjects apart over cohorts."""
    return [
        f"{cohort}/{subject}" for cohort, subject in zip(*(rows[name].to_pylist() for name in IDENTITY), strict=True)
    ]


def _add_examples(
    examples: dict[str, tuple[np.ndarray, np.ndarray]], stacks: _Stacks, held: np.ndarray, patches: np.ndarray
) -> None:
    """Keep a slice near the middle of the head of a few held-out subjects."""
    middle = held & (np.abs(stacks.rows["height"].to_numpy() - EXAMPLE_HEIGHT) < 0.1)
    for at in np.flatnonzero(middle):
        subject = _subjects(stacks.rows)[at]
        if len(examples) < EXAMPLES and subject not in examples:
            examples[subject] = (stacks.pixels[at, stacks.present[at].argmax()], patches[at])


def _judge(
    parts: Sequence[_Patches],
    examples: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    tissues: list[str],
    seed: int,
) -> ProbeResult:
    shares, where, subjects, held = (
        np.concatenate([getattr(part, name) for part in parts]) for name in _Patches._fields[1:]
    )
    fits: dict[str, ResidualFit] = {}
    for name in parts[0].features:
        features = np.concatenate([part.features[name] for part in parts])
        fits[name] = fit_residuals(features, shares, places=where, subjects=subjects, held_out=held)
    first, *others = fits
    return ProbeResult(
        tissues=tissues,
        r2={name: r2(fit, seed=seed) for name, fit in fits.items()},
        by_tissue={name: r2_by_tissue(fit) for name, fit in fits.items()},
        gain={name: r2_difference(fits[first], fits[name], seed=seed) for name in others},
        patches=fits[first].patches,
        subjects=(len(np.unique(subjects[~held])), len(np.unique(subjects[held]))),
        images=np.stack([image for image, _ in examples.values()]),
        patch_tokens=np.stack([patches for _, patches in examples.values()]),
    )
