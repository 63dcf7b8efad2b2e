"""The drivers: one module a kind, each with the same two functions, found here by the spec's `kind`.

plan(spec, capacity) -> Plan
                            what the run will do with so many CPUs and GPUs; light, writes nothing, raises InputError
                            for what is wrong
execute(spec, run) -> None  does it, on the Ray that the target has started; tells `run` what happens

Those that prepare scans are also told the profile: what this machine has for it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from bfp.drivers.plan import Capacity, Plan, capacity_here
from bfp.runs import Run
from bfp.specs import Infer, Ingest, Spec
from bfp.specs.profile import NO_PROFILE, Profile

__all__ = ["Capacity", "Plan", "capacity_here", "execute", "plan"]


def plan(spec: Spec, *, capacity: Capacity, profile: Profile = NO_PROFILE) -> Plan:
    """What a run of this spec will do with what the target lends."""
    driver, prepares = _driver(spec.kind), isinstance(spec, Ingest | Infer)
    planned: Plan = (
        driver.plan(spec, capacity=capacity, profile=profile) if prepares else driver.plan(spec, capacity=capacity)
    )
    return planned


def execute(spec: Spec, run: Run, *, profile: Profile = NO_PROFILE) -> None:
    """Run the spec to its end; raises Interrupted when it was asked to stop, and whatever went wrong."""
    driver = _driver(spec.kind)
    if isinstance(spec, Ingest | Infer):
        driver.execute(spec, run, profile=profile)
    else:
        driver.execute(spec, run)


def _driver(kind: str) -> ModuleType:
    return import_module(f"bfp.drivers.{kind}")
