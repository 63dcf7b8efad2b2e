"""A run folder to look at: what was asked, what happened, what came out."""

from __future__ import annotations

import json
from typing import Any

from bfp.runs.journal import Journal
from bfp.runs.lease import Lease
from bfp.storage import Place, intact, plainly

Event = dict[str, Any]


class RunFolder:
    """A run folder to look at: what was asked, what happened, what came out.

    Raises DamagedFile where a file that stands there does not hold what it should.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def spec_text(self) -> str | None:
        """The resolved spec as YAML, or None where there is no run."""
        file = self.folder / "spec.yaml"
        if not file.exists():
            return None
        with intact(file, "a spec"):
            return file.read().decode()

    def events(self) -> list[Event]:
        return Journal(self.folder / "events.jsonl").rows()

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged figure: rows of step, name, value (float), time; a step logged twice counts as logged last."""
        late = Journal(self.folder / "metrics.jsonl").rows()  # read first: what is gone from it stands in the table
        rows: list[dict[str, Any]] = []
        folded = self.folder / "metrics.parquet"
        if folded.exists():
            with folded.open_parquet() as file, plainly(folded, "read"), intact(folded, "a table of figures"):
                rows = file.read().to_pylist()
        return list({(row["name"], row["step"]): row for row in rows + late}.values())

    def results(self) -> dict[str, Any]:
        """What the driver put into results.json; empty while nothing has come out."""
        file = self.folder / "results.json"
        if not file.exists():
            return {}
        with intact(file, "what a run came to"):
            found = json.loads(file.read())
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            return found

    def outcome(self) -> str:
        """done, failed, interrupted, running, or lost (the process ended without saying anything)."""
        events = self.events()
        last = next((event for event in reversed(events) if event["event"] in ("start", "end")), None)
        if last is not None and last["event"] == "end":
            return str(last["outcome"])
        return "running" if self.holder() else "lost"

    def holder(self) -> dict[str, Any] | None:
        """Who runs this now ({host, pid, since, beat}), or None."""
        return Lease(self.folder).holder()
