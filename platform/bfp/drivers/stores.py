"""Stores and encoders, as pretrain and finetune name them: opened, filtered and checked. Light: no torch.

A run pins the snapshots of its stores in `<run>/inputs.json` when it is first submitted: a store that grows changes
nothing under it. The lists of subjects that its spec names stand there too: one that has changed is refused, since what
the run says of whom it has seen would not be true.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bfp.errors import InputError
from bfp.models.folders import encoder_folder, read_config
from bfp.specs.backbones import backbones
from bfp.specs.encoders import EncoderShape, off_patch_grid, parse_encoder
from bfp.specs.fields import Where
from bfp.specs.finetune import Finetune
from bfp.specs.pretrain import Pretrain
from bfp.storage import Place, intact, place
from bfp.words import counted, some_of

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.store.reader import SliceStore

PIN = "inputs.json"


def open_stores(places: Sequence[str], where: Where, *, run: Place) -> tuple[SliceStore, ...]:
    """The stores at the snapshots that the run has pinned, or at their latest ones where it has not used them yet.

    Raises InputError where a list of subjects is no longer what it was when the run began.
    """
    from bfp.store.reader import SliceStore

    pinned = _pinned(run)
    if pinned is None:
        return tuple(SliceStore.open(place(at)) for at in places)
    for name, subjects in _lists(where).items():
        if pinned.get(name, subjects) != subjects:
            gone, new = (
                counted(len(set(one or ()) - set(other or ())), "name")
                for one, other in ((pinned[name], subjects), (subjects, pinned[name]))
            )
            raise InputError(
                f"where.{name}: {getattr(where, name)}: {new} more and {gone} fewer than when {run} began, which has "
                "learned from other subjects than it would say; bring the list back, or give --name another"
            )
    snapshots = {entry["store"]: entry["snapshot"] for entry in pinned["stores"]}
    return tuple(SliceStore.open(at, snapshots.get(str(at))) for at in map(place, places))


def pin_inputs(stores: Sequence[SliceStore], where: Where, *, run: Place) -> None:
    """From now on the run uses these snapshots, and these lists of subjects."""
    pinned = _pinned(run) or {"stores": [], **_lists(where)}
    known = {entry["store"] for entry in pinned["stores"]}
    new = [{"store": str(each.place), "snapshot": each.snapshot} for each in stores if str(each.place) not in known]
    if new:
        (run / PIN).write(json.dumps({**pinned, "stores": [*pinned["stores"], *new]}).encode())


def wanted_stacks(store: SliceStore, where: Where) -> pa.Table:
    """The part of the store's index that `where` keeps."""
    from bfp.store.where import select

    return select(store.stack_index(), cohorts=where.cohorts, modalities=where.modalities, **_lists(where))


def warnings_of(stores: Sequence[SliceStore], where: Where) -> list[str]:
    """What a reader of the plan should know of the filters: what they name that no store has."""
    from bfp.store.where import unknown_subjects

    if where == Where():
        return []  # no index is read
    there = [_there(store) for store in stores]
    found = [
        f"where.{name}: {unknown}: is in no store; {'; '.join(map(in_words, stores))}"
        for name in ("cohorts", "modalities")
        for unknown in getattr(where, name) or ()
        if not any(unknown in each[name] for each in there)
    ]
    for name, subjects in _lists(where).items():
        unknown = [set(unknown_subjects(store.stack_index(), subjects or ())) for store in stores]
        if nobodys := sorted(set.intersection(*unknown)):
            found.append(
                f"where.{name}: no subject is called {some_of(nobodys)} ({counted(len(nobodys), 'name')} of the list)"
            )
    return found


def in_words(store: SliceStore) -> str:
    """What `where` can choose among."""
    cohorts, modalities = (", ".join(names) for names in _there(store).values())
    return f"{store.place} has stacks of the cohorts {cohorts}, in the modalities {modalities}"


def _there(store: SliceStore) -> dict[str, list[str]]:
    """The cohorts of a store and the modalities that its stacks show."""
    import pyarrow.compute as pc

    index = store.stack_index()
    shown = pc.list_flatten(index["modalities"]).filter(pc.list_flatten(index["present"]))
    return {"cohorts": sorted(index["cohort"].unique().to_pylist()), "modalities": sorted(shown.unique().to_pylist())}


def _lists(where: Where) -> dict[str, list[str] | None]:
    """The subjects of the lists that `where` names, sorted; None where it names none."""
    from bfp.store.where import read_subjects

    files = {"subjects": where.subjects, "exclude_subjects": where.exclude_subjects}
    return {name: sorted(set(read_subjects(place(file)))) if file else None for name, file in files.items()}


def _pinned(run: Place) -> dict[str, Any] | None:
    """What the run has pinned; None where it has not begun."""
    pin = run / PIN
    if not pin.exists():
        return None
    with intact(pin, "list of inputs"):
        found: dict[str, Any] = json.loads(pin.read())
    return found


def encoder_arguments(spec: Pretrain | Finetune, *, size_px: int) -> dict[str, Any]:
    """The arguments of `models.encoder.load` for the encoder that a spec names, made for images of size_px."""
    return loading(spec.encoder, spec.encoder_shape, seed=spec.seed, size_px=size_px)


def loading(encoder: str, shape: EncoderShape | None, *, seed: int, size_px: int) -> dict[str, Any]:
    """The same for an encoder by its name; shape: of an untrained one."""
    reference = parse_encoder(encoder)
    shape = shape if reference.origin == "random" else None
    return {
        "origin": reference.origin,
        "name": reference.name,
        "uri": place(reference.uri).uri if reference.uri else None,
        "size_px": size_px,
        "seed": seed,
        **(shape.model_dump() if shape else {}),
    }


def check_encoder(text: str, *, field: str = "encoder") -> int | None:
    """The side in pixels of the patches of an encoder, as a spec names it; None for Meta's files, which are not opened.

    field: where it stands, for messages. Raises InputError where it is not there.
    """
    reference = parse_encoder(text)
    if reference.uri is not None:
        at = place(reference.uri)
        if reference.origin == "folder":
            return _patch_of_folder(at, field=field)
        if not at.exists():
            raise InputError(f"{field}: {at}: no such file of weights")
    return backbones()[reference.name.split(".")[0]].patch_px if reference.name else None


def imaging_of(store: SliceStore) -> int:
    """The version of `bfp.imaging` that made all of its stacks: new scans have to become the same.

    Raises InputError where there is more than one.
    """
    versions = store.imaging
    if len(versions) != 1:
        raise InputError(
            f"{store.place}: its stacks were made by imaging versions {' and '.join(map(str, versions))}, so that no "
            "model of them can say how new scans are to be prepared; ingest its cohorts again with one bfp"
        )
    return versions[0]


def check_size(store: SliceStore, *, patch_px: int | None, encoder: str) -> None:
    """Raise InputError where the store's stacks are no whole number of the encoder's patches."""
    if patch_px and (wrong := off_patch_grid(store.size_px, patch_px=patch_px, encoder=encoder)):
        raise InputError(
            f"store: {store.place}: its stacks have {store.size_px} pixels, {wrong}; ingest with another size, or take "
            "an encoder with another patch"
        )


def _patch_of_folder(at: Place, *, field: str) -> int | None:
    try:
        arguments = read_config(encoder_folder(at))["model_args"]
    except InputError as error:
        known = f"; for timm's {at.name} write random:{at.name} or timm:{at.name}" if at.name in backbones() else ""
        raise InputError(f"{field}: {error}{known}") from error
    size_px = arguments.get("patch_size")
    return int(size_px) if size_px else None
