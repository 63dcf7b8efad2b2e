"""Attempts: items that are handed to Ray Data, and handed to it again where their worker died.

Ray counts what its memory monitor ends apart from other deaths, and by default tries it again for ever
(`task_oom_retries`, read where a cluster was started, which a job cannot change). A task of `max_retries=0` is tried
once, whatever the cluster says: so attempts are counted here, a round of Ray Data each.

The monitor ends workers until there is room, and those of innocent items with them. After a round in which memory ran
out half as many run at once, and in the last round one by itself: what is ended then needs too much of its own accord.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

# Ray Data drops the row of a task that died, and says why in this log alone.
_LOG = "ray.data._internal.execution.streaming_executor_state"
_OUT_OF_MEMORY = "OutOfMemoryError"  # of ray.exceptions, by name: this module imports no Ray

Item = TypeVar("Item")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Lost:
    """How many items have no row, their worker having died each time: for want of memory, or of whatever else."""

    out_of_memory: int = 0
    died: int = 0


def attempts(
    todo: Mapping[str, Item],
    once: Callable[[list[Item], int | None], Iterable[Row]],
    *,
    name_of: Callable[[Row], str],
    workers: int | None,
    retries: int,
) -> Iterator[Row | Lost]:
    """The rows that `once` makes of the items, as they come, and at the end how many were lost, if any were.

    todo: items by name. once: of items, so many at once (None: one a CPU), the rows of those whose worker lived.
    name_of: the name of a row's item. retries: how many rounds follow the first, for the items that are lost.
    """
    left = dict(todo)
    for following in range(retries, -1, -1):
        with _deaths() as deaths:
            for row in once(list(left.values()), workers):
                left.pop(name_of(row), None)
                yield row
        if not left:
            return
        if deaths[_OUT_OF_MEMORY]:
            workers = 1 if following == 1 else max(1, (workers or _cpus()) // 2)
    out_of_memory = min(deaths[_OUT_OF_MEMORY], len(left))
    yield Lost(out_of_memory, len(left) - out_of_memory)


def _cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


@contextmanager
def _deaths() -> Iterator[Counter[str]]:
    """What ends tasks meanwhile, by the name of its class; what is seen of the log otherwise stays as it is."""
    log = logging.getLogger(_LOG)
    level, shown_from = log.level, log.getEffectiveLevel()
    found: Counter[str] = Counter()

    def note(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0] is not None:
            found[record.exc_info[0].__name__] += 1
        return record.levelno >= shown_from

    log.addFilter(note)
    log.setLevel(min(logging.ERROR, shown_from))
    try:
        yield found
    finally:
        log.setLevel(level)
        log.removeFilter(note)
