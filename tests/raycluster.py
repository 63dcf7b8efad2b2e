"""A Ray cluster for tests: several raylets of one Ray on loopback, each with ports of its own, behind a token.

    python -m tests.raycluster      starts one of two nodes, prints what to put into bfp.toml, and serves until Ctrl-C

Started as an operator would, by `ray start --block`. A node can be killed as a machine dies: all its processes at once.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import below

STARTS_WITHIN_S = 300
OBJECT_STORE_BYTES = 100_000_000
NODE_PORTS = 20  # of a node, beside the 100 of its workers
HEAD = 0
_NAMED = (
    *("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc"),
    *("metrics-export", "runtime-env-agent"),
)


@dataclass
class RayCluster:
    """From `with` to its end. environment: what its nodes, and so the drivers there, have beside ours."""

    nodes: int = 2
    cpus_per_node: int = 2
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        # Short, since sockets lie below it, whose paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="bfp-rc-", dir="/tmp"))
        self.token = secrets.token_hex(32)
        self._ports = _free_ports((self.nodes + 4) * (NODE_PORTS + 100))
        self._pids: dict[int, int] = {}
        self._next = HEAD + 1
        self._heads = 0
        self.start_head()
        for _ in range(self.nodes - 1):
            self.start_node()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in list(self._pids):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of its dashboard, where the Jobs API is."""
        return f"http://127.0.0.1:{self._ports + 1}"

    def profile(self, name: str = "lab", **fields: str) -> str:
        """Its table of a bfp.toml; its token is in the environment variable LAB_TOKEN."""
        given = {"target": '"ray"', "address": f'"{self.address}"', "token": '{env = "LAB_TOKEN"}', **fields}
        return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in given.items())

    @property
    def metrics_port(self) -> int:
        """Where the head tells Prometheus its metrics."""
        return self._ports + (HEAD + 1) * (NODE_PORTS + 100) + _NAMED.index("metrics-export")

    def metrics(self) -> str:
        """What Prometheus would take from the head."""
        with suppress(OSError):
            address = f"http://127.0.0.1:{self.metrics_port}/metrics"
            return str(urllib.request.urlopen(address, timeout=5).read().decode())
        return ""

    def start_head(self) -> None:
        ports = self._ports
        self._heads += 1
        self._start(
            HEAD,
            ["--head", f"--port={ports}", f"--dashboard-port={ports + 1}", f"--ray-client-server-port={ports + 2}"],
            ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}/{self._heads}"],
        )
        self._wait()

    def start_node(self) -> int:
        """One more node, once it has joined; its number."""
        node, self._next = self._next, self._next + 1
        before = self._alive()
        self._start(node, [f"--address=127.0.0.1:{self._ports}"])
        until = time.monotonic() + STARTS_WITHIN_S
        while self._alive() <= before:
            assert time.monotonic() < until, (self.folder / f"node{node}.log").read_text()[-3000:]
            time.sleep(0.3)
        return node

    def pid(self, node: int) -> int:
        """Of `ray start`, below which all of the node's processes are."""
        return self._pids[node]

    def kill(self, node: int) -> None:
        """As a machine dies: every process of the node, at once, with no chance to say so."""
        for pid in below(self._pids.pop(node)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_a_node(self) -> None:
        """The one that joined last."""
        self.kill(max(self._pids))

    def kill_all(self) -> None:
        """The whole cluster; `start_head` and `start_node` make another at the same address."""
        for node in list(self._pids):
            self.kill(node)
        time.sleep(1)

    def _start(self, node: int, *arguments: list[str]) -> None:
        at = self._ports + (node + 1) * (NODE_PORTS + 100)
        ports = [f"--{name}-port={at + number}" for number, name in enumerate(_NAMED)]
        workers = [f"--min-worker-port={at + NODE_PORTS}", f"--max-worker-port={at + NODE_PORTS + 99}"]
        with (self.folder / f"node{node}.log").open("w") as log:
            started = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"),
                    *(f"--num-cpus={self.cpus_per_node}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
                    *(word for words in arguments for word in words),
                    *ports,
                    *workers,
                ],
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": self.token,
                    "RAY_USAGE_STATS_ENABLED": "0",
                    "RAY_raylet_start_wait_time_s": str(STARTS_WITHIN_S),  # 30 by default; tests share the machine
                    **self.environment,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pids[node] = started.pid

    def _wait(self) -> None:
        until = time.monotonic() + STARTS_WITHIN_S
        while not self._alive():
            assert time.monotonic() < until, (self.folder / f"node{HEAD}.log").read_text()[-3000:]
            time.sleep(0.3)

    def _alive(self) -> int:
        """How many nodes the dashboard knows to be alive; 0 while it does not answer."""
        path = "/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        asked = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with suppress(OSError):
            return int(json.load(urllib.request.urlopen(asked, timeout=5))["data"]["result"]["total"])
        return 0


def _free_ports(count: int) -> int:
    """The first of so many ports in a row of which some were just seen to be free."""
    for start in range(23_000 + os.getpid() % 37 * 100, 32_000, 500):
        with suppress(OSError):
            for port in range(start, start + count, 7):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return start
    raise AssertionError("no free ports")


if __name__ == "__main__":
    with RayCluster() as cluster:
        sys.stdout.write(f"export LAB_TOKEN={cluster.token}\n{cluster.profile()}")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            signal.pause()
