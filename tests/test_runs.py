from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bfp.errors import DamagedFile, InputError, Interrupted, JobFailed, StorageError
from bfp.runs import Event, Journal, Run, RunFolder
from bfp.runs import journal as journal_module
from bfp.runs import run as run_module
from bfp.storage import Place

LONG_AGO = "2026-01-01T00:00:00.000Z"


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
    assert [event for event in heard if event["event"] != "figures"] == folder.events()
    assert next(event for event in heard if event["event"] == "figures")["loss"] == 0.5
    assert not list((tmp_path / "a").glob("lease.*"))


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


def _lease_of_another_machine(number: int, folder: Path, *, renewed_s_ago: float, beat: str = LONG_AGO) -> Path:
    """beat: what that machine's clock said when it was renewed."""
    file = folder / f"lease.{number}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({"host": f"not-{socket.gethostname()}", "pid": 1, "born": "", "since": LONG_AGO, "beat": beat})
    )
    os.utime(file, (0, time.time() - renewed_s_ago))
    return file


@pytest.mark.parametrize("turn", range(13))
def test_of_two_submitters_that_find_a_dead_one_s_lease_one_runs_however_their_steps_fall(
    turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lease_of_another_machine(1, tmp_path / "a", renewed_s_ago=3600)
    with ExitStack() as running:
        one, other, entered = _run(tmp_path / "a"), _run(tmp_path / "a"), []
        steps = iter(range(100))

        def enter(run: Run) -> None:
            with suppress(InputError):
                entered.append(running.enter_context(run))

        def step_by_step(act: Callable) -> Callable:
            def acting(*arguments: object) -> object:
                if next(steps) == turn:
                    enter(other)  # between two steps of the first, the second goes all the way
                return act(*arguments)

            return acting

        with monkeypatch.context() as interleaved:
            for name in ("names", "read", "create", "delete", "modified_s"):
                interleaved.setattr(Place, name, step_by_step(getattr(Place, name)))
            enter(one)
        assert next(steps) > turn
        assert len(entered) == 1


def test_another_machine_s_lease_counts_while_it_is_renewed(tmp_path: Path) -> None:
    _lease_of_another_machine(1, tmp_path / "a", renewed_s_ago=30)
    with pytest.raises(InputError, match="already going on \\(process 1 on not-"), _run(tmp_path / "a"):
        pass
    _lease_of_another_machine(1, tmp_path / "a", renewed_s_ago=90)
    with _run(tmp_path / "a"):
        assert [file.name for file in (tmp_path / "a").glob("lease.*")] == ["lease.2.json"]


@pytest.mark.parametrize("off_s", [-7200, 7200])
def test_a_lease_is_as_old_as_the_storage_says_whatever_the_clocks_of_machines_say(
    off_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Place(str(tmp_path)))
    beat = (datetime.now(UTC) + timedelta(seconds=off_s)).isoformat()
    for renewed_s_ago, held in ((5, True), (90, False)):
        _lease_of_another_machine(1, tmp_path, renewed_s_ago=renewed_s_ago, beat=beat)
        assert bool(run.holder()) is held
    assert os.listdir(tmp_path) == ["lease.1.json"]


def test_who_may_only_look_on_sees_who_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Place, data: bytes) -> None:
        raise StorageError(f"{self}: cannot write it: no permission")

    _lease_of_another_machine(1, tmp_path, renewed_s_ago=5)
    monkeypatch.setattr(Place, "write", refuse)
    assert RunFolder(Place(str(tmp_path))).holder()


@pytest.mark.parametrize("text", ["[]", "null", '{"host": "x"}', '{"host": "x", "pid": "1", "born": ""}', "{"])
def test_a_lease_of_another_shape_is_a_damaged_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "lease.1.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"lease\.1\.json: damaged, or not a lease"):
        RunFolder(Place(str(tmp_path))).holder()
    with pytest.raises(DamagedFile, match=r"lease\.1\.json: damaged, or not a lease"), _run(tmp_path):
        pass


def test_a_run_that_was_taken_over_stops_and_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "HEARTBEAT_S", 0.01)
    with pytest.raises(JobFailed, match="another submitter has taken this run over"), _run(tmp_path / "a") as run:
        other = _lease_of_another_machine(2, tmp_path / "a", renewed_s_ago=0)
        deadline = time.monotonic() + 120
        while not run.stopping:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise Interrupted("stopped, as asked")
    assert [event["event"] for event in RunFolder(run.folder).events()] == ["start"]
    assert list((tmp_path / "a").glob("lease.*")) == [other]


def test_a_lease_is_renewed_again_once_a_lost_store_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Place) -> bytes:
        raise StorageError(f"{self}: cannot read it: the store is away")

    monkeypatch.setattr(run_module, "HEARTBEAT_S", 0.01)
    with _run(tmp_path / "a") as run:
        lease = tmp_path / "a/lease.1.json"
        with monkeypatch.context() as outage:
            outage.setattr(Place, "read", away)
            time.sleep(0.1)
        before = lease.read_text()
        deadline = time.monotonic() + 120
        while lease.read_text() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not run.stopping


def test_what_stands_there_is_looked_at_again_under_the_lease(tmp_path: Path) -> None:
    def refuse(spec_yaml: str) -> None:
        raise InputError(f"another spec: {spec_yaml}")

    with _run(tmp_path / "a"):
        pass
    before = sorted((tmp_path / "a").iterdir())
    with pytest.raises(InputError, match="another spec: kind: ingest"), _run(tmp_path / "a", accepts=refuse):
        pass
    assert sorted((tmp_path / "a").iterdir()) == before


def test_what_went_wrong_is_not_hidden_by_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    def lose(folder: Path) -> None:
        folder.rename(tmp_path / f"{folder.name}-away")
        folder.write_text("a file: nothing can be written below it")

    with pytest.raises(ZeroDivisionError), _run(tmp_path / "a"):
        lose(tmp_path / "a")
        _ = 1 / 0
    with pytest.raises(StorageError, match="cannot write it"), _run(tmp_path / "b"):
        lose(tmp_path / "b")


def _records(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_reads_the_figures_of_every_submission(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event as BoardEvent

    for step in (1, 2):
        with _run(tmp_path / "a") as run:
            run.figures(step, {"loss": 1 / step, "rate": 3.0})
    files = sorted((tmp_path / "a").glob("events.out.tfevents.*"))
    events = [BoardEvent.FromString(record) for file in files for record in _records(file)]
    assert [event.file_version for event in events] == ["brain.Event:2", "", "brain.Event:2", ""]
    logged = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert logged == [(1, "loss", 1.0), (1, "rate", 3.0), (2, "loss", 0.5), (2, "rate", 3.0)]


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


def test_damaged_lines_of_a_journal_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'\xff\xfe\x00\n[1]\n5\n{"event": "start"}\n')
    assert Journal(Place(str(tmp_path / "events.jsonl"))).rows() == [{"event": "start"}]


@pytest.mark.parametrize(
    ("file", "look", "content"),
    [
        ("spec.yaml", RunFolder.spec_text, b"\xff\xfe\x80"),
        ("results.json", RunFolder.results, b"\xff\xfe\x80"),
        ("results.json", RunFolder.results, b"[]"),
        ("results.json", RunFolder.results, b""),
        ("metrics.parquet", RunFolder.metrics, b"\xff\xfe\x80"),
        ("metrics.parquet", RunFolder.metrics, b""),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file: str, look: Callable[[RunFolder], object], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{file}: damaged, or not "):
        look(RunFolder(Place(str(tmp_path))))


def test_figures_that_are_damaged_past_the_head_of_their_file_are_named(tmp_path: Path) -> None:
    with _run(tmp_path / "a") as run:
        run.figures(1, {"loss": 0.5})
    file = tmp_path / "a/metrics.parquet"
    data = bytearray(file.read_bytes())
    data[4:60] = bytes(56)
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"metrics.parquet: "):
        RunFolder(run.folder).metrics()


def test_a_line_after_one_cut_short_stands_by_itself(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "start"}\n{"event": "no')
    journal = Journal(Place(str(tmp_path / "events.jsonl")))
    journal.append({"event": "note"})
    assert journal.rows() == [{"event": "start"}, {"event": "note"}]


@pytest.fixture
def bucket() -> Iterator[Place]:
    """A folder where nothing can be appended to, as on object storage, in the memory of this process."""
    folder = Place("memory://runs/journal")
    yield folder
    for entry in list(folder.files()):
        entry.place.delete()


def test_on_object_storage_events_and_figures_are_seen_while_the_driver_says_nothing_more(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "HEARTBEAT_S", 0.01)
    with _run(bucket.uri) as run:
        run.note("the last word for hours")
        run.figures(1, {"loss": 1.0})
        deadline = time.monotonic() + 120
        while [event["event"] for event in run.events()] != ["start", "note"] or not run.metrics():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_on_object_storage_figures_that_are_to_be_kept_are_there_at_once(bucket: Place) -> None:
    with _run(bucket.uri) as run:
        run.figures(1, {"loss": 1.0})
        run.keep_figures()
        assert [row["value"] for row in RunFolder(bucket).metrics()] == [1.0]


def test_rows_that_could_not_be_written_are_written_next_time(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Place, data: bytes) -> bool:
        raise StorageError(f"{self}: cannot write it: the store is away")

    journal = Journal(bucket / "events.jsonl")
    journal.append({"event": "start"})
    with monkeypatch.context() as outage, pytest.raises(StorageError, match="away"):
        outage.setattr(Place, "create", away)
        journal.flush()
    journal.append({"event": "note"})
    journal.flush()
    assert Journal(bucket / "events.jsonl").rows() == [{"event": "start"}, {"event": "note"}]


def test_however_long_a_run_is_a_reader_finds_few_segments(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_SEGMENTS", 4)
    journal = Journal(bucket / "events.jsonl")
    for number in range(10):
        journal.append({"event": "note", "number": number}, {"event": "beat", "number": number})
        journal.flush()
        assert len(bucket.names()) <= 4
    assert [row["number"] for row in Journal(bucket / "events.jsonl").rows()] == sorted([*range(10), *range(10)])
    again = Journal(bucket / "events.jsonl")  # the next submission, which counts what the last one has left
    for number in range(10, 13):
        again.append({"event": "note", "number": number})
        again.flush()
        assert len(bucket.names()) <= 4
    assert [row["number"] for row in again.rows() if row["event"] == "note"] == list(range(13))


def test_a_segment_whose_writing_was_answered_to_nobody_counts_once(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Place.create

    def lost(self: Place, data: bytes) -> bool:
        create(self, data)
        raise StorageError(f"{self}: cannot write it: the reply was lost")

    journal = Journal(bucket / "events.jsonl")
    journal.append({"event": "start"})
    with monkeypatch.context() as outage, pytest.raises(StorageError, match="lost"):
        outage.setattr(Place, "create", lost)
        journal.flush()
    journal.flush()
    assert journal.rows() == [{"event": "start"}]


@pytest.mark.parametrize("turn", range(4))
def test_who_reads_while_a_journal_is_folded_sees_every_row_once(
    turn: int, bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"time": str(number)} for number in range(3)]
    journal = Journal(bucket / "events.jsonl")
    for row in rows[:2]:
        journal.append(row)
        journal.flush()
    journal.append(rows[2])
    steps = iter(range(100))

    def step_by_step(act: Callable) -> Callable:
        def acting(*arguments: object) -> object:
            if next(steps) == turn:
                journal.fold()  # between two steps of the reader
            return act(*arguments)

        return acting

    reader = Journal(bucket / "events.jsonl")
    for name in ("names", "read", "exists"):
        monkeypatch.setattr(Place, name, step_by_step(getattr(Place, name)))
    seen = reader.rows()
    assert next(steps) > turn
    assert seen in (rows[:2], rows)
    assert reader.rows() == rows


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_what_is_said_twice_in_a_millisecond_stands_twice(where: str, bucket: Place, tmp_path: Path) -> None:
    journal = Journal((bucket if where == "bucket" else Place(str(tmp_path))) / "events.jsonl")
    rows = [{"time": "1", "event": "warning"}] * 2
    for row in rows:
        journal.append(row)
    journal.flush()
    assert journal.rows() == rows
    journal.fold()
    assert journal.rows() == rows


def test_what_others_put_beside_a_journal_is_no_part_of_it(bucket: Place) -> None:
    (bucket / "events.jsonl.gz").write(b"")
    (bucket / "events.jsonl.000001").write(b'{"event": "start"}\n')
    (bucket / "events.jsonl.0001.bak").write(b'{"event": "end"}\n')
    assert Journal(bucket / "events.jsonl").rows() == [{"event": "start"}]


def test_one_thread_may_append_while_another_flushes(bucket: Place) -> None:
    journal, ended = Journal(bucket / "events.jsonl"), threading.Event()

    def flush() -> None:
        while not ended.is_set():
            journal.flush()

    flushing = threading.Thread(target=flush)
    flushing.start()
    rows = [{"time": str(number)} for number in range(500)]
    for row in rows:
        journal.append(row)
    ended.set()
    flushing.join()
    journal.fold()
    assert journal.rows() == rows


def test_a_fold_killed_before_its_segments_were_deleted_doubles_nothing(s3_bucket: str) -> None:
    file = Place(s3_bucket) / "folding/events.jsonl"
    journal = Journal(file)
    rows = [{"time": str(number), "event": "note"} for number in range(4)]
    for row in rows[:3]:
        journal.append(row)
        journal.flush()
    journal.fold()
    for number in (2, 3):  # what a kill leaves behind
        (file.parent / f"events.jsonl.{number:06d}").write(json.dumps(rows[number - 1]).encode() + b"\n")
    assert Journal(file).rows() == rows[:3]
    again = Journal(file)
    again.append(rows[3])
    again.fold()
    assert Journal(file).rows() == rows
    assert file.parent.names() == ["events.jsonl"]


def test_two_writers_of_one_journal_overwrite_none_of_each_other_s_segments(s3_bucket: str) -> None:
    file = Place(s3_bucket) / "two-writers/events.jsonl"
    one, other = Journal(file), Journal(file)
    for journal, time_ in ((one, "1"), (other, "2")):
        journal.append({"time": time_})
        journal.flush()
    assert [row["time"] for row in Journal(file).rows()] == ["1", "2"]


def test_a_fold_removes_no_segment_that_came_meanwhile(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = bucket / "events.jsonl", Place.write
    one, other = Journal(file), Journal(file)
    one.append({"time": "1"})
    other.append({"time": "2"})

    def meanwhile(self: Place, data: bytes) -> None:
        write(self, data)
        other.flush()

    with monkeypatch.context() as interleaved:
        interleaved.setattr(Place, "write", meanwhile)
        one.fold()
    assert [row["time"] for row in Journal(file).rows()] == ["1", "2"]


def test_a_run_on_an_object_store_ends_as_one_file_each(s3_bucket: str) -> None:
    folder = Place(s3_bucket) / "runs/a"
    with _run(folder.uri) as run:
        run.note("one")
        run.figures(1, {"loss": 1.0})
        run.result({"figures": {"loss": 1.0}})
    board, names = [[name for name in folder.names() if ("tfevents" in name) is wanted] for wanted in (True, False)]
    assert names == ["events.jsonl", "metrics.parquet", "results.json", "spec.yaml"]
    assert len(board) == 1
    found = RunFolder(folder)
    assert [event["event"] for event in found.events()] == ["start", "note", "end"]
    assert found.metrics()[0]["value"] == 1.0
    assert found.results() == {"figures": {"loss": 1.0}}
