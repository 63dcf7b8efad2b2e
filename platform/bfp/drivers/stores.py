"""Stores and encoders, as pretrain and finetune name them: opened, filtered and checked. Light: no torch.

A run pins the snapshots of its stores in `<run>/inputs.json` when it is first submitted: a store that grows changes
nothing under it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bfp.errors import InputError
from bfp.models.folders import encoder_folder, read_config
from bfp.specs.backbones import backbones
from bfp.specs.encoders import off_patch_grid, parse_encoder
from bfp.specs.fields import Where
from bfp.specs.finetune import Finetune
from bfp.specs.pretrain import Pretrain
from bfp.storage import Place, place

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.store.reader import SliceStore

PIN = "inputs.json"


def open_stores(places: Sequence[str], *, run: Place) -> tuple[SliceStore, ...]:
    """The stores at the snapshots that the run has pinned, or at their latest ones where it has not begun."""
    from bfp.store.reader import SliceStore

    pin = run / PIN
    pinned = [entry["snapshot"] for entry in json.loads(pin.read())["stores"]] if pin.exists() else [None] * len(places)
    return tuple(SliceStore.open(place(at), snapshot) for at, snapshot in zip(places, pinned, strict=True))


def pin_stores(stores: Sequence[SliceStore], *, run: Place) -> None:
    """From now on the run uses these snapshots."""
    pin = run / PIN
    if not pin.exists():
        entries = [{"store": str(store.place), "snapshot": store.snapshot} for store in stores]
        pin.write(json.dumps({"stores": entries}).encode())


def wanted_stacks(store: SliceStore, where: Where) -> pa.Table:
    """The part of the store's index that `where` keeps."""
    from bfp.store.where import read_subjects, select

    return select(
        store.stack_index(),
        cohorts=where.cohorts,
        modalities=where.modalities,
        subjects=read_subjects(place(where.subjects)) if where.subjects else None,
        exclude_subjects=read_subjects(place(where.exclude_subjects)) if where.exclude_subjects else None,
    )


def encoder_arguments(spec: Pretrain | Finetune, *, size_px: int) -> dict[str, Any]:
    """The arguments of `models.encoder.load` for the encoder that a spec names, made for images of size_px."""
    reference, shape = parse_encoder(spec.encoder), spec.encoder_shape
    return {
        "origin": reference.origin,
        "name": reference.name,
        "uri": place(reference.uri).uri if reference.uri else None,
        "size_px": size_px,
        "seed": spec.seed,
        **(shape.model_dump() if shape else {}),
    }


def check_encoder(text: str) -> int | None:
    """The side in pixels of the patches of an encoder, as a spec names it; None for Meta's files, which are not opened.

    Raises InputError where it is not there.
    """
    reference = parse_encoder(text)
    if reference.uri is not None:
        at = place(reference.uri)
        if reference.origin == "folder":
            return _patch_of_folder(at)
        if not at.exists():
            raise InputError(f"encoder: {at}: no such file of weights")
    return backbones()[reference.name.split(".")[0]].patch_px if reference.name else None


def check_size(store: SliceStore, *, patch_px: int | None, encoder: str) -> None:
    """Raise InputError where the store's stacks are no whole number of the encoder's patches."""
    if patch_px and (wrong := off_patch_grid(store.size_px, patch_px=patch_px, encoder=encoder)):
        raise InputError(
            f"store: {store.place}: its stacks have {store.size_px} pixels, {wrong}; ingest with another size, or take "
            "an encoder with another patch"
        )


def _patch_of_folder(at: Place) -> int | None:
    try:
        arguments = read_config(encoder_folder(at))["model_args"]
    except InputError as error:
        raise InputError(f"encoder: {error}") from error
    size_px = arguments.get("patch_size")
    return int(size_px) if size_px else None
