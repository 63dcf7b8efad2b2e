"""Runs: the folder of one execution of a job, and what is written there while it goes on.

    <output>/<name>/spec.yaml         the resolved spec, with the code's version
    <output>/<name>/lease.<n>.json    who runs it now; gone when nobody does
    <output>/<name>/events.jsonl      what happened, one JSON object a line
    <output>/<name>/metrics.parquet   every logged figure: step, name, value, time
    <output>/<name>/events.out.tfevents.<time>   the same for TensorBoard, a file for each submission
    <output>/<name>/results.json      what came out: figures, tables, pictures with their captions
    <output>/<name>/pictures/ checkpoints/ model/ predictions/ report/

`Run` is the one writer. A driver tells it phases, progress, warnings and figures; a listener (the live display) hears
the same events. On disk a journal is appended to; on object storage, where nothing can be, it is a row of numbered
segments, one at most each heartbeat, that are folded into one file at the end.

One submitter at a time: whoever wants to run it creates the next lease, which only one can, and goes on when no other
lease is held. A lease is held by a living process of this machine, or by another machine's while it is renewed, by the
storage's clock: those of machines differ. One that is not held is passed over, so a run is taken up again after a kill.
Who finds a lease above its own has been taken for dead: it stops, and writes no more.

An event is a flat JSON object: `time` (UTC), `event` (start, phase, progress, warning, note, failure, end) and:

    start      version, kind, resumed, environment (python, system and the versions of what the run builds on)
    phase      phase, total, unit
    progress   phase, done, total, unit, and any figures that are worth a glance
    warning    message            note   message
    failure    message, cause
    end        outcome (done, failed, interrupted), message, seconds
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bfp.errors import InputError, JobFailed, StorageError
from bfp.storage import Place, intact, plainly

Event = dict[str, Any]
Listener = Callable[[Event], None]

HEARTBEAT_S = 10.0  # the lease is renewed, and on object storage events and figures become visible
LEASE_EXPIRES_S = 60.0  # a lease from another machine that was not renewed for so long is taken over
BOARD_S = 10.0  # TensorBoard's file is flushed at most so often
PROGRESS_S = 1.0  # progress is written at most so often; the listener hears all of it

# whose versions are recorded with each submission
BUILDS_ON = ("torch", "timm", "ray", "numpy", "pyarrow", "nibabel", "SimpleITK", "scikit-learn")


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
        self._segment = max(self._segments(), default=0)

    def append(self, row: Mapping[str, Any]) -> None:
        self._pending.append(json.dumps(_finite(row), ensure_ascii=False))
        if self._file.is_local:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far visible to readers; what cannot be written waits for the next time."""
        with self._writing:
            self._write_pending()

    def fold(self) -> None:
        """Turn the segments into the one file."""
        with self._writing:
            self._write_pending()
            if self._file.is_local or not self._segment:
                return
            segments = self._segments().values()
            self._file.write(b"".join(line + b"\n" for line in self._lines(segments)))
            for segment in segments:
                segment.delete()
            self._segment = 0

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
        del self._pending[: len(lines)]  # what was appended meanwhile stays

    def _lines(self, segments: Iterable[Place]) -> list[bytes]:
        """The lines of the file and of these segments, each once: a line holds its time of day.

        It stands in both after a `fold` that was killed, and in two segments where a reply was lost. The file is read
        last: a segment that is gone by then was folded into it.
        """
        parts = [segment.read_if_there() or b"" for segment in segments]
        parts = [self._file.read_if_there() or b"", *parts]
        return list(dict.fromkeys(line for part in parts for line in part.splitlines()))

    def _segments(self) -> dict[int, Place]:
        """By number, in its order."""
        if self._file.is_local:
            return {}
        numbered = re.compile(rf"{re.escape(self._file.name)}[.](\d{{6,}})")
        found = (numbered.fullmatch(name) for name in self._file.parent.names())
        return {number: self._segment_place(number) for number in sorted(int(each[1]) for each in found if each)}

    def _segment_place(self, number: int) -> Place:
        return self._file.parent / f"{self._file.name}.{number:06d}"


class EventFile:
    """The figures of one submission as TensorBoard reads them; on object storage the file is put there at the end."""

    def __init__(self, file: Place) -> None:
        from tensorboardX.proto.event_pb2 import Event as BoardEvent
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = BoardEvent, Summary
        self._file = file
        self._here = file.path if file.is_local else Path(tempfile.mkdtemp(prefix="bfp-"), file.name)
        self._records = RecordWriter(str(self._here))
        self._records.write(BoardEvent(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._flushed_at = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=v) for name, v in values.items()])
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        if time.monotonic() - self._flushed_at > BOARD_S:
            self._records.flush()
            self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._records.close()
        if not self._file.is_local:
            self._file.upload(self._here)
            shutil.rmtree(self._here.parent)


class RunFolder:
    """A run folder to look at: what was asked, what happened, what came out.

    Raises DamagedFile where a file that stands there does not hold what it should.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def spec_text(self) -> str | None:
        """The resolved spec as YAML, or None where there is no run."""
        file = self.folder / "spec.yaml"
        if not file.exists():
            return None
        with intact(file, "a spec"):
            return file.read().decode()

    def events(self) -> list[Event]:
        return Journal(self.folder / "events.jsonl").rows()

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged figure: rows of step, name, value (float), time; a step logged twice counts as logged last."""
        late = Journal(self.folder / "metrics.jsonl").rows()  # read first: what is gone from it stands in the table
        rows: list[dict[str, Any]] = []
        folded = self.folder / "metrics.parquet"
        if folded.exists():
            with folded.open_parquet() as file, plainly(folded, "read"), intact(folded, "a table of figures"):
                rows = file.read().to_pylist()
        return list({(row["name"], row["step"]): row for row in rows + late}.values())

    def results(self) -> dict[str, Any]:
        """What the driver put into results.json; empty while nothing has come out."""
        file = self.folder / "results.json"
        if not file.exists():
            return {}
        with intact(file, "what a run came to"):
            found = json.loads(file.read())
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            return found

    def outcome(self) -> str:
        """done, failed, interrupted, running, or lost (the process ended without saying anything)."""
        events = self.events()
        last = next((event for event in reversed(events) if event["event"] in ("start", "end")), None)
        if last is not None and last["event"] == "end":
            return str(last["outcome"])
        return "running" if self.holder() else "lost"

    def holder(self) -> dict[str, Any] | None:
        """Who runs this now ({host, pid, since, beat}), or None."""
        return next((lease for number, lease in self._leases().items() if self._is_held(number, lease)), None)

    def _lease_file(self, number: int) -> Place:
        return self.folder / f"lease.{number}.json"

    def _leases(self) -> dict[int, dict[str, Any]]:
        """All leases that lie here, by number, held or not."""
        found = {}
        for name in self.folder.names():
            if not (named := re.fullmatch(r"lease[.](\d+)[.]json", name)):
                continue
            file = self.folder / name
            # one that is gone was let go of since the listing
            if (text := file.read_if_there()) is not None:
                with intact(file, "a lease"):
                    found[int(named[1])] = json.loads(text)
        return found

    def _is_held(self, number: int, lease: Mapping[str, Any]) -> bool:
        if lease["host"] == socket.gethostname():
            return is_alive(lease["pid"], lease["born"])
        renewed_s = self._lease_file(number).modified_s()
        return renewed_s is not None and self._now_s() - renewed_s < LEASE_EXPIRES_S

    def _now_s(self) -> float:
        """By the storage's clock; who may look at a run and not write there has no other clock than his own."""
        try:
            return self.folder.now_s()
        except StorageError:
            return time.time()


class Run(RunFolder):
    """The one writer of a run folder, from `with Run(...)` to its end.

    accepts is given the spec.yaml that already stands there, once nobody else can change it, and raises InputError
    where this run must not go on from it. Entering also raises InputError where somebody else runs it; leaving raises
    JobFailed where somebody has taken it over.
    """

    def __init__(
        self,
        folder: Place,
        *,
        spec_yaml: str,
        kind: str,
        version: str,
        listener: Listener = lambda event: None,
        accepts: Callable[[str], None] = lambda spec_yaml: None,
    ) -> None:
        super().__init__(folder)
        self._spec_yaml = spec_yaml
        self._kind = kind
        self._version = version
        self._listener = listener
        self._accepts = accepts
        self._since = utc_now()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._taken_over = False
        self._board: EventFile | None = None
        self._progress_at = 0.0
        self._phase: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._number = self._take_lease()
        try:
            before = self.spec_text()
            if before is not None:
                self._accepts(before)
            (self.folder / "spec.yaml").write(self._spec_yaml.encode())
            self._events = Journal(self.folder / "events.jsonl")
            self._metrics = Journal(self.folder / "metrics.jsonl")
            self._started = time.monotonic()
            resumed = before is not None
            self._emit("start", version=self._version, kind=self._kind, resumed=resumed, environment=_environment())
        except BaseException:
            self._let_go()
            raise
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._taken_over:
                raise JobFailed(f"{self.folder}: stopped, since another submitter has taken this run over") from error
            self._say_the_end(error)
        except StorageError:
            if error is None:  # else what went wrong first is what matters
                raise
        finally:
            self._ended.set()
            self._beating.join()
            self._let_go()

    # what a driver says ------------------------------------------------------------------------------------------

    def phase(self, phase: str, *, total: int | None = None, unit: str = "") -> None:
        """A new phase begins ("preparing"), of `total` units if that is known."""
        self._phase = {"phase": phase, "total": total, "unit": unit}
        self._progress_at = 0.0
        self._emit("phase", **self._phase)

    def progress(self, done: int, **figures: float | int | str) -> None:
        """`done` units of the phase are done; figures are shown beside it."""
        event = {**self._phase, "done": done, **figures}
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_S or done == self._phase.get("total"):
            self._progress_at = now
            self._emit("progress", **event)
        else:
            self._listener({"time": utc_now(), "event": "progress", **event})

    def warn(self, message: str) -> None:
        self._emit("warning", message=message)

    def note(self, message: str) -> None:
        self._emit("note", message=message)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of one step."""
        with plainly(self.folder, "write"):
            if self._board is None:
                self._board = EventFile(self.folder / f"events.out.tfevents.{time.time_ns()}")
            self._board.add(step, values)
        now = utc_now()
        for name, value in values.items():
            self._metrics.append({"step": step, "name": name, "value": float(value), "time": now})

    def result(self, results: Mapping[str, Any]) -> None:
        """What came out, for `show` and the report: JSON values, replacing what stood there."""
        (self.folder / "results.json").write(json.dumps(_finite(results), indent=1, ensure_ascii=False).encode())

    # stopping ----------------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether the user has asked to stop: a driver looks between units of work."""
        return self._stop.is_set()

    def ask_to_stop(self) -> None:
        self._stop.set()

    # inside ------------------------------------------------------------------------------------------------------

    def _emit(self, name: str, **fields: Any) -> None:
        event = {"time": utc_now(), "event": name, **fields}
        self._events.append(event)
        self._listener(event)

    def _say_the_end(self, error: BaseException | None) -> None:
        outcome = "done" if error is None else "interrupted" if self.stopping or _is_interrupt(error) else "failed"
        if outcome == "failed":
            self._emit("failure", message=str(error), cause=type(error).__name__)
        self._fold_metrics()
        self._emit("end", outcome=outcome, message=str(error or ""), seconds=round(time.monotonic() - self._started, 3))
        self._events.fold()

    # the lease ---------------------------------------------------------------------------------------------------

    def _lease(self) -> bytes:
        pid = os.getpid()
        fields = {
            "host": socket.gethostname(),
            "pid": pid,
            "born": born_at(pid),
            "since": self._since,
            "beat": utc_now(),
        }
        return json.dumps(fields).encode()

    def _take_lease(self) -> int:
        """Create the next lease, and clear away those that nobody holds; its number."""
        found = self._leases()
        self._refuse_if_held(found)
        mine = max(found, default=0) + 1
        if not self._lease_file(mine).create(self._lease()):
            raise InputError(
                f"{self.folder}: another submitter has just taken this run; wait for it, or give --name another"
            )
        # Looked at again with this lease in place: of two who both passed the first look, the later one stops here.
        others = {number: lease for number, lease in self._leases().items() if number != mine}
        try:
            self._refuse_if_held(others)
        except InputError:
            self._lease_file(mine).delete()
            raise
        for number in others:
            self._lease_file(number).delete()
        return mine

    def _let_go(self) -> None:
        with suppress(StorageError):  # it expires by itself
            self._lease_file(self._number).delete()

    def _refuse_if_held(self, leases: Mapping[int, dict[str, Any]]) -> None:
        for number, lease in leases.items():
            if self._is_held(number, lease):
                raise InputError(
                    f"{self.folder}: this run is already going on (process {lease['pid']} on {lease['host']}, "
                    f"since {lease['since']}); wait for it, stop it, or give --name another"
                )

    def _beat(self) -> None:
        """Renew the lease and show what was said, for as long as the run goes on, unless it was taken for expired."""
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(StorageError):  # the store is away for a while: what happened meanwhile is seen next time
                if max(self._leases(), default=0) != self._number:
                    self._taken_over = True
                    self.ask_to_stop()
                    return
                self._lease_file(self._number).write(self._lease())
                self._events.flush()
                self._metrics.flush()

    # its end -----------------------------------------------------------------------------------------------------

    def _fold_metrics(self) -> None:
        """Write every figure, of earlier submissions too, into metrics.parquet."""
        if self._board is not None:
            with plainly(self.folder, "write"):
                self._board.close()
        self._metrics.flush()
        rows = self.metrics()
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [("step", pa.int64()), ("name", pa.string()), ("value", pa.float64()), ("time", pa.string())]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), buffer, compression="zstd")
        (self.folder / "metrics.parquet").write(buffer.getvalue())
        self._metrics.delete()


def _environment() -> dict[str, str]:
    """What the run builds on, by name: Python, the system, and the packages that its results depend on."""
    from importlib import metadata

    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in BUILDS_ON:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _is_interrupt(error: BaseException) -> bool:
    from bfp.errors import Interrupted

    return isinstance(error, KeyboardInterrupt | Interrupted)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is undefined is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def is_alive(pid: int, born: str) -> bool:
    """Whether a process of this machine goes on; `born`: what `born_at` told of it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return born_at(pid) == born


def born_at(pid: int) -> str:
    """When a process started, so that a number given out again is not taken for it; "" where that is not told."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
