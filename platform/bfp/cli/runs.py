"""Runs as the command line sees them: found by their folder, and what they are at."""

from __future__ import annotations

import difflib
import os
import signal
import socket
import time
from datetime import datetime
from typing import Any, NamedTuple

from bfp.errors import BfpError, DamagedFile, InputError
from bfp.reports.headline import headline
from bfp.reports.history import tell
from bfp.runs import RunFolder
from bfp.storage import Place, place

STOP_WAIT_S = 60.0


class Status(NamedTuple):
    """What a run is at. started is the first submission's time (ISO 8601, UTC), seconds the time it has run for, of
    which last_seconds in its last submission.

    outcome: as `RunFolder.outcome` has it, or "damaged" in the list of an output, where a file of the run cannot be
    read.
    at: the last phase event with what is known of its progress; said: why it ended, where it did not end well.
    """

    run: Place
    name: str
    kind: str
    outcome: str
    started: str
    seconds: float
    last_seconds: float
    headline: str
    at: dict[str, Any]
    said: str
    holder: dict[str, Any] | None


def find_run(text: str) -> RunFolder:
    """The run in a folder. Raises InputError, with the runs below it or the nearest name, where there is none."""
    folder = place(text)
    run = RunFolder(folder)
    if run.spec_text() is not None:
        return run
    below = [run.folder for output in (folder, folder / "runs") for run in _runs_of(output)]
    near = difflib.get_close_matches(folder.name, set(folder.parent.folders()) - {folder.name}, n=1)
    if below:
        hint = f"the runs below it are {', '.join(str(found) for found in below)}"
    elif near:
        hint = f"the nearest is {folder.parent / near[0]}"
    else:
        hint = "`bfp runs OUTPUT` lists the runs of an output"
    raise InputError(f"{folder}: no run there (no spec.yaml); {hint}")


def list_runs(output: Place) -> list[Status]:
    """Every run of an output, the last started last, damaged ones too. Raises InputError where there is none."""
    found = [_status_or_damage(run) for run in _runs_of(output)]
    if not found:
        raise InputError(f"{output}: no runs there; `bfp submit SPEC` makes one in the spec's `output`")
    return sorted(found, key=lambda status: status.started)


def _runs_of(output: Place) -> list[RunFolder]:
    return [RunFolder(output / name) for name in output.folders() if (output / name / "spec.yaml").exists()]


def _status_or_damage(run: RunFolder) -> Status:
    """A damaged run hides no other one."""
    try:
        run.spec_text()
        return status_of(run)
    except DamagedFile as error:
        return status_of(run, damage=str(error))


def status_of(run: RunFolder, *, damage: str = "") -> Status:
    """What a run is at, from its events. damage: what is wrong with its files, which are then not looked into."""
    events = run.events()
    history = tell(events)
    at: dict[str, Any] = {}
    for event in events:
        if event["event"] in ("start", "phase"):
            at = {}
        if event["event"] in ("phase", "progress"):
            at |= {name: value for name, value in event.items() if name not in ("time", "event")}
    outcome = "damaged" if damage else run.outcome()
    ended = next((event for event in reversed(events) if event["event"] == "end"), None)
    return Status(
        run=run.folder,
        name=run.name,
        kind=history.kind,
        outcome=outcome,
        started=history.submissions[0].started.isoformat() if history.submissions else "",
        seconds=round(history.seconds, 3),
        last_seconds=round(history.submissions[-1].seconds, 3) if history.submissions else 0.0,
        headline="" if damage else headline(history.kind, run.results().get("figures", {})),
        at=at,
        said=damage or (str(ended["message"]) if ended is not None and outcome in ("failed", "interrupted") else ""),
        holder=None if damage else run.holder(),
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
            f"{run.folder}: it runs on {holder['host']} (process {holder['pid']}); stop it there, or where it was sent "
            f"to a cluster with `bfp stop {run.folder} --on NAME`"
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


def title(kind: str, name: str) -> str:
    """A run as it is called above what is said of it."""
    return kind if name == kind else f"{kind} {name}".strip()


def local_time(iso: str) -> str:
    """A time of day as people here write it: 2026-03-01 14:05."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M") if iso else ""
