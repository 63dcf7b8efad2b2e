"""Files of tensors (safetensors) as bytes: what their header tells, and whether they are those that were written.

A model folder's model.json names the hash of its file of tensors, and that one's metadata a seal of all else that
stands in model.json: neither can be exchanged, or changed by hand, without the other. Under the seal stands the hash of
the encoder's config.json too, which says how pixels are normalised, and names the encoder's weights by their hash.

The format (huggingface/safetensors, README): 8 bytes, little-endian, are the length of a JSON header; behind it lie the
tensors, whose types, shapes and places the header tells, with texts of whoever wrote it under `__metadata__`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple

from bfp.errors import InputError
from bfp.models.folders import CONFIG
from bfp.storage import Place

_METADATA = "__metadata__"
HASH, SEAL = "_sha256", "seal"
CONFIG_HASH = "encoder_config"
"""Its field in model.json; without `HASH` at its end, since it stands under the seal."""
ENCODER = "encoder"


class Header(NamedTuple):
    """tensors: dtype, shape and data_offsets by name, offsets from `start`; metadata: texts."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    start: int


def header_of(data: bytes | mmap.mmap) -> Header:
    """Raises ValueError where the bytes are no such file."""
    start = 8 + int.from_bytes(data[:8], "little")
    told: dict[str, Any] = json.loads(data[8:start])
    return Header({name: each for name, each in told.items() if name != _METADATA}, told.get(_METADATA, {}), start)


def seal_of(told: Mapping[str, Any]) -> str:
    """Of what model.json tells, the hash of its file of tensors left out."""
    plain = {name: value for name, value in told.items() if not name.endswith(HASH)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_seal(told: Mapping[str, Any], data: bytes, *, file: Place) -> None:
    """Raise InputError where model.json tells something else than when its tensors were written.

    told, file: model.json, as it was read; data: of the file of tensors.
    """
    if header_of(data).metadata.get(SEAL) != seal_of(told):
        raise InputError(
            f"{file}: was changed since it was written with its weights, so that what is predicted would follow from "
            "other settings than the model was judged with; bring it back as it was, or fine-tune again"
        )


def read_written(file: Place, *, sha256: str, what: str) -> bytes:
    """The bytes of a file that model.json was written with. what: it is, for people.

    Raises InputError where it holds others.
    """
    data = file.read()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{file}: not the {what} that model.json was written with (SHA-256 {found[:16]}, expected {sha256[:16]}); "
            "fine-tune again, or bring the folder back whole"
        )
    return data


def config_hash(folder: Place) -> str:
    """Of the config.json of the encoder in a model's folder, for its model.json."""
    return hashlib.sha256((folder / ENCODER / CONFIG).read()).hexdigest()


def check_config(told: Mapping[str, Any], folder: Place) -> None:
    """Raise InputError where the encoder's config.json is not the one that model.json was written with."""
    read_written(folder / ENCODER / CONFIG, sha256=told[CONFIG_HASH], what="encoder's config.json")
