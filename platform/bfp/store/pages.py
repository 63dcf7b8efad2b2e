"""The stacks of a row group as they lie in the file: each compressed by itself, with a checksum.

The writer makes a page of every stack. Training uses the stacks of a row group at different steps, so they are kept as
they are, in a quarter of the memory, and decompressed one by one, each while the processor has it in its cache. What
does not look like the writer's pages is left to Arrow.

A page's header follows the Parquet format's `parquet.thrift` (PageHeader, DataPageHeader) in Thrift's compact protocol:
of a field, one byte that holds how far its number is from the last one's (high half) and its type (low half: 5 a whole
number, 12 a struct), then the value. Whole numbers have their sign folded in (0, -1, 1, -2, … are 0, 1, 2, 3, …) and
come in sevens of bits, lowest first, all but the last with the eighth bit set. A zero byte ends a struct.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import deflate
import numpy as np
import pyarrow as pa

from bfp.storage import Place, intact

# Arrow's own pool gives pages back to the system at once, which then has to clear them for the next.
_POOL = pa.system_memory_pool()
_LZ4 = pa.Codec("lz4_raw")
# Before the value of a column that may have nulls: 4 bytes with a length of 2, and 2 that say that it is none.
_LEVELS = 6
_NUMBER = rb"[\x80-\xff]{0,4}[\x00-\x7f]"


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Stacks by their row: `packed[row]` is uint8 (3, size, size), read-only.

    Raises DamagedFile where a stack is not as it was written.
    """

    place: Place
    chunk: pa.Buffer
    pages: list[tuple[int, int, int]]
    """Of each stack: where in the chunk its compressed bytes begin and end, and their CRC-32."""
    levels: int
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, row: int) -> np.ndarray:
        start, end, crc = self.pages[row]
        compressed = self.chunk[start:end]
        size = self.levels + self.shape[0] * self.shape[1] * self.shape[2]
        with intact(self.place, "a Parquet file"):
            if deflate.crc32(compressed) != crc:
                raise ValueError("the checksum of a stack is another")
            page = _LZ4.decompress(compressed, decompressed_size=size, memory_pool=_POOL)
        return np.frombuffer(page, np.uint8, offset=self.levels).reshape(self.shape)


def packed(chunk: pa.Buffer, *, rows: int, shape: tuple[int, int, int], place: Place) -> Packed | None:
    """The stacks of an LZ4 column chunk that is a page with a checksum for each of its rows, without nulls.

    None where it is anything else.
    """
    width = shape[0] * shape[1] * shape[2]
    data = memoryview(chunk).cast("B")
    for levels in (_LEVELS, 0):
        header = _header(levels + width)
        pages: list[tuple[int, int, int]] = []
        at = 0
        while len(pages) < rows and (found := header.match(data, at)):
            start = found.end()
            at = start + _decoded(found[1])
            pages.append((start, at, _decoded(found[2]) & 0xFFFFFFFF))
        if len(pages) == rows and at == len(data):
            return Packed(place, chunk, pages, levels, shape)
    return None


@lru_cache
def _header(size: int) -> re.Pattern[bytes]:
    """Of a page of one plain value: the groups are the compressed size and the checksum."""
    return re.compile(
        rb"\x15\x00"  # 1: a data page
        rb"\x15" + re.escape(_encoded(size)) +  # 2: its bytes
        rb"\x15(" + _NUMBER + rb")"  # 3: compressed
        rb"\x15(" + _NUMBER + rb")"  # 4: their checksum
        rb"\x1c"  # 5: of data pages:
        rb"\x15\x02"  # 1: one value
        rb"\x15\x00"  # 2: plain
        rb"\x15\x06\x15\x06"  # 3, 4: how levels are encoded
        rb"(?:\x1c\x00)?"  # 5: no statistics
        rb"\x00\x00"
    )  # fmt: skip


def _encoded(number: int) -> bytes:
    number, found = number << 1, bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _decoded(number: bytes) -> int:
    value = 0
    for byte in reversed(number):
        value = value << 7 | byte & 127
    return (value >> 1) ^ -(value & 1)
