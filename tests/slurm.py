"""A real SLURM for tests: two virtual nodes on this machine, gone at the end of a block.

    python -m tests.slurm FOLDER        starts one, prints what to put into the environment, and serves until Ctrl-C

It is started by `slurm/slurm-up` of the trial data, which runs as root and needs Debian's slurmctld, slurmd,
slurm-client and munge. It has no accounting: accounts and their limits are tested by what SLURM is known to say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES, CPUS = 2, 1
PORTS = 17_600  # below those that the system gives away, and none that slurm-up takes by itself


class NoSlurm(Exception):
    """SLURM cannot be started here."""


@contextmanager
def slurm(shared: Path, folder: Path) -> Iterator[str]:
    """The path of its slurm.conf, for SLURM_CONF. Raises NoSlurm, saying what is missing."""
    up = shared / "slurm" / "slurm-up"
    missing = [name for name in NEEDS if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
    if not up.is_file() or missing or os.geteuid() != 0:
        raise NoSlurm(f"it needs {up}, root, and {', '.join(missing) or 'what is there'}")
    try:
        environment = {**os.environ, "SLURM_BASE_PORT": str(PORTS)}
        told = subprocess.run([up, folder, str(NODES)], env=environment, capture_output=True, text=True, timeout=120)
        if told.returncode != 0:
            raise NoSlurm(told.stderr)
        yield told.stdout.strip().splitlines()[-1]
    finally:
        _end(up.with_name("slurm-down"), folder)


def _end(down: Path, folder: Path) -> None:
    """End its jobs, and then it; what waits for a job all the same would take the ports of the next."""
    asks = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    pids = [int(file.read_text()) for file in Path(folder, "run").glob("slurm*.pid")]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--user=root"], env=asks, capture_output=True, timeout=10)
        for _ in range(40):
            left = subprocess.run(["squeue", "--noheader"], env=asks, capture_output=True, timeout=10).stdout
            if not left.strip():
                break
            time.sleep(0.5)
    subprocess.run([down, folder], capture_output=True)
    time.sleep(1.0)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    shared = Path(os.environ.get("BFP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="slurm-"))
    with slurm(shared, folder) as configuration:
        print(f"export SLURM_CONF={configuration}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
