"""Leases: who runs a run, so that two submitters never do at the same time.

Whoever wants to run it creates the next lease, which only one can, and goes on when no other lease is held. A lease is
held by a living process of this machine, or by another machine's while it is renewed, by the storage's clock: those of
machines differ. One that is not held is passed over, so a run is taken up again after a kill. Who finds a lease above
its own has been taken for dead: it stops, and writes no more.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bfp.errors import InputError, StorageError
from bfp.runs.journal import utc_now
from bfp.storage import Place, intact

EXPIRES_S = 60.0  # a lease from another machine that was not renewed for so long is taken over

_FIELDS = {"host": str, "pid": int, "born": str, "since": str, "beat": str}


class Lease:
    """The leases of a run folder, to look at; and after `take` the one that is this process's."""

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._since = utc_now()
        self._number = 0

    def holder(self) -> dict[str, Any] | None:
        """Who runs this now ({host, pid, since, beat}), or None."""
        return next((lease for number, lease in self._found().items() if self._is_held(number, lease)), None)

    def take(self) -> None:
        """Create the next lease, and clear away those that nobody holds. Raises InputError where somebody does."""
        found = self._found()
        self._refuse_if_held(found)
        mine = max(found, default=0) + 1
        if not self._file(mine).create(self._text()):
            raise InputError(
                f"{self._folder}: another submitter has just taken this run; wait for it, or give --name another"
            )
        # Looked at again with this lease in place: of two who both passed the first look, the later one stops here.
        others = {number: lease for number, lease in self._found().items() if number != mine}
        try:
            self._refuse_if_held(others)
        except InputError:
            self._file(mine).delete()
            raise
        for number in others:
            self._file(number).delete()
        self._number = mine

    def renew(self) -> bool:
        """Renew it; False, and nothing is written, where somebody has taken it for expired."""
        if max(self._found(), default=0) != self._number:
            return False
        self._file(self._number).write(self._text())
        return True

    def let_go(self) -> None:
        with suppress(StorageError):  # it expires by itself
            self._file(self._number).delete()

    def _refuse_if_held(self, leases: Mapping[int, dict[str, Any]]) -> None:
        for number, lease in leases.items():
            if self._is_held(number, lease):
                raise InputError(
                    f"{self._folder}: this run is already going on (process {lease['pid']} on {lease['host']}, "
                    f"since {lease['since']}); wait for it, stop it, or give --name another"
                )

    def _file(self, number: int) -> Place:
        return self._folder / f"lease.{number}.json"

    def _found(self) -> dict[int, dict[str, Any]]:
        """All leases that lie here, by number, held or not."""
        found = {}
        for name in self._folder.names():
            if not (named := re.fullmatch(r"lease[.](\d+)[.]json", name)):
                continue
            file = self._folder / name
            # one that is gone was let go of since the listing
            if (text := file.read_if_there()) is not None:
                with intact(file, "a lease"):
                    found[int(named[1])] = _fields(text)
        return found

    def _text(self) -> bytes:
        pid = os.getpid()
        fields = {
            "host": socket.gethostname(),
            "pid": pid,
            "born": born_at(pid),
            "since": self._since,
            "beat": utc_now(),
        }
        return json.dumps(fields).encode()

    def _is_held(self, number: int, lease: Mapping[str, Any]) -> bool:
        if lease["host"] == socket.gethostname():
            return is_alive(lease["pid"], lease["born"])
        renewed_s = self._file(number).modified_s()
        return renewed_s is not None and self._now_s() - renewed_s < EXPIRES_S

    def _now_s(self) -> float:
        """By the storage's clock; who may look at a run and not write there has no other clock than his own."""
        try:
            return self._folder.now_s()
        except StorageError:
            return time.time()


def _fields(text: bytes) -> dict[str, Any]:
    """What a lease says. Raises ValueError where it is none."""
    said = json.loads(text)
    if not isinstance(said, dict):
        raise ValueError("no JSON object")
    for name, kind in _FIELDS.items():
        if not isinstance(said.get(name), kind):
            raise ValueError(f"{name}: {said.get(name)!r}")
    return said


def is_alive(pid: int, born: str) -> bool:
    """Whether a process of this machine goes on; `born`: what `born_at` told of it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return born_at(pid) == born


def born_at(pid: int) -> str:
    """When a process started, so that a number given out again is not taken for it; "" where that is not told."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""
