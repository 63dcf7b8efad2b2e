"""Pages read by hand are what Arrow reads, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.errors import StorageError
from bfp.store.pages import single_page
from bfp.store.reader import SliceStore, pixels_of
from tests.store.makers import MadeSession, make_store

WIDTH, ROWS = 300, 16
OURS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1 << 28}


def chunk_of(file: Path, values: list[bytes | None], *, nullable: bool = True, **options: Any) -> pa.Buffer:
    """The column chunk of a file of one column, written with these options."""
    schema = pa.schema([pa.field("pixels", pa.binary(WIDTH), nullable=nullable)])
    pq.write_table(pa.table([pa.array(values, pa.binary(WIDTH))], schema=schema), file, **OURS | options)
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return pa.py_buffer(file.read_bytes()[start : start + column.total_compressed_size])


@pytest.fixture
def values() -> list[bytes]:
    return [row.tobytes() for row in np.random.default_rng(0).integers(0, 9, (ROWS, WIDTH), dtype=np.uint8)]


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_one_plain_page_comes_whole(tmp_path: Path, values: list[bytes], nullable: bool, statistics: bool) -> None:
    chunk = chunk_of(tmp_path / "x", values, nullable=nullable, write_statistics=statistics)
    page = single_page(chunk, rows=ROWS, width=WIDTH)
    assert page is not None
    assert bytes(page) == b"".join(values)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": True},
        {"data_page_size": 1000, "write_batch_size": 1},
        {"data_page_version": "2.0"},
        {"column_encoding": {"pixels": "BYTE_STREAM_SPLIT"}},
    ],
)
def test_what_is_not_one_plain_page_is_left_to_arrow(
    tmp_path: Path, values: list[bytes], options: dict[str, Any]
) -> None:
    chunk = chunk_of(tmp_path / "x", values, **options)
    assert single_page(chunk, rows=ROWS, width=WIDTH) is None


def test_a_page_with_a_null_is_left_to_arrow(tmp_path: Path, values: list[bytes]) -> None:
    chunk = chunk_of(tmp_path / "x", [*values[:-1], None])
    assert single_page(chunk, rows=ROWS, width=WIDTH) is None


def test_no_header_however_damaged_is_more_than_no_page_or_an_error(tmp_path: Path, values: list[bytes]) -> None:
    whole = bytes(chunk_of(tmp_path / "x", values))
    random = np.random.default_rng(1)
    for _ in range(2000):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)])
        data[random.integers(0, min(len(data), 40))] = random.integers(0, 256)
        try:
            page = single_page(pa.py_buffer(bytes(data)), rows=ROWS, width=WIDTH)
        except OSError:
            continue
        assert page is None or page.size == ROWS * WIDTH


@pytest.mark.parametrize("codec", ["zstd", "snappy", "none"])
def test_pixels_are_the_same_whatever_the_codec(tmp_path: Path, codec: str) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01", stacks=20)], size_px=12))
    (file,) = store.stack_files()
    pixels = [pixels_of(store.read_row_group(file, group)) for group in range(2)]
    pq.write_table(pq.read_table(file.place.path), file.place.path, row_group_size=16, **OURS | {"compression": codec})
    again = SliceStore.open(store.place)
    for group in range(2):
        assert np.array_equal(again.read_pixels(file, group), pixels[group])


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    store = SliceStore.open(make_store(tmp_path / "s", sessions=[MadeSession("a", "01")]))
    (file,) = store.stack_files()
    with file.place.open_parquet() as parquet:
        column = parquet.metadata.row_group(0).column(parquet.schema.names.index("pixels"))
    data = bytearray(file.place.path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.place.path.write_bytes(data)
    with pytest.raises(StorageError, match=str(file.place)):
        store.read_pixels(file, 0)
