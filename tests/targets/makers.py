"""A small real job: a driver whose units are Ray tasks, put in the place of `infer`'s.

python -m tests.targets.makers MODE bfp-arguments…      the command line with that driver
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bfp import drivers
from bfp.drivers.plan import Capacity, Plan
from bfp.errors import InputError, Interrupted
from bfp.reports.blocks import Facts, Results
from bfp.runs import Run
from bfp.specs import Spec
from bfp.specs.profile import Profile

UNITS = 200


def write_spec(folder: Path, **fields: object) -> Path:
    """A spec of the kind whose driver is replaced, with its runs in folder/runs."""
    file = folder / "job.yaml"
    lines = {"kind": "infer", "name": "small", "output": folder / "runs", "model": "m", **fields}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    file.write_text(f"{text}cohorts: [{{name: a, bids: b}}]\n")
    return file


def plan(spec: Spec, *, capacity: Capacity, profile: Profile) -> Plan:
    if spec.seed == 13:
        raise InputError("model: nothing there")
    return Plan(rows=[("units", str(UNITS))], figures={"units": UNITS}, warnings=["a small job"])


def execute(spec: Spec, run: Run, *, mode: str, units: int) -> None:
    """Count units that are done on Ray; `mode` is how it goes: well, badly, deaf to wishes."""
    import ray

    @ray.remote(max_retries=0)
    def unit(number: int) -> int:
        sys.stderr.write("chatter of a worker\n")
        if mode == "fails":
            raise ValueError(f"unit {number} is odd\nand has a long story")
        if mode == "dies":
            os._exit(1)
        time.sleep(0.1)
        return number

    run.phase("counting", total=units, unit="units")
    for number in range(units):
        ray.get(unit.remote(number))
        run.progress(number + 1, loss=1 / (number + 1))
        if run.stopping and mode != "deaf":
            raise Interrupted(f"{number + 1} units stand; submit again to go on")
    run.result(Results({"sessions": units, "rejected": 0}, [Facts("What", [("units", units)])]).as_json())


def put_in_place(mode: str, units: int = UNITS) -> None:
    """Replace the drivers of this process by the small one."""
    drivers.plan = plan
    drivers.execute = lambda spec, run, profile: execute(spec, run, mode=mode, units=units)


if __name__ == "__main__":
    from bfp.cli.main import run as run_command

    put_in_place(sys.argv[1])
    sys.exit(run_command(sys.argv[2:]))
