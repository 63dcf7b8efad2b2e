"""Journals: what happened and what was measured, one JSON object a line, as it comes."""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from bfp.storage import Place

MOST_SEGMENTS = 360
"""So many are folded into the file: an hour of heartbeats. Who looks at a run reads all, and a week makes 60,000."""

_READS_AT_ONCE = 16


def utc_now() -> str:
    """The time of day, ISO 8601, UTC, milliseconds. It stands in run folders, never in a store."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """JSON lines that only grow: one file on disk, numbered segments beside it on object storage.

    On disk a row is visible once it is appended; on object storage after the next `flush`, which one thread may do
    while another appends.
    """

    def __init__(self, file: Place) -> None:
        self._file = file
        self._pending: list[str] = []
        self._writing = threading.Lock()
        there = self._segments()
        self._segment = max(there, default=0)
        self._unfolded = len(there)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Rows that belong together: on disk they are one write."""
        self._pending += [json.dumps(finite(row), ensure_ascii=False) for row in rows]
        if self._file.is_local:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far visible to readers; what cannot be written waits for the next time."""
        with self._writing:
            self._write_pending()
            if self._unfolded >= MOST_SEGMENTS:
                self._fold()

    def fold(self) -> None:
        """Turn the segments into the one file."""
        with self._writing:
            self._write_pending()
            self._fold()

    def _fold(self) -> None:
        if self._file.is_local or not self._segment:
            return
        segments = self._segments().values()
        self._file.write(b"".join(line + b"\n" for line in self._lines(segments)))
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            list(pool.map(Place.delete, segments))
        self._segment = self._unfolded = 0

    def rows(self) -> list[dict[str, Any]]:
        """Every row that is visible, oldest first; a line cut short by a crash, or damaged, is left out."""
        rows = []
        for line in self._lines(self._segments().values()):
            with suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def delete(self) -> None:
        for part in (self._file, *self._segments().values()):
            part.delete()

    def _write_pending(self) -> None:
        lines = list(self._pending)
        if not lines:
            return
        data = ("\n".join(lines) + "\n").encode()
        if self._file.is_local:
            self._file.append(data)
        else:
            self._segment += 1
            while not self._segment_place(self._segment).create(data):
                self._segment += 1
            self._unfolded += 1
        del self._pending[: len(lines)]  # what was appended meanwhile stays

    def _lines(self, segments: Iterable[Place]) -> list[bytes]:
        """The lines of the file and of these segments, each as often as the part has it that has it most often.

        The same row stands in file and segment after a `fold` that was killed, and in two segments where a reply was
        lost. The file is read last: a segment that is gone by then was folded into it.
        """
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            parts = [part or b"" for part in pool.map(Place.read_if_there, segments)]
        parts = [self._file.read_if_there() or b"", *parts]
        lines, known = list[bytes](), Counter[bytes]()
        for part in parts:
            own = Counter[bytes]()
            for line in part.splitlines():
                own[line] += 1
                if own[line] > known[line]:
                    lines.append(line)
            known |= own
        return lines

    def _segments(self) -> dict[int, Place]:
        """By number, in its order."""
        if self._file.is_local:
            return {}
        numbered = re.compile(rf"{re.escape(self._file.name)}[.](\d{{6,}})")
        found = (numbered.fullmatch(name) for name in self._file.parent.names())
        return {number: self._segment_place(number) for number in sorted(int(each[1]) for each in found if each)}

    def _segment_place(self, number: int) -> Place:
        return self._file.parent / f"{self._file.name}.{number:06d}"


def finite(value: Any) -> Any:
    """JSON knows no NaN: what is undefined is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
