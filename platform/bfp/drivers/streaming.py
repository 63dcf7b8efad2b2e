"""Rows that Ray Data makes, taken one by one, without waiting for the next when the run is asked to stop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

POLL_S = 0.2  # how soon a request to stop is noticed

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class _End:
    """There are no more rows; failure: why, where that is no proper end."""

    failure: BaseException | None = None


def until_stopped(rows: Iterable[Row], stopping: Callable[[], bool]) -> Iterator[Row]:
    """The rows as they come; ends early, also while none comes, as soon as `stopping` says so.

    What makes the rows is not ended by that: Ray's shutdown, which follows, does it.
    """
    arrived: queue.Queue[Row | _End] = queue.Queue()

    def fetch() -> None:
        try:
            for row in rows:
                arrived.put(row)
        except BaseException as error:  # raised again where the rows are used
            arrived.put(_End(error))
        else:
            arrived.put(_End())

    if not stopping():
        threading.Thread(target=fetch, daemon=True).start()
    while not stopping():
        try:
            row = arrived.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if not isinstance(row, _End):
            yield row
        elif row.failure is not None:
            raise row.failure
        else:
            return
