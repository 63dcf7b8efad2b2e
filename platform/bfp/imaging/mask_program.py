"""The brain in a scan by a program of the user's own, whose command stands in the profile.

It is a process of its own without a shell, in a folder of this user's alone (`runs.scratch`) that holds the scan and
nothing else. What it prints, which may be anything, is thrown away. It has a time limit; then it is killed with
whatever it has started, since many such programs are scripts around another.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bfp.errors import Reason, Unusable
from bfp.imaging.nifti import MAX_FILE_BYTES, Volume, decode, encode
from bfp.runs.scratch import no_room, scratch

# As a process that was ended tells it, and as a shell does of one that it had started.
_ENDED = {code: number for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, 128 + number)}


class MaskProgram(NamedTuple):
    """command: its words, with {scan} for the file that it reads, {mask} for the one that it writes. limit_s: what it
    may take for a scan."""

    command: tuple[str, ...]
    limit_s: float

    @property
    def name(self) -> str:
        return Path(self.command[0]).name


def program_mask(volume: Volume, program: MaskProgram) -> Volume:
    """The mask that the program makes of a volume, on whatever grid: 1 in the brain, 0 elsewhere, if need be all over.

    Raises Unusable where it makes none (NO_BRAIN_MASK) or takes too long (TIMEOUT); and for what is no fault of the
    scan OSError, where it cannot be run or without room for the files, and MemoryError.
    """
    with scratch() as folder:
        scan, mask = folder / "scan.nii.gz", folder / "mask.nii.gz"
        content = encode(volume.scaled(volume.stored), grid=volume.grid)
        try:
            scan.write_bytes(content)
        except OSError as error:
            raise no_room(folder, error.strerror) from error
        words = [word.replace("{scan}", str(scan)).replace("{mask}", str(mask)) for word in program.command]
        code = _run(words, folder=folder, program=program)
        if code in _ENDED:
            raise MemoryError(
                f"{program.name} was ended by signal {_ENDED[code]:d}, as where memory runs out; lower compute.workers"
            )
        if code and shutil.disk_usage(folder).free < len(content):
            raise no_room(folder, f"{program.name} cannot write its mask")
        if code:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise Unusable(Reason.NO_BRAIN_MASK, f"{program.name} ended with {how}")
        if not mask.is_file():
            raise Unusable(Reason.NO_BRAIN_MASK, f"{program.name} wrote no {{mask}}, with exit code 0")
        if (size := mask.stat().st_size) > MAX_FILE_BYTES:
            raise Unusable(Reason.NO_BRAIN_MASK, f"{program.name} wrote a mask of {size:,} bytes")
        written = mask.read_bytes()
    try:
        found = decode(written, may_be_blank=True)
    except Unusable as unusable:
        raise Unusable(Reason.NO_BRAIN_MASK, f"of what {program.name} wrote: {unusable}") from unusable
    inside = found.scaled(found.stored) != 0
    return replace(found, stored=inside.view(np.uint8), slope=1.0, intercept=0.0)


def _run(words: Sequence[str], *, folder: Path, program: MaskProgram) -> int:
    """The exit code; of a signal, the negative. Raises Unusable (TIMEOUT)."""
    process = subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, to be killed as one
    )
    try:
        return process.wait(program.limit_s)
    except subprocess.TimeoutExpired:
        raise Unusable(
            Reason.TIMEOUT, f"{program.name} had not ended after {program.limit_s:g} s, a scan's limit"
        ) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
