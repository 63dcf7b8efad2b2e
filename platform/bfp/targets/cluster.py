"""What a kind of cluster has to offer, so that a run can be sent to it and followed: `ray_jobs`, `kuberay`, `slurm`.

A job there is one attempt at a run: several may lie behind one another, at most one goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from bfp.drivers import Capacity
from bfp.runs import Listener
from bfp.targets.letter import Letter

Stage = Literal["waiting", "running", "done", "failed", "stopped"]
OVER = ("done", "failed", "stopped")

Verdict = Literal["ok", "warn", "fail"]


class Job(NamedTuple):
    """One attempt at a run. id: as the cluster calls it; digest: of the spec that it was sent with.

    said: what it waits for, or why it ended, in words; "" where there is nothing to say. exit_code: of the driver,
    where the cluster tells it. attempt: what tells two attempts apart whose id is the same.
    """

    id: str
    stage: Stage
    said: str = ""
    exit_code: int | None = None
    digest: str = ""
    attempt: str = ""


class Check(NamedTuple):
    """One point of a cluster, for `bfp doctor --on NAME`: what was looked at, how it is, and the remedy if one is."""

    point: str
    verdict: Verdict
    text: str
    remedy: str = ""


class Backend(Protocol):
    """A kind of cluster. What cannot be reached or is not allowed raises InputError, with the remedy."""

    def capacity(self) -> Capacity:
        """What it lends to one job, as far as is known before it runs."""

    def nodes(self) -> int:
        """How many nodes Ray has to have before a run begins; 0 where whatever is there will do."""

    def lent(self) -> Capacity | None:
        """What a job gets by the profile alone, though nodes may join later; None where it gets what is there."""

    def manifest(self, letter: Letter) -> str:
        """What would be sent, as text, exactly; nothing is asked of the cluster."""

    def jobs(self, run: str) -> list[Job]:
        """The attempts at a run that it knows of, the latest last."""

    def send(self, letter: Letter, *, attempt: int, listener: Listener) -> Job:
        """Send it, once nothing is left of an earlier attempt; the listener hears of such waiting.

        Where the same attempt is there already, since somebody else has just sent it: that one.
        """

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        """What the driver has written so far; with `follow`, waits for it to begin, and for more until it has ended.

        Where a job that its cluster took up again starts anew, there is an event `begins`.
        """

    def ends(self, job: Job) -> bool:
        """Whether a job that goes on was told to stop, and does not come back by itself."""

    def stop(self, job: Job) -> None:
        """Ask the driver to stop, and see to it that nothing of the job is left."""

    def checks(self) -> Iterator[Check]:
        """Whether it is there, lets us in, and has what a job needs."""
