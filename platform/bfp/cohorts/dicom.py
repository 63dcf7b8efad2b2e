"""DICOM: the files of one folder are one series, and dcm2niix (an extra) makes one NIfTI image of them.

A series goes by its folder: its files, most of which are single slices, are listed, named and told of as one. Whatever
dcm2niix makes of a series but one image is a reason not to use it, since which one is meant is nobody's guess.

dcm2niix (Li et al. 2016, doi 10.1016/j.jneumeth.2016.03.001; BSD) is a process of its own, since what it reads comes
from anywhere: it is given copies under names that tell nothing, in a folder of this user's alone that is gone
afterwards, and what it prints, which may be a patient's name, is thrown away.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bfp.errors import Reason, StorageError, Unusable
from bfp.storage import Entry, Place
from bfp.words import counted

READS_AT_ONCE = 16  # of the files of a series, each one request on object storage
# No sidecar, no compression, no merging of what the scanner told apart by itself, none of the user's own defaults.
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
        found = _Marks()
        for file in files:
            found.add(file)
        if found.as_series(self.place) != self:
            raise StorageError(
                f"{self.place}: not the files that were there when it was listed: it is being written to; submit again"
            )
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return list(pool.map(Entry.read, files))


def series_at(folder: Place) -> Series | None:
    """The series in a folder; None where no file lies in it."""
    try:
        found = _Marks()
        for file in folder.files():
            if _counts(file, folder):
                found.add(file)
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


def nifti_of(files: Sequence[bytes], *, timeout_s: float) -> bytes:
    """The NIfTI-1 file, not compressed, of the one image that a series' files make.

    Raises Unusable (NOT_SERIES) where they make none or several, TimeoutError where that is not known after timeout_s.
    """
    import dcm2niix

    with TemporaryDirectory(prefix="bfp-dicom-") as made:
        series, images = Path(made, "series"), Path(made, "images")
        series.mkdir()
        images.mkdir()
        for number, file in enumerate(files):
            (series / f"{number:06d}.dcm").write_bytes(file)
        command = [dcm2niix.bin, *_OPTIONS, "-o", images, series]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        if ended.returncode in _CANNOT_WRITE:
            raise OSError(f"dcm2niix cannot write in {made}; make room there, or name another by TMPDIR")
        found = sorted(images.glob("*.nii"))
        if ended.returncode == 0 and len(found) == 1:
            return found[0].read_bytes()
    raise Unusable(Reason.NOT_SERIES, _why(len(files), ended.returncode, [file.stem for file in found]))


def _why(files: int, code: int, images: list[str]) -> str:
    """Why the files of a folder are no series of one image. code: dcm2niix's exit code. images: their names."""
    of = f"of {counted(files, 'file')}"
    if code == _NO_IMAGES or (code == 0 and not images):
        return f"dcm2niix finds no image in them, {of}"
    if code == 0:
        return f"dcm2niix makes {len(images)} images ({', '.join(images)}) {of}; give each series a folder of its own"
    if code < 0:
        return f"dcm2niix crashed (signal {-code}) {of}"
    return f"dcm2niix cannot convert all {of} (its exit code {code})"
