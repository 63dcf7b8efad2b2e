"""A Ceph object gateway for tests: a real S3 server on this machine, in memory, gone at the end of a block.

    python -m tests.ceph        starts one, prints what to put into the environment, and serves until Ctrl-C

One monitor, one memory-backed storage daemon and one gateway, each in the foreground on free ports, without
authentication among one another (https://docs.ceph.com/en/latest/dev/dev_cluster_deployment, by hand). Needs Debian's
ceph-mon, ceph-osd, radosgw and ceph-common.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NEEDS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
STARTS_WITHIN_S = 120
MEMORY_BYTES = 4 << 30  # what the storage daemon says it can hold; it takes as much as is put there

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
auth cluster required = none
auth service required = none
auth client required = none
# some releases insist on encryption towards the monitor, for which there are no keys here
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {memory_bytes}
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}/rgw
"""


class NoGateway(Exception):
    """Ceph is not installed here, or did not start."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Who asks: the credentials of one user of the gateway."""

    access: str
    secret: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that answers at `endpoint`, and the keys of its first user."""

    endpoint: str
    keys: Keys
    configuration: Path

    def environment(self) -> dict[str, str]:
        """What S3 clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.keys.access,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def add_user(self, name: str) -> Keys:
        """Another user, who may do nothing with what others own."""
        keys = Keys(f"{name}key", f"{name}secret")
        named = ("--uid", name, "--display-name", name, "--access-key", keys.access, "--secret-key", keys.secret)
        _run(self.configuration, "radosgw-admin", "user", "create", *named)
        return keys


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A gateway with its files in an empty folder, until the end of the block. Raises NoGateway."""
    missing = [program for program in NEEDS if shutil.which(program) is None]
    if missing:
        raise NoGateway(f"no {', '.join(missing)} here: install ceph-mon, ceph-osd, radosgw and ceph-common")
    monitor_port, port = _free_ports(2)
    fsid, configuration = str(uuid.uuid4()), folder / "ceph.conf"
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    configuration.write_text(
        CONFIGURATION.format(fsid=fsid, folder=folder, monitor_port=monitor_port, port=port, memory_bytes=MEMORY_BYTES)
    )
    made = Gateway(f"http://127.0.0.1:{port}", Keys("testkey", "testsecret"), configuration)
    with ExitStack() as daemons:
        monmap = str(folder / "monmap")
        address = f"v2:127.0.0.1:{monitor_port}"
        _run(configuration, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[{address}]", monmap)
        _run(configuration, "ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        daemons.enter_context(_daemon(configuration, "ceph-mon", "-i", "a"))
        _run(configuration, "ceph", "osd", "create")
        _run(configuration, "ceph-osd", "-i", "0", "--mkfs")
        daemons.enter_context(_daemon(configuration, "ceph-osd", "-i", "0"))
        serving = daemons.enter_context(_daemon(configuration, "radosgw", "-n", "client.rgw.a"))
        _wait_until_it_answers(made.endpoint, serving)
        named = ("--access-key", made.keys.access, "--secret-key", made.keys.secret)
        _run(configuration, "radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *named)
        yield made


@contextmanager
def in_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """The environment of this process with changes, for the length of the block."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, since they are held until all are known."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _run(configuration: Path, program: str, *arguments: str) -> None:
    command = [program, "--conf", str(configuration), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STARTS_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        raise NoGateway(f"{program} took longer than {STARTS_WITHIN_S} s") from error
    if done.returncode:
        raise NoGateway(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")


@contextmanager
def _daemon(configuration: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground of a process of its own, ended with the block."""
    command = [program, "-f", "--conf", str(configuration), *arguments]
    with open(configuration.with_name(f"{program}.out"), "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()  # all that it holds is in memory
        process.wait()


def _wait_until_it_answers(endpoint: str, serving: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and serving.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise NoGateway(f"the gateway did not answer at {endpoint} within {STARTS_WITHIN_S} s")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, gateway(Path(folder)) as made:
        print("\n".join(f"export {name}={value}" for name, value in made.environment().items()), flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
