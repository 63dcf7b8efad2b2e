"""A cluster as a target: what it is given is checked here, sent once, and followed from here; it runs there.

The driver runs on the cluster, so nothing hangs on who sent it: a closed laptop loses sight of a run and no more.
Its events come back as lines of its log, the same for every kind of cluster, so that the display is that of a run on
this machine. What it says besides (Ray's own words, a traceback) is kept for the case that it ends without a word.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from bfp import drivers
from bfp.drivers import Capacity, Plan
from bfp.errors import DamagedFile, InputError, Interrupted, JobFailed, StorageError
from bfp.runs import Event, Listener, RunFolder
from bfp.specs import Spec
from bfp.specs.clusters import Cluster
from bfp.specs.fields import lies_in
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.paths import local_paths
from bfp.specs.profile import Profile
from bfp.storage import place
from bfp.targets.checks import check_claims, check_same_spec, claims
from bfp.targets.cluster import OVER, Backend, Job
from bfp.targets.events import event_in
from bfp.targets.letter import Letter, letter
from bfp.words import counted

STATE_EVERY_S = 2.0
STOP_WAIT_S = 900.0  # a step of pretraining and its checkpoint
PATIENCE = 15  # times that a cluster which did not answer is asked again, STATE_EVERY_S apart
FORGOTTEN = "the cluster does not know of it any more: it was made anew, or somebody has deleted the job"
UNSEEN = "plan"  # the row of a plan that is left to the nodes
OF_STORAGE = ("AWS_ENDPOINT_URL", "AWS_REGION")  # of `env`: where it is; the rest, such as paths, is of the nodes
KEPT_LINES = 30  # of what a driver says besides its events, shown where it ends without a word


class Remote:
    """One cluster of the profile."""

    def __init__(self, name: str, settings: Cluster, backend: Backend, *, file: str) -> None:
        self.name = name
        self.backend = backend
        self._settings = settings
        self._profile = Profile(file, name, settings, here=False)

    def __enter__(self) -> Self:
        """From here, too, its storage is where the profile says under `env`, unless this machine says otherwise."""
        own = os.path.exists(os.path.expanduser(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")))
        where = {} if own else {name: self._settings.env[name] for name in OF_STORAGE if name in self._settings.env}
        self._set = {name: value for name, value in where.items() if name not in os.environ}
        os.environ.update(self._set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._set:
            os.environ.pop(name, None)

    def plan(self, spec: Spec) -> Plan:
        """What the run will do, as far as it can be told from here. Raises InputError for what is wrong.

        The driver makes the whole plan once more where it runs, before it writes anything.
        """
        self._check_shared(spec)
        capacity = self.backend.capacity()
        check_claims(spec, capacity)
        place_there = ("target", f"{self.name} ({self._settings.target}), {_of(capacity)}")
        try:
            run = RunFolder(place(spec.folder))
            if (text := run.spec_text()) is not None:
                check_same_spec(spec, text, run=run)
            self._check_here(spec)
            found = drivers.plan(spec, capacity=capacity, profile=self._profile)
        except DamagedFile:
            raise
        except StorageError as error:
            unseen = f"made there, before anything is written: what it reads cannot be looked at from here ({error})"
            return Plan([place_there, (UNSEEN, unseen)], {})
        return Plan([place_there, *found.rows], found.figures, [*found.warnings, *self._idle_gpus(spec)])

    def manifest(self, spec: Spec) -> str:
        """Exactly what `submit` would send, as text."""
        return self.backend.manifest(self.letter(spec))

    def letter(self, spec: Spec) -> Letter:
        nodes, lent = self.backend.nodes(), self.backend.lent()
        return letter(spec, target=self.name, settings=self._settings, nodes=nodes, lent=lent)

    def ask(self, spec: Spec, *, listener: Listener) -> dict[str, Any]:
        """What the driver finds where it would run: its plan, and versions. Raises InputError where it would refuse."""
        asked = replace(self.letter(spec), nodes=0, check=True)
        job = self._send(asked, listener)
        try:
            told = self.follow(asked.run, job, listener=listener)
        except KeyboardInterrupt:
            self.backend.stop(job)
            raise Interrupted(f"job {job.id}, which only checks, was told to end") from None
        if not told:
            raise JobFailed(f"job {job.id} is done, and what it found did not come through: ask again")
        return told

    # sending, following, stopping ------------------------------------------------------------------------------------

    def send(self, spec: Spec, *, listener: Listener = lambda event: None) -> Job:
        """The job of this run: the one that goes on, if it was sent with the same spec, or a new one.

        listener: hears what a new one has to wait for. Raises InputError where the run goes on with another spec.
        """
        return self._send(self.letter(spec), listener)

    def _send(self, wanted: Letter, listener: Listener) -> Job:
        going = _going(before := self.backend.jobs(wanted.run))
        if going is not None and self._ends(going):
            listener({"event": "note", "message": f"job {going.id} was told to stop: waiting until it has saved"})
            self._await_the_end(wanted.run, going)
            going = _going(before := self.backend.jobs(wanted.run))
        job = going or self.backend.send(wanted, attempt=len(before) + 1, listener=listener)
        if job.digest != wanted.digest:
            raise InputError(
                f"{wanted.run}: this run is going on on {self.name} with another spec (job {job.id}); wait for it, or "
                f"stop it with `bfp stop {wanted.run} --on {self.name}`"
            )
        return job

    def job(self, run: str) -> Job:
        """The attempt at a run that goes on, or else the latest. Raises InputError where the cluster knows of none."""
        found = self.backend.jobs(run)
        if not found:
            raise InputError(
                f"{run}: {self.name} knows of no job of this run; it was never sent there, or the cluster was made "
                "anew since: submit it again to go on where it stopped"
            )
        return _going(found) or found[-1]

    def follow(self, run: str, job: Job, *, listener: Listener) -> dict[str, Any]:
        """Hear the run to its end; what the driver says of it at the end (`bfp drive`), {} where that was not heard.

        Raises what a run on this machine would: InputError where the driver refused, having written nothing; JobFailed;
        Interrupted where it was asked to stop.
        """
        finished: dict[str, Any] | None = None
        ended: Event = {}
        besides: deque[str] = deque(maxlen=KEPT_LINES)
        for text in self._heard(run, job, listener):
            event = event_in(text)
            if event is None:
                besides.append(text)
            elif event["event"] in ("checked", "finished"):
                finished = event
            elif event["event"] == "refused":
                raise InputError(str(event["message"]))
            elif event["event"] == "begins":  # again, where its cluster has put it back into the queue
                ended = {}
            elif event["event"] != "planned":
                ended = event if event["event"] in ("start", "end") else ended
                listener(event)
        if finished is not None:
            return finished
        with _out_of_sight():
            now = self._now(run, job)
        self._say_the_end(now, ended, besides)
        return {}

    def lines(self, run: str, *, follow: bool) -> Iterator[str]:
        """What the driver of the latest attempt has written; with `follow`, to its end."""
        return self.backend.lines(self.job(run), follow=follow)

    def state(self, run: str) -> Job:
        """As `job`, with what its driver said of its end, or that it was told to stop."""
        return self._in_its_words(self.job(run))

    def stop(self, run: str, *, listener: Listener = lambda event: None) -> Job:
        """Ask the run to stop, wait until nothing of it is left, and say what became of the job.

        listener: hears that it was asked. Raises Interrupted where somebody no longer waits.
        """
        job = self.job(run)
        if job.stage in OVER:
            raise InputError(f"{run}: nobody runs it on {self.name} now (job {job.id} is {job.stage})")
        others = [other for other in self.backend.jobs(run) if other.stage not in OVER and other.id != job.id]
        for each in (*others, job):  # first those that would begin when it ends
            self.backend.stop(each)
        saves = "waiting until it has saved what stands" if job.stage == "running" else "it has not begun"
        listener({"event": "note", "message": f"job {job.id} was told to stop: {saves}"})
        try:
            with _out_of_sight():
                now = self._await_the_end(run, job)
        except KeyboardInterrupt:
            raise Interrupted(
                f"no longer waited for; job {job.id} was told to stop, and does. When it has: "
                f"bfp status {run} --on {self.name}"
            ) from None
        if now.said == FORGOTTEN:  # it never began, and is deleted
            return now._replace(stage="stopped")
        return self._in_its_words(now)

    # inside ----------------------------------------------------------------------------------------------------------

    def _await_the_end(self, run: str, job: Job) -> Job:
        """A job that was told to stop, once nothing of it is left."""
        until, was = time.monotonic() + STOP_WAIT_S, job.stage
        while (now := self._now(run, job)).stage not in OVER:
            if now.stage == "waiting" and was == "running":  # it was on its way back into the queue when it was told
                self.backend.stop(now)
            was = now.stage
            if time.monotonic() > until:
                raise JobFailed(
                    f"{run}: job {job.id} has not stopped within {STOP_WAIT_S / 60:.0f} minutes; look at "
                    f"`bfp logs {run} --on {self.name}`, and end it by the cluster's own means"
                )
            time.sleep(STATE_EVERY_S)
        return now

    def _in_its_words(self, job: Job) -> Job:
        """A job as its driver's log tells of it, where that is still there and says more than the cluster does."""
        if job.stage == "running" and not job.said and self._ends(job):
            return job._replace(said="it was told to stop, and saves what stands")
        if job.stage not in ("stopped", "failed"):
            return job
        last: Event = {}
        with suppress(InputError):
            for text in self.backend.lines(job, follow=False):
                event = event_in(text)
                if event is not None and event["event"] in ("begins", "end", "refused"):
                    last = event
        if last.get("outcome") == "done":  # it had just finished
            return job._replace(stage="done", said="")
        if job.stage == "failed" and (last.get("outcome") == "failed" or last.get("event") == "refused"):
            return job._replace(said=f"{last['message']} ({job.said})" if job.said else str(last["message"]))
        return job

    def _ends(self, job: Job) -> bool:
        """Whether it was told to stop; where that cannot be seen it goes on, as far as anybody knows."""
        with suppress(InputError):
            return self.backend.ends(job)
        return False

    def _heard(self, run: str, job: Job, listener: Listener) -> Iterator[str]:
        """The lines of a run that was sent."""
        with _out_of_sight():
            yield from self._lines(run, job, listener)

    def _now(self, run: str, job: Job) -> Job:
        """The job as it is now; failed where the cluster has forgotten it."""
        forgotten = job._replace(stage="failed", said=FORGOTTEN)
        for attempt in range(PATIENCE):
            try:
                known = self.backend.jobs(run)
                return next((found for found in known if (found.id, found.attempt) == (job.id, job.attempt)), forgotten)
            except InputError:  # a cluster that is busy, or restarts its own services, answers again soon
                if attempt == PATIENCE - 1:
                    raise
                time.sleep(STATE_EVERY_S)
        raise AssertionError("the last attempt returns or raises")

    def _lines(self, run: str, job: Job, listener: Listener) -> Iterator[str]:
        """The driver's lines; before there are any, what it waits for is told."""
        told = ""
        while (now := self._now(run, job)).stage == "waiting":
            if now.said != told:
                told = now.said
                listener({"event": "note", "message": told})
            time.sleep(STATE_EVERY_S)
        yield from self.backend.lines(now, follow=True)

    def _say_the_end(self, job: Job, ended: Event, besides: deque[str]) -> None:
        """Raise what the end of a job without a last word comes to, unless it is done."""
        if job.stage == "done" or ended.get("outcome") == "done":
            return
        if ended.get("outcome") == "interrupted" or job.stage == "stopped":
            raise Interrupted(str(ended.get("message") or f"stopped (job {job.id}); submit the same again to go on"))
        if ended.get("outcome") == "failed":
            raise JobFailed(str(ended["message"]))
        if any("No module named bfp" in line for line in besides):
            raise InputError(
                f"{self.name}: bfp is not installed where the driver runs; use the image of infra/image, or "
                "install it there"
            )
        last = "\n    ".join(["the last that it wrote:", *besides]) if besides else "it wrote nothing"
        raise JobFailed(f"job {job.id} on {self.name} ended without a word: {job.said or job.stage}; {last}")

    def _check_shared(self, spec: Spec) -> None:
        """Raise InputError for paths that lie on this machine alone."""
        shared, named, mlflow = self._shared(), local_paths(spec), self._settings.mlflow
        if mlflow is not None and mlflow.startswith("file://"):
            named[f"mlflow of [{self.name}]"] = mlflow.removeprefix("file://")
        alone = {field: path for field, path in named.items() if not any(lies_in(path, root) for root in shared)}
        if alone:
            lines = "\n".join(f"    {field}: {path}" for field, path in alone.items())
            known = ", ".join(shared) or "none so far"
            raise InputError(
                f"--on {self.name}: paths that its nodes do not share:\n{lines}\n"
                f"  put them on object storage (s3://…), or below a folder that every node sees, and name that under "
                f"`shared_paths` of [{self.name}] in {self._profile.file} ({known})"
            )

    def _idle_gpus(self, spec: Spec) -> list[str]:
        """What to say where a job takes GPUs by its profile, and nothing of it computes on them."""
        lent = self.backend.lent()
        if lent is None or not lent.gpus or claims(spec, lent).gpus:
            return []
        gpus = counted(lent.gpus, "GPU")
        return [f"{lent.where} has {gpus}, and this {spec.kind} uses none: a target without leaves them to others"]

    def _check_here(self, spec: Spec) -> None:
        """Raise StorageError where a shared folder is not there on this machine: nothing is wrong with that."""
        paths = local_paths(spec).values()
        for root in self._shared():
            if any(lies_in(path, root) for path in paths) and not place(root).path.is_dir():
                raise StorageError(f"{root} is not on this machine")

    def _shared(self) -> list[str]:
        """The folders that every node sees; on Kubernetes those of the volumes too."""
        volumes = self._settings.volumes if isinstance(self._settings, KubeRayTarget) else []
        return [*self._settings.shared_paths, *(volume.path for volume in volumes)]


def _going(jobs: list[Job]) -> Job | None:
    """The one that runs, or else the first of those that wait."""
    going = sorted((job for job in jobs if job.stage not in OVER), key=lambda job: job.stage != "running")
    return going[0] if going else None


@contextmanager
def _out_of_sight() -> Iterator[None]:
    """A cluster that no longer answers is nothing wrong with what was sent, and a run there goes on."""
    try:
        yield
    except InputError as error:
        raise JobFailed(str(error)) from error


def _of(capacity: Capacity) -> str:
    gpus = f", {capacity.gpus} GPUs" if capacity.gpus else ""
    return f"{capacity.cpus:,} CPUs{gpus}, {capacity.memory_gb:,.0f} GB"
