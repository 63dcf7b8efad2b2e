"""A prune and an ingest of one store at once, in many orders of their requests, and a prune that is held up."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bfp.errors import StorageError
from bfp.storage import Place, place
from bfp.store import layout, schemas, turns
from bfp.store.layout import Commit
from bfp.store.prune import DAY_S, remove, survey
from tests.store.makers import part_of
from tests.store.test_prune import aged

REQUESTS = ("write", "create", "read", "delete", "names", "files", "modified_s", "exists")

OF_PRUNE, OF_INGEST = range(3, 12), range(0, 42, 3)
"""After how many requests of either the other's turn comes; a prune makes 11 of them, an ingest about 40."""

Work = Callable[[], object]


class InTurn:
    """Two pieces of work that take turns before each request of theirs to the storage.

    switches: how many requests the first may make before the second goes on, the second before the first goes on, and
    so on; at the end of the list both go on as they come. Whoever waits for the other, or has ended, gives up its turn.
    """

    def __init__(self, switches: list[int]) -> None:
        self._switches, self._left = switches[1:], switches[0]
        self._turn, self._open = 0, {0, 1}
        self._free = threading.Condition()
        self._own = threading.local()

    def run(self, first: Work, second: Work) -> tuple[Any, Any]:
        outcomes: list[Any] = [None, None]

        def go(number: int, work: Work) -> None:
            self._own.number = number
            try:
                outcomes[number] = work()
            except Exception as error:
                outcomes[number] = error
            finally:
                with self._free:
                    self._open.discard(number)
                    self._pass_on()

        threads = [threading.Thread(target=go, args=pair) for pair in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive(), "both wait"
        return outcomes[0], outcomes[1]

    def request(self) -> None:
        """Called before each request: waits for the turn."""
        if (number := getattr(self._own, "number", None)) is None:
            return
        with self._free:
            if self._turn == number and not self._left:
                self._pass_on()
            self._free.wait_for(lambda: self._turn == number or len(self._open) == 1)
            self._left -= 1

    def give_up(self) -> None:
        """Called by who waits for the other."""
        with self._free:
            self._pass_on()
            self._free.wait_for(lambda: self._turn == self._own.number or len(self._open) == 1)

    def _pass_on(self) -> None:
        self._turn, self._left = 1 - self._turn, self._switches.pop(0) if self._switches else 1_000_000
        self._free.notify_all()


@contextmanager
def taking_turns(monkeypatch: pytest.MonkeyPatch, switches: list[int]) -> Iterator[InTurn]:
    """Requests of `Place` as those of an object store, one by one; what is done in threads is done in turn."""
    turn = InTurn(switches)

    def gated(name: str) -> Callable[..., Any]:
        plain = getattr(Place, name)

        def method(here: Place, *arguments: Any) -> Any:
            turn.request()
            return iter(list(plain(here, *arguments))) if name == "files" else plain(here, *arguments)

        return method

    def touch(here: Place) -> bool:
        try:
            here.write(here.read())
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        return True

    class OneByOne:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> OneByOne:
            return self

        def __exit__(self, *_: Any) -> None: ...

        map = staticmethod(map)

    with monkeypatch.context() as patch:
        for name in REQUESTS:
            patch.setattr(Place, name, gated(name))
        patch.setattr(Place, "touch", touch)
        patch.setattr(layout, "ThreadPoolExecutor", OneByOne)
        patch.setattr("bfp.store.prune.ThreadPoolExecutor", OneByOne)
        patch.setattr(turns.time, "sleep", lambda seconds: turn.give_up())
        yield turn


def rows(text: str) -> list[pa.Table]:
    row = dict.fromkeys(schemas.REJECTED.names, text) | {"cohort": "new"}
    return [pa.Table.from_pylist([row], schemas.REJECTED)]


def shard(store: Place, name: str) -> Commit:
    """Prepare and commit the shard, as `ingest` does."""
    part = part_of(store, "rejected", schemas.REJECTED, rows(name))
    assert part is not None
    return layout.commit(store, Commit(name=name, kind="shard", cohort="new", parts=[part]))


def ingest(store: Place, wait: Work) -> str:
    """What `drivers.ingest` does of two shards, to the letter of `turns`."""
    names = ["one", "two"]
    layout.renew(store, names)
    for _ in turns.while_pruned(store):
        wait()
    committed = layout.whole(store, names)
    for name in names:
        if name not in committed and layout.standing(store, name) is None:
            shard(store, name)

    with turns.marked(store, "ingest"):
        for _ in turns.while_pruned(store):
            wait()
        whole = layout.whole(store, names)
        if len(whole) < len(names):
            return "failed"
        layout.take_snapshot(store, whole.values(), cohorts=["new"])
        return "done"


def before(folder: Path, *, left: str) -> Place:
    """A store with a snapshot, and, of an ingest that was killed two days ago, shard "one": its parts, or all of it."""
    store = place(str(folder))
    layout.make(store, {"size": 28, "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]}})
    part = part_of(store, "rejected", schemas.REJECTED, rows("old"))
    assert part is not None
    old = layout.commit(store, Commit(name="old", kind="shard", cohort="old", parts=[part]))
    layout.take_snapshot(store, [old], cohorts=["old"])
    shard(store, "one")
    if left == "parts":
        (store / layout.commit_file("one")).delete()
    aged(store)
    return store


def lacking(store: Place) -> set[str]:
    """The live commits that are not there with all of their parts."""
    latest = layout.latest_snapshot(store)
    assert latest is not None
    names = {record.name for record in latest.snapshot.commits}
    return names - layout.whole(store, names).keys()


@pytest.mark.parametrize("left", ["parts", "commit"])
@pytest.mark.parametrize("grace_s", [0.0, DAY_S])
@pytest.mark.parametrize("ingest_first", [True, False])
def test_whatever_comes_first_every_snapshot_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, grace_s: float, ingest_first: bool
) -> None:
    def prunes() -> object:
        return remove(survey(store, older_than_s=grace_s))

    def ingests() -> str:
        return ingest(store, turn.give_up)

    outcomes = Counter[str]()
    switches = product(OF_INGEST, OF_PRUNE) if ingest_first else product(OF_PRUNE, [*OF_INGEST[1:], 1000])
    for one, two in switches:
        store = before(tmp_path / f"{one}-{two}", left=left)
        with taking_turns(monkeypatch, [one, two]) as turn:
            if ingest_first:
                done, removed = turn.run(ingests, prunes)
            else:
                removed, done = turn.run(prunes, ingests)
        assert isinstance(removed, list), removed
        assert isinstance(done, str), done
        outcomes[done] += 1
        assert not lacking(store), (one, two)
        if done != "done":
            assert ingest(store, lambda: None) == "done"
        assert not lacking(store), (one, two)
    assert outcomes["done"]
    assert outcomes.total() > outcomes["done"] or grace_s, outcomes


def test_a_prune_renews_its_marker_and_stops_where_it_was_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = before(tmp_path / "store", left="commit")
    with turns.marked(store, "prune") as marker:
        aged(store)
        old = marker.place.modified_s()
        marker.keep()
        assert marker.place.modified_s() == old
        monkeypatch.setattr(turns, "RENEWED_AFTER_S", 0.01)
        time.sleep(0.02)
        monkeypatch.setattr(turns, "RENEWED_AFTER_S", 5)
        marker.keep()
        assert marker.place.modified_s() == old
        monkeypatch.setattr(turns, "RENEWED_AFTER_S", 0.01)
        marker.keep()
        assert (marker.place.modified_s() or 0) > (old or 0) + DAY_S
    assert not any(turns.while_pruned(store))
    monkeypatch.setattr(turns, "RENEWED_AFTER_S", 0)
    monkeypatch.setattr(turns, "FENCE_S", 0)
    with pytest.raises(StorageError, match=r"held up for 0 s, .* do it again"):
        remove(survey(store, older_than_s=0))
    assert layout.committed(store) == {"old", "one"}
    assert not any(map(layout.marker_of, store.names()))


def test_who_waits_for_prunes_waits_for_none_that_comes_later(tmp_path: Path) -> None:
    store = before(tmp_path / "store", left="commit")
    with turns.marked(store, "prune"):
        waits = turns.while_pruned(store)
        assert [next(waits, "over"), next(waits, "over")] == [None, None]
        later = store / layout.marker_file("prune")
        later.write(b"")
    assert next(waits, "over") == "over"
    assert next(turns.while_pruned(store), "over") is None
    aged(store, days=turns.LEASE_S / DAY_S)
    assert next(turns.while_pruned(store), "over") == "over"


def test_a_prune_gives_way_to_an_ingest_that_takes_its_snapshot_and_says_so_where_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = before(tmp_path / "store", left="commit")
    found = survey(store, older_than_s=0)
    with turns.marked(store, "ingest") as marker:
        monkeypatch.setattr(turns.time, "sleep", lambda seconds: marker.place.delete())
        assert remove(found) == found.waste
        marker.place.write(b"")
        monkeypatch.setattr(turns, "PRUNE_WAITS_S", 0)
        with pytest.raises(StorageError, match=r"an ingest is taking its snapshot, or was killed .* in 10 minutes"):
            remove(found)
        assert {layout.marker_of(name) for name in store.names()} == {"ingest", None}
        monkeypatch.setattr(turns, "LEASE_S", 0)
        assert [each.file for each in survey(store, older_than_s=0).waste] == [marker.place.name]
        assert remove(survey(store, older_than_s=0)) != []
