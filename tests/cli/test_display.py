"""A run as it goes on, in words."""

from __future__ import annotations

from bfp.cli.display import Display, Progress


def progress(done: int, **figures: float) -> dict:
    return {"event": "progress", "phase": "training", "done": done, "total": 40, "unit": "steps", **figures}


def test_rate_and_time_left_come_from_what_was_seen_lately():
    at = Progress("training", total=40, unit="steps", now=0.0)
    for second in range(11):
        at.hear(progress(20 + second, loss=3.0), now=float(second))
    assert at.rate() == 1.0
    assert at.left_s() == 10.0
    assert at.words() == ["30/40 steps", "1.00/s", "10 s left", "loss 3.00"]


def test_what_an_earlier_submission_did_makes_no_rate():
    at = Progress("training", total=40, unit="steps", now=0.0)
    at.hear(progress(39), now=5.0)
    assert at.rate() is None
    assert at.left_s() is None


def test_a_slow_stretch_is_forgotten():
    at = Progress("training", total=4000, unit="steps", now=0.0)
    at.hear(progress(1), now=0.0)
    for second in range(200):
        at.hear(progress(1 + 2 * second), now=100.0 + second)
    assert at.rate() == 2.0


def test_without_a_terminal_plain_lines_say_the_same(capsys, monkeypatch):
    monkeypatch.setattr("bfp.cli.display.PLAIN_EVERY_S", 0.0)
    with Display() as display:
        display({"event": "phase", "phase": "training", "total": 40, "unit": "steps"})
        display(progress(1, loss=9.1))
        display({"event": "warning", "message": "[odd] one"})
        display({"event": "end", "outcome": "done", "message": "", "seconds": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  training …"
    assert lines[1] == "  training, 1/40 steps, loss 9.10"
    assert lines[2] == "  warning: [odd] one"
    assert lines[3].startswith("  training: 0.0 s, 1/40 steps")


def test_on_a_terminal_one_line_is_alive(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as display:
        display({"event": "phase", "phase": "training", "total": 40, "unit": "steps"})
        display(progress(10, loss=9.1))
    assert "10/40 steps" in capsys.readouterr().err
