"""Parts: rows to Parquet bytes, and the commit that makes them count.

A part is one file of one table, written whole from memory and named by its content. The bytes follow from the rows
alone: writer options are fixed, and nothing of the time or the host stands in them.

Rows of a session stand together, in slice order, ROWS_PER_GROUP to a row group that holds no other session:
readers fetch one row group at a time, and few of them hold what is wanted of a session. Each stack is a page, which is
what is compressed as one and has a checksum: `pages` says why.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfp.cohorts.sessions import Key
from bfp.storage import Place
from bfp.store import schemas
from bfp.store.layout import Commit, Part, SegmentationInfo, Table, commit, part_file

ROWS_PER_GROUP = 16
_CODED = ("cohort", "subject", "session", "segmentation", "modality", "reason")


def stack_table(
    key: Key,
    *,
    modalities: Sequence[str],
    present: Sequence[bool],
    volume: int | None,
    slices: np.ndarray,
    position_mm: np.ndarray,
    height: np.ndarray,
    foreground: np.ndarray,
    pixels: np.ndarray,
) -> pa.Table:
    """Rows of `stacks`: slices, position_mm, height and foreground (n,), pixels uint8 (n, 3, size, size).

    volume: which one of a 4-D scan they show, None where the scan is one.
    """
    count, _, size_px, _ = pixels.shape
    schema = schemas.stacks(size_px)
    columns = [
        *_identity(key, count),
        pa.array([list(modalities)] * count, schema.field("modalities").type),
        pa.array([list(present)] * count, schema.field("present").type),
        pa.array([volume] * count, pa.int32()),
        pa.array(slices, pa.int32()),
        pa.array(position_mm, pa.float32()),
        pa.array(height, pa.float32()),
        pa.array(foreground, pa.float32()),
        _binary(pixels.astype(np.uint8, copy=False)),
    ]
    return pa.table(columns, schema=schema)


def mask_table(key: Key, *, segmentation: str, modality: str, slices: np.ndarray, labels: np.ndarray) -> pa.Table:
    """Rows of `masks`: slices (n,), labels uint16 (n, size, size)."""
    count, size_px, _ = labels.shape
    columns = [
        *_identity(key, count),
        pa.array([segmentation] * count),
        pa.array(slices, pa.int32()),
        pa.array([modality] * count),
        _binary(labels.astype("<u2", copy=False)),
    ]
    return pa.table(columns, schema=schemas.masks(size_px))


class PartWriter:
    """One part in the making: compressed row group by row group, written to the store at the end."""

    def __init__(self, table: Table, schema: pa.Schema) -> None:
        self._table = table
        self._schema = schema
        self._buffer = io.BytesIO()
        self._row_groups: list[int] = []
        coded = [name for name in _CODED if name in schema.names]
        # The width of what fills most of a row, which ends a page: a value of another column never does.
        widths = [field.type.byte_width for field in schema if pa.types.is_fixed_size_binary(field.type)]
        self._bulky = bool(widths)
        self._file = pq.ParquetWriter(
            self._buffer,
            schema,
            # Of stacks lz4 takes 12 % more bytes and is read twice as fast: tests/benchmarks/README.md has the table.
            compression="lz4" if table == "stacks" else "zstd",
            use_dictionary=coded,
            write_statistics=coded,
            write_page_checksum=True,
            **({"data_page_size": widths[0], "write_batch_size": 1} if widths else {}),
        )
        self._small: list[pa.Table] = []

    @property
    def size_bytes(self) -> int:
        """How long it is by now, compressed."""
        return self._buffer.tell()

    def add(self, rows: pa.Table) -> None:
        """Add the rows of one session. Those with pixels or labels begin a row group; all others wait for the end."""
        if not self._bulky:
            self._small.append(rows)
            return
        for start in range(0, rows.num_rows, ROWS_PER_GROUP):
            self._write_group(rows.slice(start, ROWS_PER_GROUP))

    def write(self, store: Place) -> Part | None:
        """Put the part into the store; None where it has no row."""
        if self._small:
            self._write_group(pa.concat_tables(self._small))
        self._file.close()
        if not self._row_groups:
            return None
        data = self._buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        name = part_file(self._table, digest)
        # Where a part of this name stands, its content is the same: by another submitter, or an earlier, killed run.
        # It is written again, so that it counts as written now, and a prune spares it for the commit to come (`turns`).
        if not (store / name).create(data):
            (store / name).write(data)
        return Part(table=self._table, file=name, size_bytes=len(data), sha256=digest, row_groups=self._row_groups)

    def _write_group(self, rows: pa.Table) -> None:
        if rows.num_rows:
            self._file.write_table(rows, row_group_size=rows.num_rows)
            self._row_groups.append(rows.num_rows)


def commit_sessions(
    store: Place,
    rows: Iterable[Mapping[str, Any]],
    *,
    cohort: str,
    segmentations: Mapping[str, SegmentationInfo],
) -> Commit:
    """Commit what a cohort says of its sessions: rows as in schemas.SESSIONS, and what its segmentations mean."""
    writer = PartWriter("sessions", schemas.SESSIONS)
    writer.add(pa.Table.from_pylist(list(rows), schemas.SESSIONS))
    part = writer.write(store)
    content = Commit(
        name="", kind="sessions", cohort=cohort, parts=[part] if part else [], segmentations=dict(segmentations)
    )
    name = hashlib.sha256(content.encoded()).hexdigest()[:24]
    return commit(store, content.model_copy(update={"name": name}))


def _identity(key: Key, count: int) -> list[pa.Array]:
    return [pa.array([value] * count, pa.string()) for value in key]


def _binary(values: np.ndarray) -> pa.Array:
    """Each row's bytes, without a copy: (n, …) -> fixed-size binary (n,)."""
    values = np.ascontiguousarray(values)
    width = int(np.prod(values.shape[1:])) * values.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])
