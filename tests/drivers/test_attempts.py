import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bfp.drivers import attempts as module
from bfp.drivers.attempts import Lost, attempts

LOG = logging.getLogger("ray.data.heard")


@pytest.fixture(autouse=True)
def log_of_our_own(monkeypatch):
    """Ray's own may still be listened to by a run that another test has stopped."""
    monkeypatch.setattr(module, "_LOG", LOG.name)


class OutOfMemoryError(Exception):
    """As ray.exceptions has it."""


def died(error: Exception) -> None:
    """What Ray Data does with a task that died."""
    LOG.error("Ignoring this exception", exc_info=error)


class Machine:
    """Workers that end at some items: `deaths` says at which, and of what, given how many items run at once."""

    def __init__(self, deaths: dict[str, Exception], *, alone: frozenset[str] = frozenset()) -> None:
        self.rounds: list[tuple[list[str], int | None]] = []
        self._deaths, self._alone = deaths, alone

    def once(self, items: list[str], workers: int | None) -> Iterator[str]:
        self.rounds.append((items, workers))
        for item in items:
            if item in self._deaths and not (item in self._alone and workers == 1):
                died(self._deaths[item])
            else:
                yield item

    def run(self, *items: str, workers: int | None = 8, retries: int) -> list[str | Lost]:
        named = {item: item for item in items}
        return list(attempts(named, self.once, name_of=str, workers=workers, retries=retries))


def test_only_what_was_lost_is_tried_again_and_so_often_as_was_said():
    machine = Machine({"b": ValueError()})
    assert machine.run("a", "b", "c", retries=2) == ["a", "c", Lost(died=1)]
    assert machine.rounds == [(["a", "b", "c"], 8), (["b"], 8), (["b"], 8)]
    assert Machine({"b": ValueError()}).run("a", "b", retries=0) == ["a", Lost(died=1)]


def test_where_nothing_is_lost_one_round_does():
    machine = Machine({})
    assert machine.run("a", "b", retries=2) == ["a", "b"]
    assert len(machine.rounds) == 1


def test_after_memory_ran_out_fewer_run_at_once_and_at_last_one_by_itself():
    machine = Machine({"big": OutOfMemoryError(), "beside it": OutOfMemoryError()}, alone=frozenset({"beside it"}))
    assert machine.run("a", "big", "beside it", retries=2) == ["a", "beside it", Lost(out_of_memory=1)]
    assert [workers for _, workers in machine.rounds] == [8, 4, 1]


def test_what_is_lost_is_counted_by_what_ended_it():
    machine = Machine({"big": OutOfMemoryError(), "poison": ValueError()})
    assert machine.run("big", "poison", retries=1) == [Lost(out_of_memory=1, died=1)]


def test_the_log_is_heard_and_stays_as_quiet_as_it_was():
    above, shown = logging.getLogger("ray.data"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = shown.append
    level = above.level
    LOG.addHandler(handler)
    try:
        for level_above, told in ((logging.CRITICAL, 0), (logging.INFO, 1)):
            above.setLevel(level_above)
            assert Machine({"big": OutOfMemoryError()}).run("big", retries=0) == [Lost(out_of_memory=1)]
            assert len(shown) == told
            assert (LOG.level, LOG.filters) == (logging.NOTSET, [])
    finally:
        above.setLevel(level)
        LOG.removeHandler(handler)


OUT_OF_MEMORY = """
import json, logging, sys
import ray
from bfp.cohorts import Scan, Session, plan_shards
from bfp.cohorts.sessions import Key
from bfp.drivers import ingest
from bfp.storage import Entry, Place

ray.init(
    address="local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False, logging_level="ERROR",
    log_to_driver=False, _temp_dir=sys.argv[1]
)
logging.getLogger("ray.data").setLevel(logging.CRITICAL)

def task(row, folder=sys.argv[1]):  # where it runs, the arguments are Ray's
    import time
    with open(folder + "/starts", "a") as file:
        file.write("started\\n")
    time.sleep(60)

session = Session(Key("c", "a", ""), (Scan("T1w", Entry(Place("/a"), 1, "")),))
shards = plan_shards([session], mean_sessions=1, preprocessing="", version=1)
(lost,) = ingest.on_ray(shards, task=task, workers=1, retries=1)
with open(sys.argv[1] + "/lost", "w") as file:  # Ray's own processes speak on our standard output
    json.dump([lost.out_of_memory, lost.died], file)
"""


def test_a_shard_that_rays_memory_monitor_ends_is_tried_so_often_and_called_out_of_memory(tmp_path_factory):
    """Whatever the machine has: to this Ray, all of its memory is too much in use."""
    monitor = {"RAY_memory_usage_threshold": "0.0", "RAY_memory_monitor_refresh_ms": "1500"}
    folder = tmp_path_factory.mktemp("r")  # short: sockets lie below it
    (folder / "starts").touch()
    line = [sys.executable, "-c", OUT_OF_MEMORY, str(folder)]
    done = subprocess.run(line, env={**os.environ, **monitor}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((folder / "lost").read_text()) == [1, 0]
    assert len((folder / "starts").read_text().splitlines()) <= 2  # fewer where one is ended before it begins
