"""What a run will do, said before it starts: the inputs found, the work, the memory, the bytes, the time.

A plan is made without torch and ray (`submit --dry-run` shows it), and making it raises InputError for whatever can be
known to be wrong before anything is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from bfp.drivers.gpus import gpus_here


@dataclass(frozen=True, slots=True)
class Plan:
    """rows: what to show, as (label, value); figures: the same for machines; warnings: plain sentences."""

    rows: list[tuple[str, str]]
    figures: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a target lends to a job. memory_gb: of all its nodes; where: as messages call it."""

    cpus: int
    gpus: int
    memory_gb: float
    where: str = "this machine"

    def up_to(self, lent: Capacity | None) -> Capacity:
        """With what of `lent` is not there yet."""
        if lent is None:
            return self
        more = (max(self.cpus, lent.cpus), max(self.gpus, lent.gpus), max(self.memory_gb, lent.memory_gb))
        return Capacity(*more, self.where)


def capacity_here(cpus: int | None = None) -> Capacity:
    """What this machine lends. cpus: no more than so many; without it, those that this process may use."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Capacity(cpus or cpus_here(), gpus_here(), memory_gb)


def memory_warnings(needed_gb: float, capacity: Capacity) -> list[str]:
    """What to say where a run will need more memory than there is."""
    if needed_gb <= capacity.memory_gb:
        return []
    has_gb = f"{capacity.where} has {capacity.memory_gb:,.1f}"
    return [f"about {needed_gb:,.1f} GB of memory are needed and {has_gb}: lower the workers"]


def cpus_here() -> int:
    """The CPUs that this process may use: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
