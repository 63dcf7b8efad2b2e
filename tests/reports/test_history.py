from __future__ import annotations

from typing import Any

from bfp.reports.history import Failure, tell


def _event(second: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"time": f"2026-08-03T14:02:{second:02d}.000Z", "event": event, **fields}


START = {"version": "0.1.0", "kind": "ingest", "resumed": False, "environment": {"python": "3.11.9"}}


def test_a_phase_lasts_until_the_next_one_begins() -> None:
    history = tell(
        [
            _event(0, "start", **START),
            _event(1, "phase", phase="listing", total=None, unit="files"),
            _event(3, "phase", phase="preparing", total=8, unit="sessions"),
            _event(7, "progress", phase="preparing", total=8, unit="sessions", done=8),
            _event(10, "end", outcome="done", message="", seconds=10.0),
        ]
    )
    (submission,) = history.submissions
    listing, preparing = submission.phases
    assert (listing.after_s, listing.seconds, listing.done) == (1, 2, None)
    assert (preparing.after_s, preparing.seconds, preparing.done) == (3, 7, 8)
    assert submission.outcome == "done"
    assert submission.environment == {"python": "3.11.9"}


def test_a_killed_submission_lasted_until_its_last_word_and_the_next_is_told_apart() -> None:
    history = tell(
        [
            _event(0, "start", **START),
            _event(2, "phase", phase="preparing", total=8, unit="sessions"),
            _event(5, "progress", phase="preparing", total=8, unit="sessions", done=3),
            _event(30, "start", **START),
            _event(31, "phase", phase="preparing", total=8, unit="sessions"),
            _event(36, "end", outcome="done", message="", seconds=6.0),
        ]
    )
    first, second = history.submissions
    assert (first.outcome, first.seconds) == (None, 5)
    assert (second.outcome, second.seconds) == ("done", 6)
    assert history.seconds == 11


def test_a_failure_ends_its_submission_in_the_last_phase() -> None:
    history = tell(
        [
            _event(0, "start", **START),
            _event(2, "phase", phase="folds", total=5, unit="folds"),
            _event(5, "failure", message="fold 3 holds one class only", cause="InputError"),
            _event(5, "end", outcome="failed", message="fold 3 holds one class only", seconds=5.0),
        ]
    )
    (submission,) = history.submissions
    assert submission.failure == Failure("fold 3 holds one class only", "InputError")
    assert (submission.outcome, submission.phases[-1].name) == ("failed", "folds")


def test_a_warning_said_again_is_counted_not_repeated() -> None:
    warnings = [_event(second, "warning", message=text) for second, text in enumerate(("late", "cold", "late"))]
    assert tell([_event(0, "start", **START), *warnings]).warnings == {"late": 2, "cold": 1}


def test_a_run_that_said_nothing_has_an_empty_history() -> None:
    history = tell([])
    assert (history.kind, history.submissions, history.seconds) == ("", [], 0)
