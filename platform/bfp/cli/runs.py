"""Runs as the command line sees them: found by their folder, and what they are at."""

from __future__ import annotations

import difflib
import os
import signal
import socket
import time
from datetime import datetime
from typing import Any, NamedTuple

from bfp.errors import BfpError, InputError
from bfp.reports.headline import headline
from bfp.reports.history import tell
from bfp.runs import RunFolder
from bfp.storage import Place, place

STOP_WAIT_S = 60.0


class Status(NamedTuple):
    """What a run is at. started is the first submission's time (ISO 8601, UTC), seconds the time it has run for.

    at: the last phase event with what is known of its progress; said: why it ended, where it did not end well.
    """

    run: Place
    name: str
    kind: str
    outcome: str
    started: str
    seconds: float
    headline: str
    at: dict[str, Any]
    said: str
    holder: dict[str, Any] | None


def find_run(text: str) -> RunFolder:
    """The run in a folder. Raises InputError, with the nearest name, where there is none."""
    folder = place(text)
    run = RunFolder(folder)
    if run.spec_text() is not None:
        return run
    near = difflib.get_close_matches(folder.name, folder.parent.folders(), n=1)
    hint = f"; the nearest is {folder.parent / near[0]}" if near else "; `bfp runs OUTPUT` lists the runs of an output"
    raise InputError(f"{folder}: no run there (no spec.yaml){hint}")


def list_runs(output: Place) -> list[Status]:
    """Every run of an output, the last started last. Raises InputError where there is none."""
    folders = [RunFolder(output / name) for name in output.folders()]
    found = [status_of(run) for run in folders if run.spec_text() is not None]
    if not found:
        raise InputError(f"{output}: no runs there; `bfp submit SPEC` makes one in the spec's `output`")
    return sorted(found, key=lambda status: status.started)


def status_of(run: RunFolder) -> Status:
    """What a run is at, from its events."""
    events = run.events()
    history = tell(events)
    at: dict[str, Any] = {}
    for event in events:
        if event["event"] in ("start", "phase"):
            at = {}
        if event["event"] in ("phase", "progress"):
            at |= {name: value for name, value in event.items() if name not in ("time", "event")}
    outcome = run.outcome()
    ended = next((event for event in reversed(events) if event["event"] == "end"), None)
    return Status(
        run=run.folder,
        name=run.name,
        kind=history.kind,
        outcome=outcome,
        started=history.submissions[0].started.isoformat() if history.submissions else "",
        seconds=round(history.seconds, 3),
        headline=headline(history.kind, run.results().get("figures", {})),
        at=at,
        said=str(ended["message"]) if ended is not None and outcome in ("failed", "interrupted") else "",
        holder=run.holder(),
    )


def stop_run(run: RunFolder) -> str:
    """Ask the process that runs it to stop, as Ctrl-C would, and wait until it has; the run's outcome.

    Raises InputError where nobody runs it, or a process of another machine does.
    """
    holder = run.holder()
    if holder is None:
        raise InputError(f"{run.folder}: nobody runs it now (it is {run.outcome()})")
    if holder["host"] != socket.gethostname():
        raise InputError(
            f"{run.folder}: it runs on {holder['host']}; stop it there (process {holder['pid']}), or with Ctrl-C"
        )
    os.kill(holder["pid"], signal.SIGINT)
    deadline = time.monotonic() + STOP_WAIT_S
    while run.holder() is not None:
        if time.monotonic() > deadline:
            raise BfpError(
                f"{run.folder}: process {holder['pid']} has not stopped within {STOP_WAIT_S:.0f} s; stop it again"
            )
        time.sleep(0.2)
    return run.outcome()


def local_time(iso: str) -> str:
    """A time of day as people here write it: 2026-03-01 14:05."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M") if iso else ""
