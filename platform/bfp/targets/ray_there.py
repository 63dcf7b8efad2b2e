"""The Ray that a driver on a cluster belongs to: joined, never started and never ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bfp.drivers import Capacity
from bfp.errors import InputError, JobFailed
from bfp.targets.ray_here import quieten, set_environment

NODES_WAIT_S = 900.0
POLL_S = 1.0


@contextmanager
def joined_ray(*, nodes: int, where: str, tell: Callable[[str], None]) -> Iterator[Capacity]:
    """This process as a driver of the cluster that RAY_ADDRESS names; what the cluster has.

    nodes: how many of its nodes have to be there first. tell: hears what is waited for.
    Raises InputError where there is no cluster to join, JobFailed where nodes do not come.
    """
    if not os.environ.get("RAY_ADDRESS"):
        raise InputError("RAY_ADDRESS is not set: a driver joins a Ray cluster that is up, and starts none")
    set_environment()
    import ray

    try:
        ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{where}: Ray at {os.environ['RAY_ADDRESS']} cannot be joined: {said}") from error
    quieten()
    try:
        _wait_for(nodes, tell)
        found = ray.cluster_resources()
        yield Capacity(int(found.get("CPU", 0)), int(found.get("GPU", 0)), found.get("memory", 0) / 1e9, where)
    finally:
        ray.shutdown()


def _wait_for(nodes: int, tell: Callable[[str], None]) -> None:
    import ray

    until, told = time.monotonic() + NODES_WAIT_S, 0
    while (there := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > until:
            raise JobFailed(f"{there} of {nodes} nodes have joined Ray after {NODES_WAIT_S / 60:.0f} minutes")
        if there != told:
            tell(f"{there} of {nodes} nodes have joined Ray")
            told = there
        time.sleep(POLL_S)
