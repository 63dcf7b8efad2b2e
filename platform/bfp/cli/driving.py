"""`bfp drive`: the command that a target runs on a cluster, whatever kind it is.

It joins the Ray that is there, runs the job that was sent, and writes a run's events to standard output, a JSON object
a line, as who follows from afar reads them. Beside a run's own events there are:

    planned    rows, warnings: the plan as it was made here
    refused    message: nothing was started
    finished   status, figures, report: what `bfp submit` says at the end
    checked    rows, warnings, bfp, python, ray, free: in place of a run, for `bfp doctor --on NAME`; free: CPUs and
               GPUs that no other job holds now, null where the cluster is made for the job
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from bfp import __version__
from bfp.cli.jobs import finished
from bfp.cli.output import plain
from bfp.errors import InputError
from bfp.runs import Event, Listener, RunFolder
from bfp.runs.lease import EXPIRES_S
from bfp.runs.run import PROGRESS_S
from bfp.storage import place
from bfp.targets.letter import Letter, read_letter
from bfp.targets.local import Local
from bfp.targets.monitoring import Monitored
from bfp.targets.ray_there import free_there, joined_ray

LEASE_WAIT_S = EXPIRES_S + 15


def drive() -> None:
    """Run the job that was sent here, to its end."""
    try:
        letter = read_letter(os.environ)
        _wait_for_the_dead(letter)
        with (
            joined_ray(nodes=letter.nodes, where=f"the cluster {letter.target}", tell=_note) as there,
            Local(joined=there.up_to(letter.lent), profile=letter.profile()) as target,
        ):
            plan = target.plan(letter.spec)
            if letter.check:
                free = None if letter.lent else free_there()
                say({"event": "checked", "rows": plan.rows, "warnings": plan.warnings, "free": free, **_versions()})
                return
            say({"event": "planned", "rows": plan.rows, "warnings": plan.warnings})
            run = target.submit(letter.spec, listener=_listener(letter))
    except InputError as error:
        say({"event": "refused", "message": str(error)})
        raise
    say({"event": "finished", **plain(finished(run))})


def _listener(letter: Letter) -> Listener:
    """Who follows hears the events; Prometheus the figures."""
    monitored = Monitored(run=letter.spec.name, kind=letter.spec.kind)
    told_s = 0.0

    def listen(event: Event) -> None:
        nonlocal told_s
        monitored(event)
        match event["event"]:
            case "figures":
                return
            case "progress" if event["done"] != event["total"]:
                if time.monotonic() - told_s < PROGRESS_S:  # a log of days stays readable
                    return
                told_s = time.monotonic()
        say(event)

    return listen


def say(event: Mapping[str, Any]) -> None:
    """A line at once. Neither a lock nor a buffer lies in between: a signal's handler says something too, in the middle
    of another word or of a thread's."""
    line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    sys.stdout.flush()
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]


def _versions() -> dict[str, str]:
    return {"bfp": __version__, "python": platform.python_version(), "ray": metadata.version("ray")}


def _note(message: str) -> None:
    say({"event": "note", "message": message})


def _wait_for_the_dead(letter: Letter) -> None:
    """Wait while another machine holds the run: of an attempt that died with its machine, the lease has to expire.

    One that is alive renews it, and the run is refused as anywhere.
    """
    run, until = RunFolder(place(letter.spec.folder)), time.monotonic() + LEASE_WAIT_S
    told = False
    while run.holder() is not None and time.monotonic() < until:
        if not told:
            _note("waiting for the lease of an earlier attempt to expire")
            told = True
        time.sleep(2.0)
