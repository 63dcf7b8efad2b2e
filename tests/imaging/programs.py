"""A program that finds brains, as a user may have one: a script that bfp runs as a process."""

from __future__ import annotations

import sys
from pathlib import Path

_SCRIPT = """#!{python}
import os, signal, subprocess, sys, time
import nibabel, numpy
scan, mask, how = sys.argv[1:]
print("DOE^JANE", flush=True)
if how == "fails":
    sys.exit(3)
if how == "runs out of memory":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "hangs":  # as a script around another program does
    child = subprocess.Popen(["sleep", "600"])
    with open({pids!r}, "w") as pids:
        print(os.getpid(), child.pid, file=pids)
    child.wait()
if how == "writes no image":
    open(mask, "w").write("hello")
if how not in ("threshold", "blank", "elsewhere", "coarse", "as the scan, without its header"):
    sys.exit()
image = nibabel.load(scan)
found, affine = numpy.asarray(image.dataobj) > 125, image.affine.copy()
if how == "blank":
    found[:] = False
if how == "elsewhere":
    found, affine[:3, 3] = found[::2, ::2, ::2], affine[:3, 3] + 1000
if how == "coarse":
    found = found[::2, ::2, ::2]
    affine[:3, :3] *= 2
if how.startswith("as the scan"):
    affine = numpy.diag([2.0, 2.0, 2.0, 1.0])
nibabel.save(nibabel.Nifti1Image(found * numpy.float32(0.5), affine), mask)
"""


def write_program(folder: Path, *, name: str = "threshold.py") -> Path:
    """The script. Its third word is how it goes; of one that hangs, `pids` beside it tells the processes."""
    file = folder / name
    file.write_text(_SCRIPT.format(python=sys.executable, pids=str(folder / "pids")))
    file.chmod(0o755)
    return file
