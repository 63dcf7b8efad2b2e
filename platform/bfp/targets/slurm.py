"""SLURM: a run is a job of `sbatch`, and Ray lives inside its allocation (`slurm_script`, `slurm_job.sh`).

Jobs are asked for by `squeue` and `scontrol`, which every cluster has, accounting or not; the commands are there on a
login node, where `bfp submit` is called. A job's name is made of its run's folder, its comment holds the digest of the
spec. SLURM forgets a job some minutes after its end: then the last line of its log says what became of it.

Two who send one run at the same time both get a job. Each looks again, and all but the first are taken back; none of
these can have begun, since jobs of one name wait for one another.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bfp import __version__
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.runs import Listener
from bfp.specs.clusters import SlurmTarget
from bfp.targets.cluster import OVER, Check, Job
from bfp.targets.events import is_note
from bfp.targets.letter import CHECKED, Letter
from bfp.targets.slurm_script import BY, STOP, job_name, log_file, resources, script
from bfp.targets.slurm_words import AGAIN, ENDS, GOING, WAITING, WAITS, End, waits_for, why_refused

ASKED_EVERY_S = 5.0  # at the most, of the controller; logs are looked at more often
LOOKED_EVERY_S = 0.5
PATIENCE = 60  # times on end that a controller which does not answer is asked again
TIMEOUT_S = 60.0
LAST_LINE_WAIT_S = 10.0  # a network file system shows what another node wrote after a few seconds
LAST_BYTES = 65_536
TOLD_TO_STOP = "told to stop"  # how the word of `slurm_job.sh` begins
SEPARATOR = "|"

# What would change what is sent or asked behind our back; where the cluster is stands in the others.
MISLEADING = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SLURM_")
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER", "SLURM_JWT")

# The lines of the log that `slurm_job.sh` writes for who comes later.
LAST_LINE = re.compile(
    r"^bfp: job (?P<number>\d+) of spec (?P<digest>[0-9a-f]+) (?P<way>begins|goes on|ended with (?P<code>\d+))",
    re.MULTILINE,
)


class Slurm:
    """The SLURM cluster of this login node."""

    def __init__(self, name: str, settings: SlurmTarget) -> None:
        self._name = name
        self._settings = settings
        self._asked: dict[str, tuple[float, list[Job]]] = {}
        self._log_of: dict[str, tuple[Path, str]] = {}  # and the run, by the job's number

    def capacity(self) -> Capacity:
        settings, lent = self._settings, self.lent()
        return replace(lent, memory_gb=settings.nodes * (settings.memory_gb or self._memory_gb()))

    def nodes(self) -> int:
        return self._settings.nodes

    def lent(self) -> Capacity:
        """Without the memory, which the nodes tell."""
        nodes = self._settings.nodes
        cpus, gpus = nodes * self._settings.cpus_per_node, nodes * self._settings.gpus_per_node
        return Capacity(cpus, gpus, 0.0, f"a job on {self._name}")

    def manifest(self, letter: Letter) -> str:
        environment = self._settings.environment or sys.prefix
        return script(letter, self._settings, environment=environment, logs=self._logs(letter.run))

    def jobs(self, run: str) -> list[Job]:
        asked_s, found = self._asked.get(run, (float("-inf"), []))
        return found if time.monotonic() - asked_s < ASKED_EVERY_S else self._ask(run)

    def send(self, letter: Letter, *, attempt: int, listener: Listener) -> Job:
        """attempt is not asked for: jobs have numbers, and SLURM has those of one run wait for one another."""
        text, logs = self.manifest(letter), self._logs(letter.run)
        try:
            os.makedirs(logs, exist_ok=True)  # SLURM makes no folder
        except OSError as error:
            raise InputError(f"{logs}: the folder of the job's log cannot be made: {error.strerror}") from error
        mine = self._call("sbatch", "--parsable", text=text).strip().partition(";")[0]
        there = self._ask(letter.run)
        first = next((job for job in there if job.stage not in OVER), None)
        if first is not None and first.id != mine:
            self._call("scancel", mine)
            return first
        sent = next((job for job in there if job.id == mine), None)
        if sent is None:
            self._call("scancel", mine)
            raise InputError(
                f"--on {self._name}: job {mine} was taken and cannot be found again by its name and comment, by which "
                "bfp knows its jobs: something of this cluster rewrites them; ask whoever runs it (it was cancelled)"
            )
        return sent

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        """The log is opened anew for each look: a network file system shows what is new to who opens it. A controller
        that is busy or restarts does not end it, and what a job waits for that went back into the queue is told."""
        log, run = self._log_of[job.id]
        read, over_s, silent, told = 0, None, 0, job.said
        while True:
            try:
                now = self._now(run, job) if follow else job._replace(stage="done")
                silent = 0
            except InputError:
                silent += 1
                if silent > PATIENCE:
                    raise
                time.sleep(ASKED_EVERY_S)
                continue
            over = now.stage in OVER
            if now.stage == "waiting" and now.said not in ("", told):
                told = now.said
                yield json.dumps({"event": "note", "message": told}, ensure_ascii=False)
            new = _from(log, read)
            # A line is whole once it ends; of a job that is over, the last one also as it is.
            whole = len(new) if over else new.rfind(b"\n") + 1
            read += whole
            yield from new[:whole].decode(errors="replace").splitlines()
            if over and not whole:
                over_s = over_s or time.monotonic()
                if not follow or _has_ended(log) or time.monotonic() - over_s > LAST_LINE_WAIT_S:
                    return
            if not whole:
                time.sleep(LOOKED_EVERY_S)

    def ends(self, job: Job) -> bool:
        """By its log, in which the job's shell says that it has heard of it, in its latest start."""
        log, _ = self._log_of[job.id]
        told = False
        for line in _from(log, 0).decode(errors="replace").splitlines():
            told = is_note(line, TOLD_TO_STOP) or (told and not _begins(line))
        return told

    def stop(self, job: Job) -> None:
        """What waits is taken out of the queue; what runs is told to save and to end, for which it has ten minutes."""
        _, run = self._log_of[job.id]
        now = next((found for found in self._ask(run) if found.id == job.id), job)
        running = now.stage == "running"
        self._call("scancel", *((f"--signal={STOP}", "--batch") if running else ()), job.id)
        self._asked.pop(run, None)

    def checks(self) -> Iterator[Check]:
        yield Check("SLURM", "ok", self._call("sbatch", "--version").strip())
        try:
            yield from self._check_partition()
            asked = [*resources(self._settings), *self._settings.options]
            said = self._call("sbatch", "--test-only", *asked, text="#!/bin/bash\n", both=True)
            yield Check("job", "ok", said.strip().removeprefix("sbatch: "))
        except InputError as error:
            yield Check("job", "fail", "SLURM would not take it", str(error))
        yield self._check_environment()
        if self._settings.secrets_file is not None:
            yield _check_secrets(Path(self._settings.secrets_file).expanduser())

    # inside ----------------------------------------------------------------------------------------------------------

    def _logs(self, run: str) -> str:
        """The folder of a run's logs. Raises InputError where no node could write there."""
        if self._settings.logs is not None:
            return self._settings.logs
        if "://" in run:
            raise InputError(
                f"[{self._name}] logs: missing; the run's folder is {run}, where SLURM cannot write the job's own log: "
                "name a folder that every node sees"
            )
        return f"{run.removesuffix(CHECKED)}/slurm"

    def _ask(self, run: str) -> list[Job]:
        """The jobs of a run, of SLURM and, where it has forgotten them, of their logs."""
        name, logs = job_name(run), self._logs(run)
        form = SEPARATOR.join(("%i", "%T", "%r", "%k"))
        said = self._call("squeue", "--noheader", "--all", "--states=all", f"--name={name}", f"--format={form}")
        found = {}
        for line in said.splitlines():
            number, state, reason, comment = line.split(SEPARATOR, 3)
            by, _, rest = comment.strip().partition(" ")
            digest, _, its_run = rest.partition(" ")
            if (by, its_run) == (BY, run):
                found[number] = self._job(number, state, reason, digest)
                if state == "COMPLETING" and _has_ended(log := Path(log_file(run, number, logs=logs))):
                    found[number] = _remembered(number, log)
        for log in Path(logs).glob(f"{glob.escape(name)}-*.log"):
            number = log.stem.rpartition("-")[2]
            if number.isdigit() and number not in found:
                found[number] = _remembered(number, log)
        jobs = sorted(found.values(), key=lambda job: int(job.id))
        for job in jobs:
            self._log_of[job.id] = (Path(log_file(run, job.id, logs=logs)), run)
        self._asked[run] = (time.monotonic(), jobs)
        return jobs

    def _job(self, number: str, state: str, reason: str, digest: str) -> Job:
        if state in WAITING:
            return Job(number, "waiting", GOING.get(state) or waits_for(reason, job=number), digest=digest)
        if state not in ENDS:
            return Job(number, "running", GOING.get(state, ""), digest=digest)
        end, code = ENDS[state], None
        with suppress(InputError):  # it may be forgotten in between
            # what its shell ended with, and the signal that ended it
            if told := re.search(r"\bExitCode=(\d+):(\d+)", self._call("scontrol", "show", "job", number)):
                code = 128 + int(told[2]) if told[2] != "0" else int(told[1])
        if state == "FAILED":
            never_begun = reason in WAITS and reason != "None"
            end = End("failed", waits_for(reason, job=number)) if never_begun else _by_code(code)
            end = ENDS["LAUNCH_FAILED"] if reason == "JobLaunchFailure" else end
        return Job(number, end.stage, end.said, code, digest)

    def _now(self, run: str, job: Job) -> Job:
        return next((found for found in self.jobs(run) if found.id == job.id), job._replace(stage="failed"))

    def _memory_gb(self) -> float:
        """Of the smallest node of the partition."""
        try:
            return min(node.memory_gb for node in self._nodes())
        except InputError as error:
            raise InputError(f"{error}; with `memory_gb` in [{self._name}] a dry run asks SLURM for nothing") from error

    def _check_partition(self) -> Iterator[Check]:
        settings, nodes = self._settings, self._nodes()
        partition = nodes[0].partition
        shown = self._call("scontrol", "show", "partition", partition)
        limits = dict(re.findall(r"\b(State|MaxTime|MaxNodes)=(\S+)", shown))
        text = f"{partition}: {limits['State']}, at most {limits['MaxNodes']} nodes and {limits['MaxTime']} for a job"
        longest_h = _hours(limits["MaxTime"])
        if limits["State"] != "UP":
            yield Check("partition", "fail", text, "ask whoever runs the cluster, or name another one")
        elif settings.time_h > longest_h:
            yield Check(
                "partition", "fail", text, f"lower time_h ({settings.time_h:g}); the run goes on in the next job"
            )
        else:
            yield Check("partition", "ok", text)
        fit = [
            node
            for node in nodes
            if node.cpus >= settings.cpus_per_node
            and node.gpus >= settings.gpus_per_node
            and node.memory_gb >= (settings.memory_gb or 0)
        ]
        text = f"{len(fit)} of {len(nodes)} have what is asked for, {settings.nodes} wanted"
        remedy = "see nodes, cpus_per_node, gpus_per_node and memory_gb, and `sinfo -N -o '%N %P %c %m %G'`"
        enough = len(fit) >= settings.nodes
        yield Check("nodes", "ok" if enough else "fail", text, "" if enough else remedy)

    def _check_environment(self) -> Check:
        """Whether bfp is there in this version, seen from here."""
        settings = self._settings
        if settings.container is not None:
            apptainer = shutil.which("apptainer") or shutil.which("singularity")
            if apptainer is None:
                text = f"{settings.container}: not looked into, since Apptainer is not on this node"
                return Check(
                    "container", "warn", text, "the nodes need it: `module avail`, or `modules` of the profile"
                )
            point, command = "container", [apptainer, "exec", settings.container, "python"]
        else:
            point, command = "environment", [f"{settings.environment or sys.prefix}/bin/python"]
        remedy = f"install bfp {__version__} there, where every node sees it"
        try:
            asked = subprocess.run(
                [*command, "-m", "bfp", "--version"], capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check(point, "fail", f"{command[-1]} does not start: {error}", remedy)
        there = asked.stdout.strip()
        if asked.returncode != 0:
            return Check(point, "fail", asked.stderr.strip().splitlines()[-1] if asked.stderr.strip() else "", remedy)
        same = there == f"bfp {__version__}"
        return Check(point, "ok" if same else "fail", f"{there} there", "" if same else remedy)

    def _nodes(self) -> list[Node]:
        """The nodes of the partition. Raises InputError where there is no such partition."""
        wanted = [f"--partition={self._settings.partition}"] if self._settings.partition else []
        form = SEPARATOR.join(("%N", "%P", "%c", "%m", "%G"))
        said = self._call("sinfo", "--noheader", "--Node", f"--format={form}", *wanted)
        rows = [line.split(SEPARATOR) for line in said.splitlines()]
        if not wanted:
            rows = [row for row in rows if row[1].endswith("*")]  # the cluster's default
        if not rows:
            named = self._settings.partition or "a default one"
            raise InputError(f"[{self._name}] partition: the cluster has not {named}; `sinfo -s` lists them")
        return [
            Node(row[1].rstrip("*"), int(row[2].rstrip("+")), int(row[3].rstrip("+")) * 2**20 / 1e9, _gpus(row[4]))
            for row in rows
        ]

    def _call(self, command: str, *arguments: str, text: str | None = None, both: bool = False) -> str:
        """What a command of SLURM says; with `both`, on standard error too. Raises InputError, with the remedy."""
        environment = {
            name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(MISLEADING)
        }
        try:
            done = subprocess.run(
                [command, *arguments],
                input=text or "",
                env={**environment, "LC_ALL": "C.UTF-8"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise InputError(
                f"--on {self._name}: {command} is not on this machine: run it on a login node of the cluster (a spec "
                "and its bfp.toml can be copied there as they are)"
            ) from error
        except subprocess.TimeoutExpired as error:
            said = f"Socket timed out: no answer within {TIMEOUT_S:.0f} s"
            raise InputError(why_refused(said, name=self._name, command=command)) from error
        if done.returncode != 0:
            raise InputError(why_refused(done.stderr or done.stdout, name=self._name, command=command))
        return done.stdout + (done.stderr if both else "")


class Node(NamedTuple):
    """A node of a partition, by what a job can have of it."""

    partition: str
    cpus: int
    memory_gb: float
    gpus: int


def _by_code(code: int | None) -> End:
    """How a job ended whose shell ended with a code other than 0."""
    if code == 130 or code == 128 + signal.SIGUSR2:
        return End("stopped", f"it was told to end, and saved what stands; {AGAIN}")
    if code == InputError.exit_code:
        return End("failed", "it refused to begin: its log says why")
    if code is not None and code > 128:
        return End("failed", f"its driver was killed (exit code {code}), as when memory runs out; {AGAIN}")
    return End("failed", f"its driver failed (exit code {code})")


def _remembered(number: str, log: Path) -> Job:
    """A job that SLURM has forgotten, by the last line of its log."""
    said = list(LAST_LINE.finditer(_end_of(log)))
    last = said[-1] if said else None
    if last is None or last["number"] != number:
        return Job(number, "failed", "SLURM has forgotten it, and its log does not say how it ended")
    digest = last["digest"]
    if last["code"] is None:
        where = "in the queue" if last["way"].startswith("goes") else "as it went on"
        return Job(number, "stopped", f"it was ended {where}, and SLURM has forgotten it; {AGAIN}", digest=digest)
    code = int(last["code"])
    end = End("done", "") if code == 0 else _by_code(code)
    return Job(number, end.stage, end.said, code, digest)


def _begins(line: str) -> bool:
    found = LAST_LINE.match(line)
    return found is not None and found["way"] == "begins"


def _has_ended(log: Path) -> bool:
    """Whether a job's log has its last line."""
    found = LAST_LINE.findall(_end_of(log))
    return bool(found) and bool(found[-1][3])


def _from(log: Path, offset: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read()
    except OSError:  # not there yet, or a network file system that is being put right: nothing new so far
        return b""


def _end_of(log: Path) -> str:
    try:
        return _from(log, max(0, log.stat().st_size - LAST_BYTES)).decode(errors="replace")
    except OSError:
        return ""


def _check_secrets(file: Path) -> Check:
    if not file.is_file():
        return Check("secrets", "fail", f"{file}: no such file", "write NAME=value lines into it, and chmod 600 it")
    found = file.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        return Check(
            "secrets", "fail", f"{file}: others may read or change it", f"chmod 600 {file}; it has to be yours"
        )
    return Check("secrets", "ok", f"{file}: yours alone")


def _gpus(resources: str) -> int:
    """gpu:a100:4(S:0-1),gpu:2 → 6"""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^,:()]+)?:(\d+)", resources))


def _hours(text: str) -> float:
    """1-12:00:00 → 36; UNLIMITED → ∞"""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 24 * days + hours + minutes / 60 + seconds / 3600
