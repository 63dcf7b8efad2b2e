"""What libraries say past us: kept from the user's screen, and kept for whoever has to find a fault.

Ray's C++ core, OpenMP and the processes that they start write to file descriptor 2 as they please, and Python
packages warn about each other. While a run goes on the first is sent to a file and the second is silenced; `sys.stderr`
goes on to the user, so that the display is all there is to see.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from io import UnsupportedOperation
from types import TracebackType
from typing import Self

STDERR = 2


class Hush:
    """While it is entered, file descriptor 2 leads to a file; what `sys.stderr` is given still reaches the user."""

    def __enter__(self) -> Self:
        self._before = sys.stderr
        self._before.flush()
        self._heard = tempfile.TemporaryFile()
        self._users = os.dup(STDERR)
        if _is_descriptor_2():
            sys.stderr = open(os.dup(self._users), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        os.dup2(self._heard.fileno(), STDERR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warnings.__exit__(kind, error, trace)
        os.dup2(self._users, STDERR)
        os.close(self._users)
        if sys.stderr is not self._before:
            sys.stderr.close()
            sys.stderr = self._before
        self._heard.close()

    def heard(self) -> bytes:
        """What was written to the file so far."""
        return os.pread(self._heard.fileno(), os.fstat(self._heard.fileno()).st_size, 0)


def _is_descriptor_2() -> bool:
    """Whether sys.stderr is the process's own, and not something that a test or a notebook put there."""
    try:
        return sys.stderr.fileno() == STDERR
    except (UnsupportedOperation, AttributeError):
        return False
