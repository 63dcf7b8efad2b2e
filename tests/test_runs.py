from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bfp.errors import InputError, Interrupted
from bfp.runs import Event, Run, RunFolder
from bfp.storage import Place


def _run(folder: Path | str, **more: object) -> Run:
    return Run(Place(str(folder)), spec_yaml="kind: ingest\n", kind="ingest", version="0", **more)  # type: ignore[arg-type]


def test_a_run_that_ends_says_done_and_keeps_every_figure(tmp_path: Path) -> None:
    heard: list[Event] = []
    with _run(tmp_path / "a", listener=heard.append) as run:
        run.phase("training", total=2, unit="steps")
        run.progress(1, loss=0.5)
        run.figures(1, {"loss": 0.5})
        run.figures(2, {"loss": math.nan})
        run.warn("the gradient is not finite")
    folder = RunFolder(Place(str(tmp_path / "a")))
    assert folder.outcome() == "done"
    assert [(row["step"], row["value"]) for row in folder.metrics()] == [(1, 0.5), (2, None)]
    assert [event["event"] for event in folder.events()] == ["start", "phase", "progress", "warning", "end"]
    assert heard == folder.events()
    assert not (tmp_path / "a/lease.json").exists()


def test_a_run_goes_on_where_it_was_left_and_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), _run(tmp_path / "a") as run:
        run.figures(1, {"loss": 3.0})
        run.figures(2, {"loss": 2.5})
        raise Interrupted("stopped at step 2")
    assert RunFolder(Place(str(tmp_path / "a"))).outcome() == "interrupted"
    with _run(tmp_path / "a") as run:
        run.figures(2, {"loss": 2.0})
    folder = RunFolder(Place(str(tmp_path / "a")))
    assert [(row["step"], row["value"]) for row in folder.metrics()] == [(1, 3.0), (2, 2.0)]
    assert [event["resumed"] for event in folder.events() if event["event"] == "start"] == [False, True]


def test_a_failure_is_recorded_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), _run(tmp_path / "a"):
        _ = 1 / 0
    folder = RunFolder(Place(str(tmp_path / "a")))
    assert folder.outcome() == "failed"
    (failure,) = [event for event in folder.events() if event["event"] == "failure"]
    assert failure["cause"] == "ZeroDivisionError"


def test_two_submitters_never_run_one_run(tmp_path: Path) -> None:
    with (
        _run(tmp_path / "a"),
        pytest.raises(InputError, match=f"already going on \\(process {os.getpid()}"),
        _run(tmp_path / "a"),
    ):
        pass


def test_a_killed_run_is_lost_and_can_be_taken_up_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from tests.test_runs import _run\n"
        f"with _run({str(tmp_path / 'a')!r}) as run:\n"
        "    run.figures(1, {'loss': 1.0}); print('up', flush=True); time.sleep(60)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "up\n"
    folder = RunFolder(Place(str(tmp_path / "a")))
    assert folder.outcome() == "running"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert folder.outcome() == "lost"
    with _run(tmp_path / "a") as run:
        run.figures(2, {"loss": 0.5})
    assert [row["step"] for row in folder.metrics()] == [1, 2]


def test_a_line_cut_short_by_a_crash_hides_no_other(tmp_path: Path) -> None:
    with _run(tmp_path / "a") as run:
        run.note("kept")
    with open(tmp_path / "a/events.jsonl", "ab") as events:
        events.write(b'{"event": "no')
    assert [event["event"] for event in RunFolder(Place(str(tmp_path / "a"))).events()] == ["start", "note", "end"]


def test_a_run_on_an_object_store_ends_as_one_file_each(s3_bucket: str) -> None:
    folder = Place(s3_bucket) / "runs/a"
    with _run(folder.uri) as run:
        run.note("one")
        run.figures(1, {"loss": 1.0})
        run.result({"figures": {"loss": 1.0}})
    assert folder.names() == ["events.jsonl", "metrics.parquet", "results.json", "spec.yaml"]
    found = RunFolder(folder)
    assert [event["event"] for event in found.events()] == ["start", "note", "end"]
    assert found.metrics()[0]["value"] == 1.0
    assert found.results() == {"figures": {"loss": 1.0}}
