"""Reading a slice store: the way in for everything that comes after ingest.

A `SliceStore` is one snapshot: a store that grows changes nothing under it. It can be pickled, and used from several
threads.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.errors import DamagedFile, InputError, StorageError
from bfp.imaging import NEIGHBOURS
from bfp.storage import Place, intact, plainly
from bfp.storage.patience import Exhausted
from bfp.store import layout, schemas
from bfp.store.pages import Packed, packed
from bfp.words import counted

if TYPE_CHECKING:
    from bfp.imaging.stacks import SliceAxis

_OPEN_FILES = 32  # of one thread: a footer is read once while its file stays open
_READERS = 16  # of whole tables: many small reads, which on object storage mostly wait

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class StackFile:
    """One file of stacks: its rows, and the rows of each of its row groups, without its footer being read."""

    place: Place
    rows: int
    row_groups: tuple[int, ...]


class _Opened(NamedTuple):
    """A file of stacks, as Parquet and as bytes, and which of its columns the pixels are."""

    parquet: Any
    raw: Any
    pixels: int


def _opened(place: Place) -> _Opened:
    parquet, raw = place.open_parquet_and_bytes()
    return _Opened(parquet, raw, parquet.schema.names.index("pixels"))


def _close(opened: _Opened) -> None:
    opened.parquet.close()
    opened.raw.close()


def _without_snapshot(at: Place) -> str:
    """Why a store has nothing to read, and what to do."""
    commits = layout.read_commits(at, layout.committed(at))
    told = SliceStore.of_commits(at, commits)
    if told.totals.rejected and not told.totals.stacks:
        rejected = told.rejected()
        reason_of = dict(zip(*(rejected[name].to_pylist() for name in ("uri", "reason")), strict=True))  # tried twice
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in Counter(reason_of.values()).most_common())
        return (
            f"no stack is in it: {counted(len(reason_of), 'scan was', 'scans were')} rejected and none was used "
            f"({reasons}); the page of the ingest shows which: mend them, or take others, and submit the ingest again"
        )
    found = f"it has {counted(len(commits), 'commit')}, but no snapshot" if commits else "it is empty"
    return f"{found}: no ingest has finished, or a file was lost; submit the ingest again"


class SliceStore:
    """The stacks and tables of one snapshot of a store."""

    def __init__(self, at: Place, info: layout.StoreInfo, number: int, snapshot: layout.Snapshot) -> None:
        self.place = at
        self.snapshot = number
        self.totals = snapshot.totals
        self.preprocessing: dict[str, Any] = info.preprocessing
        self.fingerprint = info.fingerprint
        self._commits = snapshot.commits
        self._local = threading.local()

    @classmethod
    def open(cls, at: Place, snapshot: int | None = None) -> SliceStore:
        """The store at a place, as of its latest snapshot or of the one that is named.

        Raises InputError where there is no store, nothing in it yet, no such snapshot, or a newer contract.
        """
        info = layout.read_info(at)
        if info is None:
            at.names()  # which says so where there is not even a bucket
            raise InputError(f"{at}: no slice store there (no store.json); make one with a job of kind ingest")
        numbers = layout.snapshot_numbers(at)
        if not numbers:
            raise InputError(f"{at}: {_without_snapshot(at)}")
        number = numbers[-1] if snapshot is None else snapshot
        if number not in numbers:
            has = f"it has {numbers[0]} to {numbers[-1]}"
            if number < numbers[-1]:
                has += "; a prune removed it: a run that began with it can only be begun anew, under another name"
            raise InputError(f"{at}: has no snapshot {number}; {has}")
        return cls(at, info, number, layout.read_snapshot(at, number))

    @classmethod
    def of_commits(cls, at: Place, commits: list[layout.Commit]) -> SliceStore:
        """Commits that are in no snapshot yet, or in part of one: what an ingest has made. Its snapshot is 0."""
        info = layout.read_info(at)
        assert info is not None, at
        return cls(at, info, 0, layout.snapshot_of(commits))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _local=threading.local())

    # what it is --------------------------------------------------------------------------------------------------

    @property
    def imaging(self) -> list[int]:
        """The versions of `bfp.imaging` that made its stacks, rising: one, where one bfp made them all."""
        return sorted({commit.imaging for commit in self._commits if commit.kind == "shard"})

    @property
    def size_px(self) -> int:
        """Height and width of a stack."""
        return int(self.preprocessing["size"])

    @property
    def form(self) -> str:
        """What the channels of a stack are: modalities, or neighbours."""
        return str(self.preprocessing["stacks"]["form"])

    @property
    def slice_axis(self) -> SliceAxis:
        """Across which axis the slices are cut."""
        axis: SliceAxis = self.preprocessing.get("slice_axis", "axial")
        return axis

    @property
    def channels(self) -> tuple[str, str, str]:
        """The name of each channel: its modality, or its place among the neighbours."""
        if self.form == "neighbours":
            return NEIGHBOURS
        first, second, third = self.preprocessing["stacks"]["channels"]
        return first, second, third

    def classes(self, segmentation: str) -> dict[str, list[int]]:
        """The classes of a segmentation and the label values that make each.

        Raises InputError where no cohort carries it, or two cohorts mean different things by it.
        """
        found = {
            record.cohort: record.segmentations[segmentation].classes
            for record in self._commits
            if segmentation in record.segmentations
        }
        if not found:
            names = sorted({name for record in self._commits for name in record.segmentations})
            raise InputError(f"{self.place}: has no segmentation {segmentation}; it has {', '.join(names) or 'none'}")
        (first, classes), *others = found.items()
        for cohort, other in others:
            if other != classes:
                raise InputError(
                    f"{self.place}: {segmentation} means {classes} in cohort {first} and {other} in {cohort}; "
                    "give the two segmentations different names"
                )
        return classes

    def drawn_on(self, segmentation: str) -> tuple[str, ...]:
        """The modalities of the scans on which the cohorts' maps of a segmentation were drawn, sorted."""
        infos = [record.segmentations[segmentation] for record in self._commits if segmentation in record.segmentations]
        return tuple(sorted({info.drawn_on for info in infos}))

    # tables ------------------------------------------------------------------------------------------------------

    def sessions(self) -> pa.Table:
        """One row per session (schemas.SESSIONS), those without a usable scan too."""
        return self._table("sessions", schemas.SESSIONS)

    def scans(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One row per scan in the store (schemas.SCANS), or these columns of it: most of its bytes are matrices."""
        return self._table("scans", schemas.SCANS if columns is None else _of_scans(columns))

    def rejected(self) -> pa.Table:
        """One row per scan left out (schemas.REJECTED)."""
        return self._table("rejected", schemas.REJECTED)

    def label_maps(self) -> pa.Table:
        """One row per label map and brain mask (schemas.LABEL_MAPS); none of shards that an earlier bfp made."""
        return self._table("label_maps", schemas.LABEL_MAPS)

    def masks(self, segmentation: str) -> pa.Table:
        """The label stacks of one segmentation (schemas.masks); `labels_of` turns them into arrays."""
        return self._table("masks", schemas.masks(self.size_px), segmentation=segmentation)

    def masks_beside(self, file: int, segmentation: str) -> pa.Table:
        """Those of the shard that a file of stacks is in, by its place in `stack_files()`."""
        files = 0
        for record in self._commits:
            files += sum(part.table == "stacks" for part in record.parts)
            if file < files:
                parts = [part for part in record.parts if part.table == "masks"]
                return self._table("masks", schemas.masks(self.size_px), segmentation=segmentation, parts=parts)
        raise IndexError(file)

    def mask_index(self, segmentation: str | None = None) -> pa.Table:
        """The rows of `masks` without the label stacks: those of one segmentation, or of all."""
        columns = [field for field in schemas.masks(self.size_px) if field.name != "labels"]
        return self._table("masks", pa.schema(columns), segmentation=segmentation)

    def stack_files(self) -> list[StackFile]:
        """Every file of stacks, in a fixed order."""
        return [StackFile(self.place / part.file, part.rows, tuple(part.row_groups)) for part in self._parts("stacks")]

    def stack_files_of_scans(self) -> list[range]:
        """Of each row of `scans()` the places in `stack_files()` of the files that its shard has, without a read.

        Its stacks are in one of them, or in neighbours.
        """
        found, files = [], 0
        for record in self._commits:
            parts = sum(part.table == "stacks" for part in record.parts)
            found += [range(files, files + parts)] * record.rows("scans")
            files += parts
        return found

    def stack_index(self, files: Iterable[int] | None = None) -> pa.Table:
        """Every stack without its pixels, in the order of the files; or of these files, by their place, alone.

        The columns of schemas.stacks but `pixels`, and int32 `file` (place in `stack_files()`), `row_group` and `row`
        (within its group).
        """
        everything = self.stack_files()
        wanted = range(len(everything)) if files is None else sorted(set(files))
        parts = self._parts("stacks")
        schema = schemas.stacks(self.size_px)
        names = [name for name in schema.names if name != "pixels"]
        table = self._table(
            "stacks", pa.schema([schema.field(name) for name in names]), parts=[parts[file] for file in wanted]
        )
        groups = [(file, group, rows) for file in wanted for group, rows in enumerate(everything[file].row_groups)]
        places, numbers, rows = np.array(groups, dtype=np.int32).reshape(-1, 3).T
        within = np.concatenate([np.arange(count, dtype=np.int32) for count in rows]) if len(rows) else rows
        for name, column in (
            ("file", np.repeat(places, rows)),
            ("row_group", np.repeat(numbers, rows)),
            ("row", within),
        ):
            table = table.append_column(name, pa.array(column, pa.int32()))
        return table

    def read_row_group(self, file: StackFile, group: int) -> pa.Table:
        """One row group of stacks, pixels and all."""
        return self._read(file.place, lambda opened: opened.parquet.read_row_group(group, use_threads=False))

    def read_packed(self, file: StackFile, group: int) -> Packed | np.ndarray:
        """The pixels of one row group, by row: uint8 (3, size, size), read-only.

        They stay compressed until they are asked for, where they are as this version's writer lays them out.
        """
        rows, shape = file.row_groups[group], (schemas.CHANNELS, self.size_px, self.size_px)

        def read(opened: _Opened) -> Packed | np.ndarray:
            column = opened.parquet.metadata.row_group(group).column(opened.pixels)
            if column.compression == "LZ4" and not column.has_dictionary_page:
                opened.raw.seek(column.data_page_offset)
                chunk = opened.raw.read_buffer(column.total_compressed_size)
                if (found := packed(chunk, rows=rows, shape=shape, place=file.place)) is not None:
                    return found
            return pixels_of(opened.parquet.read_row_group(group, columns=["pixels"], use_threads=False))

        return self._read(file.place, read)

    # inside ------------------------------------------------------------------------------------------------------

    def _parts(self, table: str) -> list[layout.Part]:
        return [part for record in self._commits for part in record.parts if part.table == table]

    def _table(
        self,
        table: str,
        schema: pa.Schema,
        *,
        segmentation: str | None = None,
        parts: Sequence[layout.Part] | None = None,
    ) -> pa.Table:
        """A table, or of `masks` the rows of one segmentation: other row groups are not read. parts: those alone."""

        def read(part: layout.Part) -> pa.Table:
            at = self.place / part.file
            with plainly(at, "read"), intact(at, "a Parquet file"), at.open_parquet(pre_buffer=True) as file:
                if segmentation is None:
                    return file.read(columns=schema.names, use_threads=False)
                names = file.read(columns=["segmentation"], use_threads=False)["segmentation"]
                ends = np.cumsum(part.row_groups)
                rows = np.flatnonzero(pc.equal(names, segmentation))
                groups = np.unique(np.searchsorted(ends, rows, side="right"))
                found = file.read_row_groups(groups.tolist(), columns=schema.names, use_threads=False)
                return found.filter(pc.equal(found["segmentation"], segmentation))

        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(read, self._parts(table) if parts is None else parts))
        # What an earlier bfp wrote may lack columns: they are null.
        return pa.concat_tables([schema.empty_table(), *tables], promote_options="default")

    def _read(self, place: Place, read: Callable[[_Opened], Value]) -> Value:
        """What `read` reads of the open file of this thread: the least recently used is closed when there are too many.

        One that was opened before this read keeps the credentials of that time (s3://), which may have expired: where
        it fails, it is opened anew, once.
        """
        files: OrderedDict[Place, _Opened] = vars(self._local).setdefault("files", OrderedDict())
        may_be_stale = place in files and not place.is_local
        try:
            with plainly(place, "read"), intact(place, "a Parquet file"):
                if place not in files:
                    files[place] = _opened(place)
                    if len(files) > _OPEN_FILES:
                        _close(files.popitem(last=False)[1])
                files.move_to_end(place)
                return read(files[place])
        except StorageError as error:
            if not may_be_stale or isinstance(error, DamagedFile) or isinstance(error.__cause__, Exhausted):
                raise
        _close(files.pop(place))
        return self._read(place, read)


def _of_scans(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schemas.SCANS.field(name) for name in columns])


def pixels_of(table: pa.Table) -> np.ndarray:
    """The column `pixels` as a read-only uint8 (n, 3, size, size), without a copy where the column is one chunk."""
    return _array(table["pixels"], np.dtype(np.uint8), channels=schemas.CHANNELS)


def labels_of(table: pa.Table) -> np.ndarray:
    """The column `labels` as a read-only uint16 (n, size, size)."""
    return _array(table["labels"], np.dtype("<u2"), channels=1)[:, 0]


def _array(column: pa.ChunkedArray, dtype: np.dtype, *, channels: int) -> np.ndarray:
    chunk = (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else None
    )
    width = column.type.byte_width
    size_px = round((width / dtype.itemsize / channels) ** 0.5)
    if chunk is None or not len(chunk):
        return np.zeros((0, channels, size_px, size_px), dtype)
    values = np.frombuffer(
        chunk.buffers()[1], dtype, count=len(chunk) * width // dtype.itemsize, offset=chunk.offset * width
    )
    return values.reshape(len(chunk), channels, size_px, size_px)
