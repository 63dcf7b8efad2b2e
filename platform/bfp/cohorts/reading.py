"""Reading ahead: while one scan is prepared, the files of the next are read.

Who waits for a disk or an object store uses no CPU, and a worker has one CPU and one task: without this it would stand
idle for as long as the store takes. What is read before its turn is bounded, in files and in bytes, and is all that a
worker holds beside what it prepares; a file that is over the bound is read when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, TypeVar

from bfp.cohorts.dicom import Series
from bfp.cohorts.sessions import LabelMap, Scan, absent
from bfp.cohorts.threads import begin
from bfp.errors import Reason, StorageError, Unusable
from bfp.imaging.nifti import MAX_FILE_BYTES
from bfp.storage import Entry

# 18 heads whose reads took 0.3 s each and their work 0.05 s came through in 1.7 s: in turn it had been 6.3 s.
AHEAD_SCANS = 6
AHEAD_BYTES = 32 << 20  # as they lie in the store: a session of three zipped heads at 1 mm, 5 % of a worker's memory


File = TypeVar("File", bound=Entry)
Value = TypeVar("Value")


class Contents(NamedTuple):
    """The bytes of a scan or label map: of a pair the header's file and the other, else the one file and None.

    Of a DICOM series no file, and all of its own in `series`.
    """

    file: bytes
    voxels: bytes | None = None
    series: Sequence[bytes] = ()


class ReadAhead:
    """The contents of scans and label maps, in the order in which they will be taken, each of them once."""

    def __init__(self, sources: Iterable[Scan | LabelMap]) -> None:
        self._waiting = deque(sources)
        self._ahead: deque[tuple[Scan | LabelMap, Future[Contents]]] = deque()

    def take(self, source: Scan | LabelMap, *, timeout_s: float) -> Contents:
        """The contents of the next source, or of one that was never announced.

        Raises Unusable where they cannot be read, StorageError where a file is another than was listed or the object
        store fails, and TimeoutError where they are not there so long after their turn came. Reading cannot be broken
        off: it goes on behind, in a thread that the process takes along when it ends.
        """
        ahead = [each for each, _ in self._ahead]
        if source in ahead:
            for _ in range(ahead.index(source)):
                self._ahead.popleft()  # whose turn passed without them
            _, reading = self._ahead.popleft()
        else:
            while source in self._waiting:
                self._waiting.popleft()
            reading = _begin(source)
        self._fill()
        return reading.result(timeout_s)

    def _fill(self) -> None:
        held = sum(_size(source) for source, _ in self._ahead)
        while self._waiting and len(self._ahead) < AHEAD_SCANS:
            held += _size(self._waiting[0])
            if held > AHEAD_BYTES:
                return
            source = self._waiting.popleft()
            self._ahead.append((source, _begin(source)))


def _begin(source: Scan | LabelMap) -> Future[Contents]:
    return begin(partial(_contents, source))


def _size(source: Scan | LabelMap) -> int:
    return sum(max(file.size, 0) for file in source.files)


def _contents(source: Scan | LabelMap) -> Contents:
    if isinstance(source.file, Series):
        return Contents(b"", series=_read(source.file, Series.read_files))
    return Contents(_read(source.file, Entry.read), _read(source.voxels, Entry.read) if source.voxels else None)


def _read(file: File, read: Callable[[File], Value]) -> Value:
    """What `read` reads of a file that discovery saw."""
    if file.size < 0:
        raise absent(file)
    if file.size > MAX_FILE_BYTES:
        what = "files" if isinstance(file, Series) else "a file"
        raise Unusable(Reason.TOO_LARGE, f"{what} of {file.size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
    try:
        return read(file)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise Unusable(Reason.UNREADABLE, "it was listed, and is gone") from error
        if file.place.is_local and isinstance(error.__cause__, OSError):
            raise Unusable(Reason.UNREADABLE, f"{error.__cause__.strerror}") from error
        raise
