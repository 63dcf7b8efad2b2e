"""The one writer of a run folder, who holds its lease and keeps its journals."""

from __future__ import annotations

import io
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from bfp.errors import Interrupted, JobFailed, StorageError
from bfp.runs.board import EventFile
from bfp.runs.folder import Event, RunFolder
from bfp.runs.journal import Journal, finite, utc_now
from bfp.runs.lease import Lease
from bfp.runs.tracking import Tracker
from bfp.storage import Place, plainly

Listener = Callable[[Event], None]

HEARTBEAT_S = 10.0  # the lease is renewed, and on object storage events and figures become visible
PROGRESS_S = 1.0  # progress is written at most so often; the listener hears all of it

# whose versions are recorded with each submission
BUILDS_ON = ("torch", "timm", "ray", "numpy", "pyarrow", "nibabel", "SimpleITK", "scikit-learn", "dcm2niix")


class Run(RunFolder):
    """The one writer of a run folder, from `with Run(...)` to its end.

    accepts is given the spec.yaml that already stands there, once nobody else can change it, and raises InputError
    where this run must not go on from it. tracking: an MLflow server or folder that figures also go to (`tracking`).
    Entering also raises InputError where somebody else runs it; leaving raises JobFailed where somebody has taken it
    over.
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
        tracking: str | None = None,
    ) -> None:
        super().__init__(folder)
        self._spec_yaml = spec_yaml
        self._kind = kind
        self._version = version
        self._listener = listener
        self._accepts = accepts
        self._tracking = tracking
        self._tracker: Tracker | None = None
        self._lease = Lease(folder)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._taken_over = False
        self._board: EventFile | None = None
        self._progress_at = 0.0
        self._phase: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._lease.take()
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
            self._lease.let_go()
            raise
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        if self._tracking is not None:
            self._tracker = Tracker(
                self._tracking,
                folder=self.folder.uri,
                name=self.name,
                kind=self._kind,
                spec_yaml=self._spec_yaml,
            )
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
            self._lease.let_go()

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
        self._metrics.append(
            *({"step": step, "name": name, "value": float(value), "time": now} for name, value in values.items())
        )
        self._listener({"time": now, "event": "figures", "step": step, **values})
        if self._tracker is not None:
            self._tracker.add(step, values)
            self._say_trouble(self._tracker)

    def keep_figures(self) -> None:
        """Make all figures so far such that a kill does not lose them; on object storage others may be for a while."""
        self._metrics.flush()

    def result(self, results: Mapping[str, Any]) -> None:
        """What came out, for `show` and the report: JSON values, replacing what stood there."""
        (self.folder / "results.json").write(json.dumps(finite(results), indent=1, ensure_ascii=False).encode())

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

    def _say_trouble(self, tracker: Tracker) -> None:
        trouble = tracker.trouble()
        if trouble is not None:
            self.warn(trouble)

    def _say_the_end(self, error: BaseException | None) -> None:
        outcome = "done" if error is None else "interrupted" if self.stopping or _is_interrupt(error) else "failed"
        if outcome == "failed":
            self._emit("failure", message=str(error), cause=type(error).__name__)
        self._fold_metrics()
        if self._tracker is not None:
            self._tracker.close(outcome)
            self._say_trouble(self._tracker)
        self._emit("end", outcome=outcome, message=str(error or ""), seconds=round(time.monotonic() - self._started, 3))
        self._events.fold()

    def _beat(self) -> None:
        """Renew the lease and show what was said, for as long as the run goes on, unless it was taken for expired."""
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(StorageError):  # the store is away for a while: what happened meanwhile is seen next time
                if not self._lease.renew():
                    self._taken_over = True
                    self.ask_to_stop()
                    return
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
    return isinstance(error, KeyboardInterrupt | Interrupted)
