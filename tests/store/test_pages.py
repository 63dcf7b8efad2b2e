"""Pages read by hand are what Arrow reads, whoever wrote them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.errors import DamagedFile
from bfp.storage import Place
from bfp.store.pages import Packed, packed
from bfp.store.reader import SliceStore, pixels_of
from tests.store.makers import MadeSession, make_store

SHAPE, ROWS = (3, 10, 10), 16
WIDTH = 300
OURS: dict[str, Any] = {
    "compression": "lz4",
    "use_dictionary": False,
    "write_statistics": False,
    "data_page_size": WIDTH,
    "write_batch_size": 1,
    "write_page_checksum": True,
}


def packed_of(file: Path, values: list[bytes | None], *, nullable: bool = True, **options: Any) -> Packed | None:
    """The stacks of a file of one column, written with these options."""
    schema = pa.schema([pa.field("pixels", pa.binary(WIDTH), nullable=nullable)])
    pq.write_table(pa.table([pa.array(values, pa.binary(WIDTH))], schema=schema), file, **OURS | options)
    return packed(chunk_of(file), rows=len(values), shape=SHAPE, place=Place(str(file)))


def chunk_of(file: Path) -> pa.Buffer:
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return pa.py_buffer(file.read_bytes()[start : start + column.total_compressed_size])


@pytest.fixture
def values() -> list[bytes]:
    return [row.tobytes() for row in np.random.default_rng(0).integers(0, 9, (ROWS, WIDTH), dtype=np.uint8)]


@pytest.mark.parametrize("nullable", [True, False])
def test_stacks_come_one_by_one(tmp_path: Path, values: list[bytes], nullable: bool) -> None:
    found = packed_of(tmp_path / "x", values, nullable=nullable)
    assert found is not None
    assert len(found) == ROWS
    for row in (3, 15, 0, 3):
        assert found[row].shape == SHAPE
        assert found[row].tobytes() == values[row]


def test_pages_of_any_size_are_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, WIDTH, dtype=np.uint8).tobytes()
    values = [bytes(WIDTH), noise, noise[:60] + bytes(WIDTH - 60)]
    found = packed_of(tmp_path / "x", values)
    assert found is not None
    assert [found[row].tobytes() for row in range(3)] == values


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": True},
        {"data_page_size": 1000},
        {"data_page_version": "2.0"},
        {"column_encoding": {"pixels": "BYTE_STREAM_SPLIT"}},
        {"write_page_checksum": False},
    ],
    ids=str,
)
def test_what_is_not_a_page_for_each_stack_is_left_to_arrow(
    tmp_path: Path, values: list[bytes], options: dict[str, Any]
) -> None:
    assert packed_of(tmp_path / "x", values, **options) is None


def test_a_null_is_left_to_arrow(tmp_path: Path, values: list[bytes]) -> None:
    assert packed_of(tmp_path / "x", [*values[:-1], None]) is None


def test_no_damage_gives_other_pixels(tmp_path: Path, values: list[bytes]) -> None:
    assert packed_of(tmp_path / "x", values) is not None
    whole = bytes(chunk_of(tmp_path / "x"))
    random = np.random.default_rng(1)
    noticed = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        found = packed(pa.py_buffer(bytes(data)), rows=ROWS, shape=SHAPE, place=Place(str(tmp_path / "x")))
        if found is None:
            noticed += 1
            continue
        for row in range(ROWS):
            try:
                assert found[row].tobytes() == values[row]
            except DamagedFile:
                noticed += 1
    assert noticed > 1990  # a few bits of a header mean nothing


def test_a_size_that_leads_back_to_its_own_page_is_left_to_arrow(tmp_path: Path, values: list[bytes]) -> None:
    found = packed_of(tmp_path / "x", values)
    assert found is not None
    length = found.pages[0][0]  # of the first page's header
    data = bytearray(chunk_of(tmp_path / "x"))
    size = re.match(rb"\x15\x00\x15[\x80-\xff]*[\x00-\x7f]\x15(.[\x00-\x7f])", data, re.DOTALL)
    assert size is not None
    data[size.start(1) : size.end(1)] = bytes([2 * length - 1 | 128, 0])  # minus that length, in as many bytes
    assert packed(pa.py_buffer(bytes(data)), rows=ROWS, shape=SHAPE, place=Place("/x")) is None


@pytest.mark.parametrize("codec", ["zstd", "snappy", "none"])
def test_pixels_are_the_same_whatever_the_codec(tmp_path: Path, codec: str) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01", stacks=20)], size_px=12))
    (file,) = store.stack_files()
    pixels = [pixels_of(store.read_row_group(file, group)) for group in range(2)]
    pq.write_table(pq.read_table(file.place.path), file.place.path, row_group_size=16, compression=codec)
    again = SliceStore.open(store.place)
    for group in range(2):
        rows = again.read_packed(file, group)
        assert all(np.array_equal(rows[row], stack) for row, stack in enumerate(pixels[group]))


def test_stores_are_written_so_that_stacks_come_one_by_one(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01", stacks=20)]))
    (file,) = store.stack_files()
    for group in range(2):
        rows = store.read_packed(file, group)
        assert isinstance(rows, Packed)
        pixels = pixels_of(store.read_row_group(file, group))
        assert all(np.array_equal(rows[row], stack) for row, stack in enumerate(pixels))


@pytest.mark.parametrize("through", ["read_packed", "read_row_group"])
def test_a_damaged_page_is_named(tmp_path: Path, through: str) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01")]))
    (file,) = store.stack_files()
    with file.place.open_parquet() as parquet:
        column = parquet.metadata.row_group(0).column(parquet.schema.names.index("pixels"))
    data = bytearray(file.place.path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 100] ^= 4
    file.place.path.write_bytes(data)
    with pytest.raises(DamagedFile, match=f"{file.place}: damaged"):
        rows = getattr(store, through)(file, 0)
        _ = rows[len(rows) - 1]
