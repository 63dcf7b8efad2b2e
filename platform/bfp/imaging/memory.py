"""What a worker tells the C library of its memory."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Of glibc's mallopt. A block of this size is taken from the system each time; so much may be free at the end of what
# the process has. One scan and its stacks are below, and a worker has memory for several.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BLOCK_BYTES, _FREE_BYTES = 64 << 20, 128 << 20


@cache
def keep_freed_memory() -> None:
    """Keep what is freed for the next scan, instead of giving it back to the system; on glibc only.

    The system clears what it gives, a page at a time: of a head's 30 ms that takes 5.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
        set_option(_M_TRIM_THRESHOLD, _FREE_BYTES)
