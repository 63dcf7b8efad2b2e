"""The Ray that a driver on a cluster belongs to: joined, never started and never ended."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bfp.drivers import Capacity
from bfp.errors import InputError, JobFailed
from bfp.targets.ray_here import quieten, set_environment
from bfp.words import counted

NODES_WAIT_S = 900.0
POLL_S = 1.0
WATCH_EVERY_S = 1.0


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


def free_there() -> dict[str, int]:
    """The CPUs and GPUs of the joined cluster that no job holds now."""
    import ray

    free = ray.available_resources()
    return {"cpus": int(free.get("CPU", 0)), "gpus": int(free.get("GPU", 0))}


@contextmanager
def nodes_watched(*, cpus: int, warn: Callable[[str], None], note: Callable[[str], None]) -> Iterator[None]:
    """While it is entered, it is said which nodes the cluster loses and gains.

    cpus: what the run claims at once; where fewer are left it waits until a node comes, which is said too.
    """
    over = threading.Event()

    def watch() -> None:
        import ray

        alive = lambda: {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # noqa: E731
        before = alive()
        ended = False
        while not ended:
            ended = over.wait(WATCH_EVERY_S)  # and looks once more at the end
            now = alive()
            left = int(sum(node["Resources"].get("CPU", 0) for node in now.values()))
            for lost in before.keys() - now.keys():
                what = "what it was at is done again on the others"
                if cpus > left:
                    what = (
                        f"the run claims {cpus} CPUs, {left} are left, and it waits until a node comes; or stop it and "
                        "submit it again with fewer workers: it goes on where it is"
                    )
                name = before[lost]["NodeManagerHostname"]
                warn(f"the node {name} has left the cluster ({counted(len(now), 'node')} left): {what}")
            for come in now.keys() - before.keys():
                note(f"the node {now[come]['NodeManagerHostname']} has joined ({counted(len(now), 'node')})")
            before = now

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


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
