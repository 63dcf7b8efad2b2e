"""Vectors of a store's stacks, chunk by chunk.

A chunk is some row groups of the store. It is named by all that its vectors follow from: the description, the store's
part files (whose names are their content), the rows and the modalities that are shown. So a store that grew, or a run
that was stopped, computes only what is new.

`part` says which stacks of a session are pooled together: the modality in a store of neighbours, "" in the other form.
The volumes of a 4-D scan are one part: how many there are differs from session to session.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from bfp.batches.absent import fill_absent
from bfp.batches.plan import by_row_group
from bfp.features.describe import Describe
from bfp.store.reader import SliceStore, StackFile, pixels_of

STACKS_PER_CHUNK = 512
CHANNELS = 3
FORMAT = 2
"""Of the kept tables; 2 has `planes`."""
_SECONDS = b"bfp.seconds"
_COLUMNS = ["cohort", "subject", "session", "modalities", "present", "height"]


def schema(width: int) -> pa.Schema:
    """One row per stack, with its vector of `width` numbers.

    planes: a hash of the pixels of each channel of the store, whatever was shown; 0 where it is empty (`doubles`).
    """
    identity = [pa.field(name, pa.string()) for name in ("cohort", "subject", "session", "part")]
    height, planes = pa.field("height", pa.float32()), pa.field("planes", pa.list_(pa.int64(), CHANNELS))
    return pa.schema([*identity, height, planes, pa.field("vector", pa.list_(pa.float32(), width))])


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one row group of stacks."""

    file: StackFile
    row_group: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of extraction: its name, and the rows to describe."""

    name: str
    rows: tuple[Rows, ...]

    @property
    def stacks(self) -> int:
        return sum(len(group.rows) for group in self.rows)


def plan_chunks(
    store: SliceStore, index: pa.Table, *, identity: str, shown: Sequence[str], stacks_per_chunk: int = STACKS_PER_CHUNK
) -> list[Chunk]:
    """The chunks for the stacks of an index (rows of `store.stack_index()`), in the order of the store.

    identity: of the description. shown: the modalities that it may see.
    """
    files = store.stack_files()
    file, group, row = (index[name].to_numpy() for name in ("file", "row_group", "row"))
    groups = [Rows(files[file[at[0]]], int(group[at[0]]), tuple(row[at].tolist())) for at in by_row_group(index)]
    chunks, filled = [list[Rows]()], 0
    for rows_of_group in groups:
        if filled >= stacks_per_chunk:
            chunks.append([])
            filled = 0
        chunks[-1].append(rows_of_group)
        filled += len(rows_of_group.rows)
    return [_named(chunk, identity, shown) for chunk in chunks if chunk]


def describe_chunk(
    store: SliceStore, chunk: Chunk, describe: Describe, *, shown: Sequence[str], batch_size: int
) -> pa.Table:
    """The vectors of a chunk's stacks, in its order, columns as in `schema`."""
    tables = [store.read_row_group(group.file, group.row_group).take(list(group.rows)) for group in chunk.rows]
    pixels = np.concatenate([pixels_of(table) for table in tables])
    # Files of several versions of bfp, of which some have further columns, may stand side by side.
    stacks = pa.concat_tables([table.select(_COLUMNS) for table in tables])
    modalities = np.array(stacks["modalities"].to_pylist())  # (n, C)
    visible = np.array(stacks["present"].to_pylist()) & np.isin(modalities, list(shown))
    vectors = np.concatenate(
        [
            describe(
                fill_absent(
                    torch.from_numpy(pixels[at : at + batch_size]), torch.from_numpy(visible[at : at + batch_size])
                )
            )
            for at in range(0, len(pixels), batch_size)
        ]
    )
    parts = modalities[:, 0] if store.form == "neighbours" else [""] * len(modalities)
    columns = [stacks["cohort"], stacks["subject"], stacks["session"], pa.array(parts, pa.string()), stacks["height"]]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(plane_hashes(pixels).ravel()), CHANNELS))
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    return pa.table(columns, schema=schema(vectors.shape[1]))


def plane_hashes(pixels: np.ndarray) -> np.ndarray:
    """int64 (n, C) of uint8 (n, C, H, W)."""
    found = np.zeros(pixels.shape[:2], np.int64)
    for at in zip(*np.nonzero(pixels.any(axis=(2, 3))), strict=True):
        digest = hashlib.blake2b(pixels[at].tobytes(), digest_size=8).digest()
        found[at] = int.from_bytes(digest, "little", signed=True)
    return found


def vectors_of(features: pa.Table) -> np.ndarray:
    """The column `vector` as float32 (n, D)."""
    column = features["vector"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def with_seconds(table: pa.Table, seconds: float) -> pa.Table:
    """The table, telling how long one worker took for its vectors."""
    return table.replace_schema_metadata({_SECONDS: f"{seconds:.3f}"})


def seconds_of(table: pa.Table) -> float:
    """What `with_seconds` said; 0 where an earlier bfp described the stacks."""
    return float((table.schema.metadata or {}).get(_SECONDS, 0))


def _named(rows: list[Rows], identity: str, shown: Sequence[str]) -> Chunk:
    content = [
        FORMAT,
        identity,
        sorted(shown),
        [[group.file.place.name, group.row_group, group.rows] for group in rows],
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Chunk(name=digest[:24], rows=tuple(rows))
