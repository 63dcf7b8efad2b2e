"""What a run will do, said before it starts: the inputs found, the work, the memory, the bytes, the time.

A plan is made without torch and ray (`submit --dry-run` shows it), and making it raises InputError for whatever can be
known to be wrong before anything is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """rows: what to show, as (label, value); figures: the same for machines; warnings: plain sentences."""

    rows: list[tuple[str, str]]
    figures: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def memory_warnings(needed_gb: float) -> list[str]:
    """What to say where a run will need more memory than this machine has."""
    here_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed_gb <= here_gb:
        return []
    return [f"about {needed_gb:,.1f} GB of memory are needed and this machine has {here_gb:,.1f}: lower the workers"]


def cpus_here() -> int:
    """The CPUs that this process may use: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
