"""Rows that Ray Data makes, taken one by one, without waiting for the next when the run is asked to stop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

POLL_S = 0.2  # how soon a request to stop is noticed

Row = TypeVar("Row")


def until_stopped(rows: Iterable[Row], stopping: Callable[[], bool]) -> Iterator[Row]:
    """The rows as they come; ends early, also while none comes, as soon as `stopping` says so.

    What makes the rows is not ended by that: Ray's shutdown, which follows, does it.
    """
    arrived: queue.Queue[Callable[[], Row]] = queue.Queue()

    def fetch() -> None:
        try:
            for row in rows:
                arrived.put(lambda row=row: row)  # type: ignore[misc]
            arrived.put(_end)
        except BaseException as error:  # raised again where the rows are used
            failure = error
            arrived.put(lambda: _raise(failure))

    if not stopping():
        threading.Thread(target=fetch, daemon=True).start()
    while not stopping():
        try:
            yield arrived.get(timeout=POLL_S)()
        except queue.Empty:
            continue
        except _End:
            return


class _End(Exception):
    """There are no more rows."""


def _end() -> Row:  # type: ignore[type-var]
    raise _End


def _raise(error: BaseException) -> Row:  # type: ignore[type-var]
    raise error
