"""Bounded decompression: what good, damaged and hostile gzip files give."""

from __future__ import annotations

import gzip
import resource
import time

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.inflate import content_of, first_bytes

CONTENT = np.random.default_rng(0).integers(0, 30, 400_000, dtype=np.uint8).tobytes()
ZIPPED = gzip.compress(CONTENT, 6)


def blockwise(content: bytes, block: int) -> bytes:
    return b"".join(gzip.compress(content[start : start + block]) for start in range(0, len(content), block))


@pytest.mark.parametrize(
    "data",
    [CONTENT, ZIPPED, blockwise(CONTENT, 150_000), blockwise(CONTENT, 3_000), ZIPPED + b"\0" * 999],
    ids=["plain", "one member", "three members", "a member for each 3 kB", "zeros behind it"],
)
@pytest.mark.parametrize("size", [1, 352, 200_000, len(CONTENT)])
def test_the_first_bytes_come_out_whatever_holds_them(data: bytes, size: int) -> None:
    assert bytes(content_of(data, size)) == CONTENT[:size]
    assert first_bytes(data, 540) == CONTENT[:540]


@pytest.mark.parametrize(
    "data", [CONTENT[:-1], ZIPPED[:-1], ZIPPED[:-9], ZIPPED[:9000], blockwise(CONTENT, 9000)[:-20]]
)
def test_a_file_that_ends_early_is_called_truncated(data: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        content_of(data, len(CONTENT))
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("position", [-6, -2, len(ZIPPED) // 2], ids=["checksum", "length", "body"])
def test_damage_is_called_damage(position: int) -> None:
    damaged = bytearray(ZIPPED)
    damaged[position] ^= 0x55
    with pytest.raises(Unusable) as caught:
        content_of(bytes(damaged), len(CONTENT))
    assert caught.value.reason in (Reason.CORRUPT, Reason.TRUNCATED)
    if position != len(ZIPPED) // 2:
        assert caught.value.reason is Reason.CORRUPT


def test_a_bomb_is_inflated_no_further_than_asked() -> None:
    bomb = gzip.compress(bytes(128 << 20), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert bytes(content_of(bomb, 1000)) == bytes(1000)
    assert first_bytes(bomb, 540) == bytes(540)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # KiB


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ZIPPED[:3] + b"\x08" + ZIPPED[4:10] + b"a" * 3_000_000, Reason.TRUNCATED),
        (gzip.compress(b"") * 200_000, Reason.CORRUPT),
    ],
    ids=["a name that never ends", "a flood of empty members"],
)
def test_what_never_comes_to_content_ends_soon(data: bytes, reason: Reason) -> None:
    start = time.process_time()
    with pytest.raises(Unusable) as caught:
        content_of(data, 540)
    assert caught.value.reason is reason
    assert time.process_time() - start < 2
