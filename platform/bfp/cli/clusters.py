"""Runs on a cluster as who sent them sees them: sent, followed, looked at, stopped.

The run's folder says what was done; the cluster's job says what the attempt at it waits for, or why it ended. Both are
shown where both can be seen from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from bfp.cli.display import Display, event_line
from bfp.cli.jobs import Finished, finished, plan_lines
from bfp.cli.looking import status_text
from bfp.cli.output import grid, shown, write, write_note
from bfp.cli.runs import Status, status_of
from bfp.drivers.plan import Plan
from bfp.errors import InputError, Interrupted, JobFailed
from bfp.runs import RunFolder
from bfp.specs import Spec
from bfp.storage import Place, place
from bfp.targets.cluster import OVER, Job
from bfp.targets.events import event_in
from bfp.targets.remote import Remote

if TYPE_CHECKING:
    from rich.console import RenderableType


class OnCluster(NamedTuple):
    """A run and the latest job of it; status: what its folder says, None where that cannot be seen from here."""

    run: Place
    on: str
    job: Job
    status: Status | None


def send_run(spec: Spec, target: Remote, *, plan: Plan) -> OnCluster:
    """Show the plan and send the job, or find the one that goes on with this very spec."""
    write(plan_lines(spec, plan), stderr=True)
    job = target.send(spec, listener=write_note)
    run = place(spec.folder)
    follow = f"bfp logs {shown(run)} --on {target.name} --follow"
    ways = [f"  job     {job.id}", f"  follow  {follow}", *_ways(run, target.name)]
    write(ways, stderr=True)
    return OnCluster(run, target.name, job, None)


def follow_run(sent: OnCluster, target: Remote) -> Finished:
    """Show a run as it goes on, to its end. Raises what a run on this machine would."""
    try:
        with Display() as display:
            done = target.follow(str(sent.run), sent.job, listener=display)
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer followed; the run goes on on {sent.on}. To stop it: bfp stop {shown(sent.run)} --on {sent.on}"
        ) from None
    if not done:  # what the run came to is in its folder too
        run = RunFolder(sent.run)
        if run.spec_text() is None:
            raise JobFailed(f"job {sent.job.id} is done, and its last word did not come through; see {sent.run}")
        return finished(run)
    status = Status(**done["status"])
    return Finished(status._replace(run=place(str(status.run))), done["figures"], place(done["report"]))


def run_on(target: Remote, run: str) -> OnCluster:
    """What a run on a cluster is at."""
    folder = place(run)
    job = target.state(str(folder))
    with suppress(InputError):
        found = RunFolder(folder)
        if found.spec_text() is not None:
            return OnCluster(folder, target.name, job, status_of(found))
    return OnCluster(folder, target.name, job, None)


def on_cluster_text(found: OnCluster) -> Iterator[RenderableType]:
    """The job in words, then what the run's folder says."""
    yield f"{found.run.name} on {found.on}: {found.job.stage}"
    yield grid([("job", found.job.id), *([("because", found.job.said)] if found.job.said else [])])
    if found.status is not None:
        told = found.status.said in found.job.said  # the same words of the driver's
        yield from status_text(found.status._replace(said="") if told else found.status, on=found.on)
    if found.job.stage not in OVER:
        yield from _ways(found.run, found.on)


def log_lines_on(target: Remote, run: str, *, follow: bool, as_json: bool) -> Iterator[str]:
    """What the driver of a run's latest job writes, its events as text; with `follow`, to its end."""
    for line in target.lines(str(place(run)), follow=follow):
        event = event_in(line)
        if event is None:
            yield json.dumps({"event": "said", "message": line}, ensure_ascii=False) if as_json else line
        elif as_json:
            yield line
        elif event["event"] not in ("planned", "finished"):
            yield event_line({"time": "", **event})


def _ways(run: Place, on: str) -> list[str]:
    return [f"  status  bfp status {shown(run)} --on {on}", f"  stop    bfp stop {shown(run)} --on {on}"]
