"""An environment in which `python` stands in for Ray and for the driver, for what SLURM itself does with a job.

Ray's start takes 20 s on two busy cores and a driver's 10 more; that a job is stopped, signalled, killed and put back
in the queue does not hang on what they do. The driver counts to UNITS, keeps how far it came, and ends as a real one
does: with 130 when it is told to, having kept what stands, which takes as long as the file saves_s says.

    python -m tests.targets.slurm_stand_in         the driver
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
UNITS = 20
UNIT_S = 0.25

PYTHON = """#!/bin/bash
case "$*" in
    *" start --block "*)
        echo "$*" >>{folder}/ray-commands
        echo "Local node IP: 127.0.0.1"
        echo "Ray runtime started."
        trap '' TERM  # as the real one is
        exec -a "stand-in-ray {folder}" sleep 600
        ;;
    *"bfp drive") exec env PYTHONPATH={checkout} {python} -m tests.targets.slurm_stand_in {folder} ;;
esac
"""


def make_environment(folder: Path) -> Path:
    """It, for `environment` of a profile."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(PYTHON.format(folder=folder, checkout=CHECKOUT, python=sys.executable))
    program.chmod(0o755)
    return folder


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201  (it is a program of its own)


def main() -> None:
    folder = Path(sys.argv[1])
    kept, told = folder / "kept", []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    (folder / "driver.pid").write_text(str(os.getpid()))
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    begin = int(kept.read_text()) if kept.exists() else 0
    say(event="start", resumed=bool(begin))
    for done in range(begin + 1, UNITS + 1):
        time.sleep(UNIT_S)
        say(event="progress", phase="counting", total=UNITS, unit="units", done=done)
        if told:
            time.sleep(float((folder / "saves_s").read_text()) if (folder / "saves_s").exists() else 0)
            kept.write_text(str(done))
            say(event="end", outcome="interrupted", message=f"{done} units stand")
            sys.exit(130)
    say(event="end", outcome="done", message="")


if __name__ == "__main__":
    main()
