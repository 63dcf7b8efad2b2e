"""Temporary folders that say whose they are.

A process that is killed leaves its folders behind: a checkpoint on its way, a patient's scan. Whoever makes the next
one, or starts Ray, removes them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bfp.runs.lease import born_at, is_alive

PREFIX = "bfp-scratch-"
OWNER = "owner"  # the process that uses a folder, by number and birth


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder of this user's alone, which is gone at the end with all that is in it."""
    remove_orphans()
    folder = owned_folder(PREFIX, tempfile.gettempdir())
    made = folder / "made"
    try:
        made.mkdir()
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def no_room(folder: Path, why: str | None) -> OSError:
    """What to raise where a folder that `scratch` has made cannot be written to."""
    return OSError(f"{folder.parent.parent}: {why}; make room there, or name another folder by TMPDIR")


def owned_folder(prefix: str, where: str) -> Path:
    """A new folder of this process, until `disown`."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    (folder / OWNER).write_text(f"{os.getpid()} {born_at(os.getpid())}")
    return folder


def disown(folder: Path) -> None:
    """Leave the folder to be kept when the process is gone."""
    (folder / OWNER).unlink(missing_ok=True)


def remove_orphans(prefix: str = PREFIX, where: str | None = None, *, kept_s: float | None = None) -> None:
    """Remove the folders of this user's processes that were killed, and those disowned for so long; None: never."""
    for folder in Path(where or tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            state, owner = folder.stat(), folder / OWNER
            pid, _, born = owner.read_text().partition(" ") if owner.exists() else ("", "", "")
        except OSError:
            continue  # another user's, or removed this moment
        killed = pid.isdecimal() and not is_alive(int(pid), born)
        kept_long = not pid and kept_s is not None and time.time() - state.st_mtime > kept_s
        if state.st_uid == os.getuid() and (killed or kept_long):
            shutil.rmtree(folder, ignore_errors=True)
