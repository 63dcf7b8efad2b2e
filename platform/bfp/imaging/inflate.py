"""Bounded decompression: the bytes of a file that may be gzip, never more of them than asked for.

One megabyte of gzip can hold a gigabyte, so the caller reads the first bytes, learns the size that they promise, and
asks for exactly that much. libdeflate is the fastest on whole buffers but stops after the first of several gzip
members; what it cannot do goes to ISA-L, which streams, and which tells a file that ends early from a damaged one.
What follows the wanted bytes is ignored, as is anything behind the last member.
"""

from __future__ import annotations

import deflate
from isal import isal_zlib

from bfp.errors import Reason, Unusable

# A gzip header may carry a name and a comment of any length; one that has not ended after so many bytes is no scan.
_LONGEST_GZIP_HEADER = 1 << 20
# How much may follow the voxels in their member before its checksum is given up on.
_LONGEST_TAIL = 1 << 20
# Block-wise gzip has a member for each 64 KiB: enough for 2 GiB, and a flood of empty members ends.
_MOST_MEMBERS = 1 << 15
_PIECE = 1 << 16
# How much is inflated to learn whether a file is damaged whose header makes no sense.
_LONGEST_CHECK = 1 << 26


def is_gzip(data: bytes | memoryview) -> bool:
    return bytes(data[:2]) == b"\x1f\x8b"


def first_bytes(data: bytes | memoryview, size: int) -> bytes:
    """Up to `size` (> 0) first bytes of the content; fewer where the file ends.

    Raises Unusable (CORRUPT) when the compressed data are damaged before that.
    """
    if not is_gzip(data):
        return bytes(data[:size])
    members = _Members(memoryview(data)[:_LONGEST_GZIP_HEADER])
    content = bytes(members.read(size))
    if not content and members.is_open and len(data) > _LONGEST_GZIP_HEADER:
        raise Unusable(Reason.CORRUPT, f"gzip: no content in the first {_LONGEST_GZIP_HEADER:,} bytes")
    return content


def content_of(data: bytes | memoryview, size: int) -> bytes | bytearray | memoryview:
    """Exactly the first `size` (> 0) bytes of the content; the checksums of what was read are checked.

    Raises Unusable: TRUNCATED when there are fewer, CORRUPT when the compressed data are damaged.
    """
    content: bytes | bytearray | memoryview
    if not is_gzip(data):
        content = memoryview(data)[:size]
    else:
        try:
            content = deflate.gzip_decompress(data, size)
        except deflate.DeflateError:
            content = b""  # damaged, or longer than asked for: ISA-L tells which
        if len(content) < size:
            members = _Members(memoryview(data))
            content = members.read(size)
            members.finish()
    if len(content) < size:
        raise Unusable(Reason.TRUNCATED, f"{len(content):,} bytes where the header promises {size:,}")
    return content


def check_intact(data: bytes | memoryview) -> None:
    """Look for damage in what may be gzip, as far as it costs little; content that is not gzip has no checksum.

    Raises Unusable: TRUNCATED, CORRUPT.
    """
    if is_gzip(data):
        members = _Members(memoryview(data))
        members.skip(_LONGEST_CHECK)
        members.finish()


class _Members:
    """gzip members one after another, read by ISA-L in pieces, so that nothing is copied more than once."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._members = 0
        self._inflater = isal_zlib.decompressobj(wbits=31)

    @property
    def is_open(self) -> bool:
        """Whether the member that was read last has not come to its end."""
        return not self._inflater.eof

    def read(self, size: int) -> bytearray:
        """The next `size` bytes; fewer where the last member, or the file, ends."""
        content = bytearray()
        while len(content) < size and self._position < len(self._data):
            if self._inflater.eof:
                if not is_gzip(self._data[self._position :]):
                    break
                self._open_next()
            content += self._inflate(size - len(content))
        return content

    def skip(self, size: int) -> None:
        """Read on by up to `size` bytes, a piece at a time, and keep nothing."""
        while size > 0 and (piece := self.read(min(size, _LONGEST_TAIL))):
            size -= len(piece)

    def finish(self) -> None:
        """Read on to the end of the member, where its checksum stands.

        Raises Unusable: TRUNCATED when the file ends before it, CORRUPT when it does not fit.
        """
        tail = 0
        while self.is_open and tail < _LONGEST_TAIL:
            at_end = self._position == len(self._data)
            piece = self._inflate(_LONGEST_TAIL)
            tail += len(piece)
            if at_end and not piece and self.is_open:
                raise Unusable(Reason.TRUNCATED, f"the file ends at byte {len(self._data):,}, before gzip's checksum")

    def _open_next(self) -> None:
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise Unusable(Reason.CORRUPT, f"more than {_MOST_MEMBERS:,} gzip members")
        self._inflater = isal_zlib.decompressobj(wbits=31)

    def _inflate(self, most: int) -> bytes:
        """Up to `most` (> 0) bytes from the next piece of the member."""
        piece = self._data[self._position : self._position + _PIECE]
        try:
            content = self._inflater.decompress(piece, max_length=most)
        except isal_zlib.error as damage:  # type: ignore[misc]  # isal's stubs forget that it is an exception
            raise Unusable(Reason.CORRUPT, f"gzip, near byte {self._position:,}: {damage}") from damage
        self._position += len(piece) - len(self._inflater.unused_data) - len(self._inflater.unconsumed_tail)
        return content
