"""Turns: what keeps a store whole while prunes and ingests are at work in it at once.

An ingest builds on what it finds: commits of shards that it need not make again, and parts whose content it would
write. Until its snapshot holds them they look to a prune like what a killed run left. No storage deletes a file only on
condition that nobody has come to need it, and a request may be done minutes after it was meant. Hence a prune takes
turns with what an ingest does last:

    a prune                                           an ingest
    1  puts its marker into the store                 a  makes the commits that it found count as written now
    2  where it finds the marker of an ingest:        b  waits for the prunes whose markers are there
       takes its own away, waits, and begins again    c  looks what is whole, makes the rest, and commits it
    3  lists the store, and decides                   d  puts its marker into the store
    4  deletes snapshots, then commits, then parts    e  waits for the prunes whose markers are there
    5  takes its marker away                          f  looks whether all is whole; takes its snapshot, or fails
                                                      g  takes its marker away

*What a prune may delete* is what no snapshot that it keeps needs, and that is older than its grace (`prune`).

*A store is safe*, whatever the grace and the delays. Each side writes (1, d) before it looks (2, e), and storage lists
what was written before (POSIX, S3 and Ceph do): so of the two one sees the other, or the other is over. Seen both ways
the prune gives way; the ingest waits until it did, and for no prune that comes later, which will see it. So 3 and 4 of
no prune overlap with f of any ingest: nothing goes between the look and the snapshot, and no snapshot comes between a
prune's listing and its deletions. Every snapshot is whole when it is taken, and each prune knows all snapshots.

*An ingest is not failed in vain* by a prune with a grace that is longer than the ingest needs for one shard (it is a
day): after b, what a holds is young for every prune that lists from then on, what was taken before is not whole in c,
and what c makes is young. Only a part that was there before c, old and of no commit, may be taken by a prune that
listed before c wrote it again; f finds that.

*The clock* of every age is the storage's: that of the files themselves. The time of a prune is that of its marker.

*A kill* leaves the marker. Who holds one renews it; one that was not renewed for LEASE_S stands for nobody, and is
itself waste. Who could not renew its own for FENCE_S goes on with nothing that hangs on it. A request that was begun by
then may take 250 s more (patience, and the time limit of the last try). What is not excluded is a process that stops
(SIGSTOP, a machine asleep) between its look at the time and its request, for longer than all that: when it goes on it
deletes the few files of that moment, or takes its snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bfp.errors import StorageError
from bfp.storage import Place
from bfp.store import layout
from bfp.store.layout import Side

RENEWED_AFTER_S = 30.0
FENCE_S = 300.0  # a prune lists a large store and reads its snapshots before the first deletion
LEASE_S = 600.0
POLL_S = 0.2
PRUNE_WAITS_S = 60.0  # an ingest takes its snapshot in a moment; longer only where it was killed, or waits for a prune


class Marker:
    """The marker of a prune or an ingest whose turn it is, or will be. Its place is `place`."""

    def __init__(self, store: Place, side: Side) -> None:
        self.place = store / layout.marker_file(side)
        self._renewed = _Stopwatch()
        self.place.write(b"")

    def keep(self) -> None:
        """To be called before all that hangs on it, and while waiting: renews the marker where it is time to.

        Raises StorageError where it was not renewed for too long to go on.
        """
        while (waited_s := self._renewed.seconds()) >= RENEWED_AFTER_S:
            if waited_s >= FENCE_S:
                raise StorageError(
                    f"{self.place.parent}: held up for {waited_s:.0f} s, and others may have changed the store since; "
                    "do it again"
                )
            begun = _Stopwatch()
            self.place.write(b"")
            self._renewed = begun


@contextmanager
def marked(store: Place, side: Side) -> Iterator[Marker]:
    """A marker in the store, until the end of the block."""
    marker = Marker(store, side)
    try:
        yield marker
    finally:
        marker.place.delete()


@contextmanager
def of_prune(store: Place) -> Iterator[Marker]:
    """The turn of a prune: steps 1, 2 and 5. Raises StorageError where ingests hold it up for PRUNE_WAITS_S."""
    waiting = _Stopwatch()
    while True:
        with marked(store, "prune") as marker:
            if not _at_work(store, "ingest"):
                yield marker
                return
        if waiting.seconds() > PRUNE_WAITS_S:
            raise StorageError(
                f"{store}: an ingest is taking its snapshot, or was killed as it did; prune again in "
                f"{LEASE_S / 60:.0f} minutes"
            )
        time.sleep(POLL_S)


def while_pruned(store: Place) -> Iterator[None]:
    """Yields as long as one of the prunes whose markers are there at the first look is at work: to wait between."""
    first = _at_work(store, "prune")
    while first:
        yield
        first &= _at_work(store, "prune")


def _at_work(store: Place, side: Side) -> set[str]:
    """The markers of that side that were renewed lately."""
    markers = [name for name in store.names() if layout.marker_of(name) == side]
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
