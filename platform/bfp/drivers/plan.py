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


def cpus_here() -> int:
    """The CPUs that this process may use: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
