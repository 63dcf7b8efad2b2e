"""What happened in a run, told from its events: submissions, phases and how long they took, warnings, failures.

A run is submitted once or, after a kill or to go on, several times; each submission begins with a `start` event. One
that was killed has no `end`: it is taken to have lasted until its last event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(slots=True)
class Phase:
    """A stretch of a submission: `done` of `total` units in so many seconds, begun `after_s` seconds into it."""

    name: str
    unit: str
    total: int | None
    done: int | None
    after_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a submission failed: in words, and the kind of error."""

    message: str
    cause: str


@dataclass(slots=True)
class Submission:
    """One attempt. outcome: done, failed, interrupted, or None while (or if never) anything was said of its end."""

    started: datetime
    version: str
    environment: dict[str, str]
    outcome: str | None = None
    seconds: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class History:
    """kind: of the job, "" before the first event; warnings and notes: each sentence and how often it was said."""

    kind: str
    submissions: list[Submission]
    warnings: dict[str, int]
    notes: dict[str, int]

    @property
    def seconds(self) -> float:
        """How long it ran, all submissions together."""
        return sum(submission.seconds for submission in self.submissions)


def tell(events: Sequence[Mapping[str, Any]]) -> History:
    """The history in a run's events, oldest first, as `RunFolder.events` gives them."""
    kind = ""
    submissions: list[Submission] = []
    warnings: dict[str, int] = {}
    notes: dict[str, int] = {}
    for event in events:
        time = datetime.fromisoformat(event["time"])
        if event["event"] == "start":
            kind = str(event["kind"])
            submissions.append(Submission(time, str(event["version"]), dict(event.get("environment", {}))))
        if not submissions:
            continue  # a first line that a crash cut short
        now = submissions[-1]
        now.seconds = (time - now.started).total_seconds()
        if now.phases:
            now.phases[-1].seconds = now.seconds - now.phases[-1].after_s
        match event["event"]:
            case "phase":
                now.phases.append(Phase(event["phase"], event["unit"], event["total"], None, now.seconds, 0.0))
            case "progress" if now.phases:
                now.phases[-1].done = event["done"]
            case "warning":
                warnings[event["message"]] = warnings.get(event["message"], 0) + 1
            case "note":
                notes[event["message"]] = notes.get(event["message"], 0) + 1
            case "failure":
                now.failure = Failure(event["message"], event["cause"])
            case "end":
                now.outcome = event["outcome"]
    return History(kind, submissions, warnings, notes)
