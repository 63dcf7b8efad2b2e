"""What can go wrong, as one tree; every message says where, what was found, what was expected and what to do.

    BfpError
    ├── InputError         what the user gave is wrong: a spec, a file, a name, a place          exit 2
    │   ├── SpecError      every mistake of one spec at once, in the file's order
    │   └── StorageError   a place that cannot be read or written
    │       └── DamagedFile   a file that is there and does not hold what it should
    ├── JobFailed          a run started and could not finish, whatever the cause                exit 1
    ├── Interrupted        the user asked to stop; the run can be resumed                        exit 130
    └── Unusable           one scan that cannot be used: a row of `rejected`, never the end of a run

Below the command line, code raises these and never prints or exits; `bfp.cli` alone turns them into text and exit
codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BfpError(Exception):
    """The root: whatever bfp says in its own words."""

    exit_code = 1


class InputError(BfpError):
    """What the user gave is wrong; nothing was written."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a spec.

    line is 1-based, or None where the mistake has no line (a field that is absent altogether, a `--set`).
    path is the dotted path of the field ("ssl.prototypes", "cohorts[0].bids"), "" for the file as a whole.
    found is the value as the user wrote it, None where nothing stands.
    """

    line: int | None
    path: str
    found: str | None
    expected: str


class SpecError(InputError):
    """Every mistake of one spec, in the file's order."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        super().__init__("\n".join(self._describe(problem) for problem in problems))

    def _describe(self, problem: Problem) -> str:
        where = self.file if problem.line is None else f"{self.file}:{problem.line}"
        field = problem.path if problem.found is None else f"{problem.path}: {problem.found}".lstrip(": ")
        head = f"{where}  {field}".rstrip()
        return f"{head}\n    {problem.expected}"


class StorageError(InputError):
    """A place that cannot be listed, read or written, with the reason in plain words."""


class DamagedFile(StorageError):
    """A file that is there, can be read, and does not hold what it should."""


class JobFailed(BfpError):
    """A run started and could not finish; what was committed stays."""

    exit_code = 1


class Interrupted(BfpError):
    """The user asked to stop; the run can be resumed by submitting it again."""

    exit_code = 130


class Reason(StrEnum):
    """Why a scan or label map was left out: the closed list of `rejected.reason`. A person reads the values."""

    MISSING = "file not found"
    DANGLING = "dangling link (a DataLad file that was never fetched?)"
    UNREADABLE = "file cannot be read"
    NAME = "file name not understood"
    UNWANTED = "modality not asked for"
    IGNORED = "named in .bidsignore"
    DUPLICATE = "another scan of this modality was taken"
    NOT_NIFTI = "not a NIfTI file"
    NOT_SERIES = "not one DICOM image series"
    TRUNCATED = "file ends early"
    CORRUPT = "compressed data damaged"
    TOO_LARGE = "volume larger than the limit"
    NOT_3D = "not one 3-D volume"
    DATATYPE = "voxels are not real numbers"
    GEOMETRY = "header gives no usable geometry"
    EMPTY = "no finite, non-zero voxel"
    NO_SLICES = "no slice with enough foreground"
    OFF_GRID = "not on the grid of its session's reference"
    REGISTRATION = "registration failed"
    NO_BRAIN_MASK = "no brain mask"
    NOT_LABELS = "voxels are not whole numbers from 0 to 65535"
    UNPLACED = "cannot be laid on the scan that it was drawn on"
    TIMEOUT = "took longer than the limit"


class Unusable(BfpError):
    """One scan that cannot be used. `detail` says what was found and what was expected, with numbers."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type[Unusable], tuple[Reason, str]]:
        return Unusable, (self.reason, self.detail)

    def bare(self) -> Unusable:
        """Itself, to be kept: without where it was raised and what led to it, which would keep all that stood there."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)
