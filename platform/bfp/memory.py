"""What a worker tells the C library of its memory.

The system clears what it gives, a page at a time. Of a head's 30 ms of preprocessing that took 5; of a step of
pretraining on two cores, with 65,536 prototypes, a sixth.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Of glibc's mallopt: how much may be free at the end of what the process has before it goes back to the system; from
# which size a block is taken from the system each time; and how many threads may have a pool of their own, which holds
# no blocks above 64 MB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

SCANS = {"free_mb": 128, "block_mb": 64}  # a scan and its stacks are below; a worker has memory for several
STEPS = {"free_mb": 4096, "block_mb": 1024, "one_pool": True}  # of training on a CPU: logits are the largest blocks


@cache
def keep_freed_memory(*, free_mb: int, block_mb: int, one_pool: bool = False) -> None:
    """Keep up to free_mb of what is freed, in blocks of up to block_mb, instead of giving it back; on glibc only.

    one_pool: all threads share one; to be said before they are started.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_MMAP_THRESHOLD, block_mb << 20)
        set_option(_M_TRIM_THRESHOLD, free_mb << 20)
        if one_pool:
            set_option(_M_ARENA_MAX, 1)
