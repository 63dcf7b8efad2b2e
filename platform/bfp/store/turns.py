"""Turns: what keeps a store whole while a prune and ingests are at work in it at once.

An ingest builds on what it finds: commits of shards that it need not make again, and parts whose content it would
write. Until its snapshot holds them they look to a prune like what a killed run left. No storage deletes a file only on
condition that nobody has come to need it, and a request may be answered minutes after it was meant. Hence this order:

    a prune                                           an ingest
    1  puts its marker into the store                 a  makes the commits that it found count as written now
    2  lists the store, and decides                   b  waits for the prunes whose markers are there
    3  deletes snapshots, then commits, then parts    c  looks what is whole, makes the rest, and commits it
    4  takes its marker away                          d  takes its snapshot
                                                      e  waits for the prunes whose markers are there
                                                      f  looks whether all that it built on is whole: done, or failed

*What a prune may delete* is what no snapshot that it keeps needs, and that is older than its grace (`prune`).

*A store is safe*, whatever the grace, the clocks and the delays, since each side writes (1, d) before it looks (2, e),
and storage lists what was written before (POSIX, S3 and Ceph do). Either d was before 2: then the prune sees the
snapshot and spares what it holds. Or 2, and so 1, was before d: then e finds the marker and waits for 4, or 4 was
before e; in both cases all deletions of that prune are over before f, which sees them. So an ingest that ends as done
left a whole snapshot, and only one that fails may leave a snapshot that lacks something, until it is submitted again.
It waits for no prune that comes after e began: that one's 2 is after d. f is also done right before d, so that a
snapshot which lacks something is the work of a moment.

*An ingest is not failed in vain* by a prune with a grace that is longer than the ingest needs for one shard (it is a
day): after b, what a holds is young for every prune that lists from then on, what was taken before is not whole in c,
and what c makes is young. Only where a part of c was there already, old and of no commit, may a prune that listed
before it was written again take it; f finds that.

*The clock* of every age is the storage's: that of the files themselves. The time of a prune is that of its marker.

*A killed prune* leaves its marker. A prune renews it while it deletes; one that was not renewed for LEASE_S stands for
nobody, and is itself waste. A prune that could not renew its own for FENCE_S deletes nothing more. Deleting one file
may take 250 s more (patience, and the time limit of the last try). What is not excluded is a process that stops
(SIGSTOP, a machine asleep) between its look at the time and its request, for longer than all that: when it goes on it
may delete the few files of that moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bfp.errors import StorageError
from bfp.storage import Place
from bfp.store import layout

RENEWED_AFTER_S = 30.0
FENCE_S = 300.0  # listing a large store and reading its snapshots comes before the first deletion
LEASE_S = 600.0


class Marker:
    """The marker of a prune that is at work. Its place is `place`."""

    def __init__(self, store: Place) -> None:
        self.place = store / layout.marker_file()
        self._renewed = _Stopwatch()
        self.place.write(b"")

    def keep(self) -> None:
        """To be called before each deletion: renews the marker where it is time to.

        Raises StorageError where it was not renewed for too long to go on.
        """
        while (waited_s := self._renewed.seconds()) >= RENEWED_AFTER_S:
            if waited_s >= FENCE_S:
                raise StorageError(
                    f"{self.place.parent}: the prune was held up for {waited_s:.0f} s, and others may build on what it "
                    "would remove; prune again"
                )
            begun = _Stopwatch()
            self.place.write(b"")
            self._renewed = begun


@contextmanager
def marked(store: Place) -> Iterator[Marker]:
    """A prune's marker in the store, until the end of the block."""
    marker = Marker(store)
    try:
        yield marker
    finally:
        marker.place.delete()


def while_pruned(store: Place) -> Iterator[None]:
    """Yields as long as one of the prunes that are at work at the first look still is: to wait, and look again."""
    first = _at_work(store)
    while first:
        yield
        first &= _at_work(store)


def _at_work(store: Place) -> set[str]:
    """The markers of prunes that are at work."""
    markers = [name for name in store.names() if layout.is_marker(name)]
    if not markers:
        return set()
    now_s = store.now_s()
    times = {name: (store / name).modified_s() for name in markers}
    return {name for name, time_s in times.items() if time_s is not None and now_s - time_s < LEASE_S}


class _Stopwatch:
    """Seconds since it was made, those too that the machine slept, which `monotonic` does not count."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.time()

    def seconds(self) -> float:
        return max(time.monotonic() - self._began[0], time.time() - self._began[1])
