"""Processes by their numbers, from /proc (proc(5)): who descends from whom, and what they took. Linux only."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def below(root: int) -> set[int]:
    """A process and all that descend from it, which are there now."""
    parents: dict[int, int] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int(_stat(int(folder.name))[1])
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= new
    return found


def cpu_seconds() -> float:
    """CPU time of this process and of all that descend from it, with those of them that were waited for."""
    ticks = 0
    for pid in below(os.getpid()):
        with suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory of a process, pages that several hold counted in parts (PSS); 0 where it is gone."""
    with suppress(OSError, StopIteration):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def _stat(pid: int) -> list[str]:
    """The fields of a process's `stat` after its name: state, parent, …"""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
