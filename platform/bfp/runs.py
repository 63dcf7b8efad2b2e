"""Runs: the folder of one execution of a job, and what is written there while it goes on.

    <output>/<name>/spec.yaml         the resolved spec, with the code's version
    <output>/<name>/lease.json        who runs it now; gone when nobody does
    <output>/<name>/events.jsonl      what happened, one JSON object a line
    <output>/<name>/metrics.parquet   every logged figure: step, name, value, time
    <output>/<name>/results.json      what came out: figures, tables, pictures with their captions
    <output>/<name>/pictures/ checkpoints/ model/ predictions/ report/

`Run` is the one writer. A driver tells it phases, progress, warnings and figures; a listener (the live display) hears
the same events. On disk a journal is appended to; on object storage, where nothing can be, it is a row of numbered
segments that are folded into one file at the end.

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
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from bfp.errors import InputError
from bfp.storage import Place

Event = dict[str, Any]
Listener = Callable[[Event], None]

HEARTBEAT_S = 10.0
LEASE_EXPIRES_S = 60.0  # a lease from another machine that was not renewed for so long is taken over
SEGMENT_S = 10.0  # on object storage, events become visible after this long at the latest
PROGRESS_S = 1.0  # progress is written at most so often; the listener hears all of it

# whose versions are recorded with each submission
BUILDS_ON = ("torch", "timm", "ray", "numpy", "pyarrow", "nibabel", "SimpleITK", "scikit-learn")


def utc_now() -> str:
    """The time of day, ISO 8601, UTC, milliseconds. It stands in run folders, never in a store."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """JSON lines that only grow: one file on disk, numbered segments beside it on object storage."""

    def __init__(self, file: Place) -> None:
        self._file = file
        self._pending: list[str] = []
        self._segment = len(self._segments())
        self._written_at = time.monotonic()

    def append(self, row: Mapping[str, Any]) -> None:
        self._pending.append(json.dumps(_finite(row), ensure_ascii=False))
        if self._file.is_local or time.monotonic() - self._written_at > SEGMENT_S:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far visible to readers."""
        if not self._pending:
            return
        data = ("\n".join(self._pending) + "\n").encode()
        self._pending.clear()
        self._written_at = time.monotonic()
        if self._file.is_local:
            self._file.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file.path, "ab") as stream:
                stream.write(data)
            return
        self._segment += 1
        self._segment_place(self._segment).write(data)

    def fold(self) -> None:
        """Turn the segments into the one file."""
        self.flush()
        if self._file.is_local or not self._segment:
            return
        self._file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in self.rows()))
        for segment in self._segments():
            segment.delete()
        self._segment = 0

    def rows(self) -> list[dict[str, Any]]:
        """Every row that is visible, oldest first; a last line cut short by a crash is left out."""
        parts = [self._file] if self._file.exists() else []
        lines = [line for part in (*parts, *self._segments()) for line in part.read().splitlines() if line]
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def delete(self) -> None:
        for part in (self._file, *self._segments()):
            part.delete()

    def _segments(self) -> list[Place]:
        if self._file.is_local:
            return []
        prefix = f"{self._file.name}."
        return [self._file.parent / name for name in self._file.parent.names() if name.startswith(prefix)]

    def _segment_place(self, number: int) -> Place:
        return self._file.parent / f"{self._file.name}.{number:06d}"


class RunFolder:
    """A run folder to look at: what was asked, what happened, what came out."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def spec_text(self) -> str | None:
        """The resolved spec as YAML, or None where there is no run."""
        file = self.folder / "spec.yaml"
        return file.read().decode() if file.exists() else None

    def events(self) -> list[Event]:
        return Journal(self.folder / "events.jsonl").rows()

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged figure: rows of step, name, value (float), time; a step logged twice counts as logged last."""
        rows: list[dict[str, Any]] = []
        folded = self.folder / "metrics.parquet"
        if folded.exists():
            with folded.open_parquet() as file:
                rows = file.read().to_pylist()
        rows += Journal(self.folder / "metrics.jsonl").rows()
        return list({(row["name"], row["step"]): row for row in rows}.values())

    def results(self) -> dict[str, Any]:
        """What the driver put into results.json; empty while nothing has come out."""
        file = self.folder / "results.json"
        return json.loads(file.read()) if file.exists() else {}

    def outcome(self) -> str:
        """done, failed, interrupted, running, or lost (the process ended without saying anything)."""
        events = self.events()
        last = next((event for event in reversed(events) if event["event"] in ("start", "end")), None)
        if last is not None and last["event"] == "end":
            return str(last["outcome"])
        return "running" if self.holder() else "lost"

    def holder(self) -> dict[str, Any] | None:
        """Who runs this now ({host, pid, since, beat}), or None."""
        file = self.folder / "lease.json"
        if not file.exists():
            return None
        lease: dict[str, Any] = json.loads(file.read())
        if lease["host"] == socket.gethostname():
            return lease if _alive(lease["pid"], lease["born"]) else None
        beat = datetime.fromisoformat(lease["beat"])
        return lease if (datetime.now(UTC) - beat).total_seconds() < LEASE_EXPIRES_S else None


class Run(RunFolder):
    """The one writer of a run folder, from `with Run(...)` to its end.

    Raises InputError on entering where somebody else is running it.
    """

    def __init__(
        self, folder: Place, *, spec_yaml: str, kind: str, version: str, listener: Listener | None = None
    ) -> None:
        super().__init__(folder)
        self._spec_yaml = spec_yaml
        self._kind = kind
        self._version = version
        self._listener = listener or (lambda event: None)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._progress_at = 0.0
        self._phase: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._take_lease()
        resumed = self.spec_text() is not None
        (self.folder / "spec.yaml").write(self._spec_yaml.encode())
        self._events = Journal(self.folder / "events.jsonl")
        self._metrics = Journal(self.folder / "metrics.jsonl")
        self._started = time.monotonic()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        self._emit("start", version=self._version, kind=self._kind, resumed=resumed, environment=_environment())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = "done" if error is None else "interrupted" if self.stopping or _is_interrupt(error) else "failed"
        if outcome == "failed":
            self._emit("failure", message=str(error), cause=type(error).__name__)
        self._fold_metrics()
        self._emit("end", outcome=outcome, message=str(error or ""), seconds=round(time.monotonic() - self._started, 3))
        self._events.fold()
        self._ended.set()
        self._beating.join()
        (self.folder / "lease.json").delete()

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

    def _lease(self) -> bytes:
        now = utc_now()
        self._since = getattr(self, "_since", now)
        pid = os.getpid()
        fields = {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "since": self._since, "beat": now}
        return json.dumps(fields).encode()

    def _take_lease(self) -> None:
        file = self.folder / "lease.json"
        for _ in range(3):
            if file.create(self._lease()):
                return
            if holder := self.holder():
                raise InputError(
                    f"{self.folder}: this run is already going on (process {holder['pid']} on {holder['host']}, "
                    f"since {holder['since']}); wait for it, stop it, or give --name another"
                )
            file.delete()
        raise InputError(f"{self.folder}: another submitter keeps taking this run; wait for it, or give --name another")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            (self.folder / "lease.json").write(self._lease())

    def _fold_metrics(self) -> None:
        """Write every figure, of earlier submissions too, into metrics.parquet."""
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


def _alive(pid: int, born: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _born(pid) == born


def _born(pid: int) -> str:
    """When a process started, so that a number given out again is not taken for it; "" where that is not told."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
