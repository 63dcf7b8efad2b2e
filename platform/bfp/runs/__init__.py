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

One submitter at a time: `lease` says how.

journal    events and figures as they come: JSON lines on disk and on object storage
board      the figures as TensorBoard reads them
tracking   the same to MLflow, where the profile asks for it
lease      who runs it
folder     a run folder to look at
run        its one writer
scratch    temporary folders, its own and others'

An event is a flat JSON object: `time` (UTC), `event` (start, phase, progress, warning, note, failure, end) and:

    start      version, kind, resumed, environment (python, system and the versions of what the run builds on)
    phase      phase, total, unit
    progress   phase, done, total, unit, and any figures that are worth a glance
    warning    message            note   message
    failure    message, cause
    end        outcome (done, failed, interrupted), message, seconds
    figures    step, and the figures by name: for listeners alone; they are kept as metrics
"""

from bfp.runs.folder import Event, RunFolder
from bfp.runs.journal import Journal, utc_now
from bfp.runs.lease import born_at, is_alive
from bfp.runs.run import Listener, Run

__all__ = ["Event", "Journal", "Listener", "Run", "RunFolder", "born_at", "is_alive", "utc_now"]
