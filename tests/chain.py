"""The demo's four jobs, made small, one after the other on one Ray, as `bfp demo` runs them.

python -m tests.chain FOLDER        FOLDER: a path or URI that holds the cohorts `cohort` and `tonight`
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bfp.cli.demo import places
from bfp.cli.jobs import run_job
from bfp.specs import load
from bfp.targets.local import Local
from tests.conftest import CHECKOUT

SMALL = {
    "ingest": ["preprocessing.size=56", "preprocessing.spacing_mm=4.0", "preprocessing.slice_spacing_mm=12.0"],
    "pretrain": [
        *("train.epochs=1", "train.steps_per_epoch=4", "train.batch_size=8", "compute.cpus_per_worker=1"),
        *("crops.local_size_px=24", "encoder_shape.width=32", "encoder_shape.depth=2", "encoder_shape.heads=2"),
    ],
    "finetune": ["folds=2"],
    "infer": [],
}


def run_chain(at: str, *, cwd: Path) -> str:
    """Run them in a process of its own; returns what they said."""
    command = [sys.executable, "-m", "tests.chain", at]
    paths = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def main() -> None:
    at = sys.argv[1]
    with Local(cpus=None) as target:
        for kind, changes in SMALL.items():
            spec = load(CHECKOUT / "jobs/demo" / f"{kind}.yaml", overrides=[*places(kind, at), *changes])
            run_job(spec, target, plan=target.plan(spec))


if __name__ == "__main__":
    main()
