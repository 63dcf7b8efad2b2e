"""What sessions give a decoder: the patch tokens of their stacks, the pixels beside them, and the class of each pixel.

One file a session, which a decoder reads again and again, in any order, without holding it:

    <kept>/<hash>.safetensors
        tokens float16 (n, N, F)    of a frozen encoder, those of several blocks beside one another
        pixels uint8 (n, 3, S, S)   zeros in what the encoder is not shown
        classes uint8 (n, S, S)     0 the background, else the place of the class
        heights float32 (n,)        slices int32 (n,), rising

The tokens of a frozen encoder are the same in every epoch and fold, and computing them costs some ten times what a
decoder's step does: so they are computed once. A file is named by all that it follows from, as the chunks of
`extraction` are. Tokens pass through the encoder's final norm, so that float16 has room for them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy
import torch
from torch import Tensor

from bfp.batches.absent import fill_absent
from bfp.batches.plan import by_row_group
from bfp.cohorts.sessions import Key
from bfp.cohorts.threads import side_by_side
from bfp.features.extraction import CHANNELS, Rows, plane_hashes
from bfp.features.tokens import layered_patches
from bfp.models.encoder import LoadedEncoder
from bfp.models.tensor_files import header_of
from bfp.storage import Place
from bfp.store.reader import SliceStore, labels_of, pixels_of

FORMAT = 1
"""Of the kept files."""
READS_AT_ONCE = 16
_SECONDS, _HEADER_BYTES = "seconds", 1 << 16


class TokenMaps:
    """Stacks uint8 (b, 3, S, S) -> patch tokens float16 (b, N, F) of some blocks of an encoder."""

    def __init__(self, encoder: LoadedEncoder, blocks: Sequence[int]) -> None:
        self._encoder, self._blocks = encoder, tuple(blocks)
        normalised = ",".join(f"{value:.6f}" for value in (*encoder.mean, *encoder.std))
        self.identity = (
            f"patch tokens of {encoder.description['weights']} after blocks {self._blocks}, pixels normalised by "
            f"{normalised}, absent channels filled by {encoder.fill}"
        )

    def __call__(self, pixels: Tensor) -> np.ndarray:
        return layered_patches(self._encoder, pixels, self._blocks).half().cpu().numpy()

    def to(self, device: str) -> Self:
        self._encoder.model.to(device)
        return self


@dataclass(frozen=True, slots=True)
class Labels:
    """The segmentation whose classes are learned: its name in the store, and the label values of each class."""

    segmentation: str
    classes: Mapping[str, Sequence[int]]

    def classes_of(self, labels: np.ndarray) -> np.ndarray:
        """uint16 labels to uint8 classes, of the same shape: 0 for what is in none."""
        table = np.zeros(np.iinfo(np.uint16).max + 1, np.uint8)
        for number, values in enumerate(self.classes.values(), start=1):
            table[list(values)] = number
        return table[labels]


@dataclass(frozen=True, slots=True)
class SessionRows:
    """The stacks of one session that have labels: its name among the kept files, and where they stand in the store.

    file: place in `store.stack_files()`; rows: by row group, slices rising.
    """

    key: Key
    name: str
    file: int
    rows: tuple[Rows, ...]

    @property
    def stacks(self) -> int:
        return sum(len(group.rows) for group in self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class SessionMaps:
    """A session as a decoder takes it: arrays as in the head of this module, read where they are looked at."""

    tokens: np.ndarray
    pixels: np.ndarray
    classes: np.ndarray
    heights: np.ndarray
    slices: np.ndarray

    def __len__(self) -> int:
        return len(self.slices)


def plan_sessions(
    store: SliceStore, index: pa.Table, labels: Labels, *, identity: str, shown: Sequence[str]
) -> list[SessionRows]:
    """The sessions of an index (rows of `store.stack_index()`), in the order of their keys."""
    files = store.stack_files()
    file, group, row = (index[name].to_numpy() for name in ("file", "row_group", "row"))
    keys = [Key(*key) for key in zip(*(index[name].to_pylist() for name in Key._fields), strict=True)]
    found: dict[tuple[Key, int], list[Rows]] = {}
    for at in by_row_group(index):
        at = at[np.argsort(row[at])]
        rows = Rows(files[file[at[0]]], int(group[at[0]]), tuple(row[at].tolist()))
        found.setdefault((keys[at[0]], int(file[at[0]])), []).append(rows)
    meant = [FORMAT, identity, sorted(shown), labels.segmentation, [[k, list(v)] for k, v in labels.classes.items()]]
    planned = []
    for (key, number), groups in sorted(found.items()):
        content = [*meant, key, [[each.file.place.name, each.row_group, each.rows] for each in groups]]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        planned.append(SessionRows(key, f"{digest[:24]}.safetensors", number, tuple(groups)))
    return planned


def map_session(
    store: SliceStore,
    session: SessionRows,
    masks: pa.Table,
    maps: TokenMaps,
    labels: Labels,
    *,
    shown: Sequence[str],
    batch_size: int,
) -> bytes:
    """The file of one session, which says what it took. masks: the label stacks of its shard (`store.masks_beside`)."""
    began = time.perf_counter()
    tables = [store.read_row_group(group.file, group.row_group).take(list(group.rows)) for group in session.rows]
    stacks = pa.concat_tables([table.select(["modalities", "present", "slice", "height"]) for table in tables])
    visible = np.array(stacks["present"].to_pylist()) & np.isin(np.array(stacks["modalities"].to_pylist()), list(shown))
    raw = np.concatenate([pixels_of(table) for table in tables])
    pixels = fill_absent(torch.from_numpy(raw), torch.from_numpy(visible))
    slices = stacks["slice"].to_numpy().astype(np.int32)
    own = masks
    for name, value in session.key._asdict().items():
        own = own.filter(pc.equal(own[name], value))
    drawn = own["slice"].to_numpy()
    order = np.argsort(drawn)
    places = order[np.searchsorted(drawn, slices, sorter=order)]
    assert np.array_equal(drawn[places], slices), f"{session.key}: stacks without labels"
    arrays = {
        "tokens": np.concatenate([maps(own) for own in pixels.split(batch_size)]),
        "pixels": pixels.numpy(),
        "classes": labels.classes_of(labels_of(own.take(places))),
        "heights": stacks["height"].to_numpy().astype(np.float32),
        "slices": slices,
    }
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(whole, metadata={_SECONDS: f"{time.perf_counter() - began:.3f}"})


def planes_of(sessions: Sequence[Key], maps: Sequence[Place]) -> pa.Table:
    """What `doubles` compares, of all stacks of kept files: cohort, subject, planes. sessions: whose files they are."""
    tables = []
    for key, file in zip(sessions, maps, strict=True):
        hashes = plane_hashes(open_maps(file).pixels)
        planes = pa.FixedSizeListArray.from_arrays(pa.array(hashes.ravel()), CHANNELS)
        identity = {name: [getattr(key, name)] * len(hashes) for name in ("cohort", "subject")}
        tables.append(pa.table({**identity, "planes": planes}))
    return pa.concat_tables(tables)


def seconds_of(files: Sequence[Place]) -> float:
    """What kept files took one worker; of one that an earlier bfp wrote nobody knows, and it counts nothing."""

    def own(file: Place) -> float:
        start = next(iter(file.pieces(_HEADER_BYTES)))
        return float(header_of(start).metadata.get(_SECONDS, 0))

    return sum(side_by_side(own, files, at_once=READS_AT_ONCE))


def open_maps(file: Place) -> SessionMaps:
    """The session of a kept file; of a local one nothing is read yet."""
    if file.is_local:
        with file.path.open("rb") as opened:
            data: mmap.mmap | bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    else:
        data = file.read()
    header = header_of(data)
    types = {"F16": np.float16, "U8": np.uint8, "F32": np.float32, "I32": np.int32}
    arrays = {}
    for name, each in header.tensors.items():
        count, at = int(np.prod(each["shape"])), header.start + each["data_offsets"][0]
        arrays[name] = np.frombuffer(data, types[each["dtype"]], count, at).reshape(each["shape"])
    return SessionMaps(**arrays)
