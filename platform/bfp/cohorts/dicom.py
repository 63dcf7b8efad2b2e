"""DICOM: the files of one folder are one series, and dcm2niix (an extra) makes one NIfTI image of them.

A series goes by its folder: its files, most of which are single slices, are listed, named and told of as one. Whatever
dcm2niix makes of a series but one image is a reason not to use it, since which one is meant is nobody's guess.

dcm2niix (Li et al. 2016, doi 10.1016/j.jneumeth.2016.03.001; BSD) is a process of its own, since what it reads comes
from anywhere: it is given copies under names that tell nothing, in a folder of this user's alone (`runs.scratch`: who
is killed leaves it to the next), and what it prints, which may be a patient's name, is thrown away.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from bfp.cohorts.threads import side_by_side
from bfp.errors import Reason, StorageError, Unusable
from bfp.runs.scratch import no_room, scratch
from bfp.storage import Entry, Place
from bfp.words import counted

READS_AT_ONCE = 16  # of the files of a series, each one request on object storage
MEMORY_BYTES = 6 << 30  # what dcm2niix may take: an image of the largest size, unpacked, turned round and written
# No sidecar, no compression, one fixed name, and none of the user's own defaults.
_OPTIONS = ("-b", "n", "-z", "n", "-f", "image", "-g", "i")
_CANNOT_WRITE = (6, 7)  # dcm2niix's exit codes: of the folder, of a file in it
_NO_IMAGES = 2


@dataclass(frozen=True, slots=True)
class Series(Entry):
    """The files that lie in a folder, as one: their size together, and a mark over the names, sizes and marks of all.

    Where one of them is a dangling link, the size is -1. Files of no bytes, and hidden ones, do not count.
    """

    def read_files(self) -> list[bytes]:
        """The files as they were listed, by name. Raises StorageError also where they are others by now."""
        files = [file for file in self.place.files() if _counts(file, self.place)]
        if _Marks.of(files).as_series(self.place) != self:
            raise StorageError(
                f"{self.place}: not the files that were there when it was listed: it is being written to; submit again"
            )
        return side_by_side(Entry.read, files, at_once=READS_AT_ONCE)


def series_at(folder: Place) -> Series | None:
    """The series in a folder; None where no file lies in it."""
    try:
        found = _Marks.of(file for file in folder.files() if _counts(file, folder))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    return found.as_series(folder) if found.files else None


def series_in(files: Iterable[Entry], matches: re.Pattern[str]) -> Iterator[Series]:
    """The series of the folders in which a file's URI matches, from one listing in order of URI."""
    found: dict[Place, _Marks] = defaultdict(_Marks)
    for file in files:
        folder = file.place.parent
        if _counts(file, folder):
            found[folder].add(file)
            found[folder].matches |= matches.fullmatch(file.place.uri) is not None
    return (marks.as_series(folder) for folder, marks in found.items() if marks.matches)


@dataclass(slots=True)
class _Marks:
    """What is kept of a folder's files while they are listed."""

    files: int = 0
    size: int = 0
    dangling: bool = False
    matches: bool = False
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    @classmethod
    def of(cls, files: Iterable[Entry]) -> _Marks:
        marks = cls()
        for file in files:
            marks.add(file)
        return marks

    def add(self, file: Entry) -> None:
        self.files += 1
        self.size += file.size
        self.dangling |= file.size < 0
        self.hash.update(repr((file.place.name, file.size, file.etag)).encode(errors="surrogateescape"))

    def as_series(self, folder: Place) -> Series:
        return Series(folder, -1 if self.dangling else self.size, self.hash.hexdigest()[:24])


def _counts(file: Entry, folder: Place) -> bool:
    """Whether a file below a folder is one of its series."""
    return file.size != 0 and not file.place.name.startswith(".") and file.place.parent == folder


def converter() -> str:
    """What turns a series into an image: part of the name of shards that hold one."""
    return f"dcm2niix {metadata.version('dcm2niix')}"


def nifti_of(files: Sequence[bytes], *, timeout_s: float, max_bytes: int) -> bytes:
    """The NIfTI-1 file, not compressed, of the one image that a series' files make.

    Raises Unusable where they make none or several (NOT_SERIES), or more than max_bytes (TOO_LARGE); TimeoutError where
    that is not known after timeout_s; and for what is no fault of theirs OSError, without room for the files and the
    image, and MemoryError.
    """
    with scratch() as folder:
        series, images = folder / "series", folder / "images"
        try:
            for made in (series, images):
                made.mkdir()
            for number, file in enumerate(files):
                (series / f"{number:06d}.dcm").write_bytes(file)
        except OSError as error:
            raise no_room(folder, error.strerror) from error
        code = _convert(series, images, timeout_s=timeout_s, max_bytes=max_bytes)
        found = sorted(images.glob("*.nii"))
        if code == 0 and len(found) == 1:
            return found[0].read_bytes()
        if code in _CANNOT_WRITE or (code and shutil.disk_usage(folder).free < sum(map(len, files))):
            raise no_room(folder, "dcm2niix cannot write the image")
    if -code in (signal.SIGKILL, signal.SIGTERM):
        raise MemoryError(f"dcm2niix was ended by signal {-code}, as where memory runs out; lower compute.workers")
    if -code == signal.SIGXFSZ:
        raise Unusable(Reason.TOO_LARGE, f"dcm2niix makes an image of more than {max_bytes:,} bytes of it")
    raise Unusable(Reason.NOT_SERIES, _why(len(files), code, [file.stem for file in found]))


def _convert(series: Path, images: Path, *, timeout_s: float, max_bytes: int) -> int:
    """dcm2niix's exit code; of a signal, the negative."""
    import dcm2niix

    process = subprocess.Popen(
        [dcm2niix.bin, *_OPTIONS, "-o", images, series],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if sys.platform == "linux":  # a few bytes may say that they are many
        import resource

        for what, most in ((resource.RLIMIT_FSIZE, max_bytes), (resource.RLIMIT_AS, MEMORY_BYTES)):
            with suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, what, (most, most))
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        process.kill()
        process.wait()


def _why(files: int, code: int, images: list[str]) -> str:
    """Why the files of a folder are no series of one image. code: dcm2niix's exit code. images: their names."""
    of = f"of {counted(files, 'file')}"
    if code == _NO_IMAGES or (code == 0 and not images):
        return f"dcm2niix finds no image in them, {of}"
    if code < 0:
        return f"dcm2niix crashed (signal {-code}) {of}"
    if code:
        return f"dcm2niix cannot convert all {of} (its exit code {code})"
    if any("_Eq" in image for image in images):
        return f"the slices do not lie evenly, {of}: is one missing?"
    return f"dcm2niix makes {len(images)} images ({', '.join(images)}) {of}; give each series a folder of its own"
