"""The events in what a driver on a cluster writes: a JSON object a line, among Ray's own words."""

from __future__ import annotations

import json
from contextlib import suppress

from bfp.runs import Event


def event_in(line: str) -> Event | None:
    """The event of a run that a line of a driver's log holds, if it holds one."""
    if not line.startswith('{"'):
        return None
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str):
            return found
    return None


def is_note(line: str, text: str) -> bool:
    """Whether a line of a log is a note that begins so."""
    event = event_in(line)
    return event is not None and event["event"] == "note" and str(event["message"]).startswith(text)
