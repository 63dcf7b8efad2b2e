"""Threads that nobody waits for at the end: one of a pool would hold the process while a read hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

from bfp.errors import Unusable

Item = TypeVar("Item")
Value = TypeVar("Value")


def begin(work: Callable[[], Value]) -> Future[Value]:
    """What `work`, in a thread of its own, will return or raise."""
    outcome: Future[Value] = Future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # handed to who waits for it, where it is raised
            outcome.set_exception(error.bare() if isinstance(error, Unusable) else error)
        else:
            outcome.set_result(value)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def side_by_side(work: Callable[[Item], Value], items: Iterable[Item], *, at_once: int) -> list[Value]:
    """What `work` returns of each item, in their order; the first failure is raised."""
    everything = list(items)
    made: dict[int, Value] = {}
    numbers = iter(range(len(everything)))

    def lane() -> None:
        for number in numbers:  # which all lanes share
            made[number] = work(everything[number])

    for running in [begin(lane) for _ in range(min(at_once, len(everything)))]:
        running.result()
    return [made[number] for number in range(len(everything))]
