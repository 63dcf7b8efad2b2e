"""How the pods of a job leave a Kubernetes cluster: together, when the driver has saved, and never before.

Kueue's preemption, a drained node, a job that is stopped: each deletes pods, all of a job's at once or one of them, and
tells the driver nothing. What a pod runs first (its preStop hook) therefore is this:

    head        tells the driver to stop, and listens on a port until it has ended
    worker      asks on that port whether the head is leaving too. If so, waits until it has left, since a step that is
    submitter   being saved needs its workers; if not, leaves at once: Ray goes on without it

Nothing here is Ray's, and nothing has to be asked of Kubernetes. Of the head, who follows knows the name of a Service,
which is deleted with the Ray cluster, before its pods are: it is found by the connection that Ray has to it. The driver
hears a second signal as the first one (`stopping`): the operator sends its own.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bfp.errors import InputError

PORT = 52370  # among Ray's own, above its dashboard agent's
LEAVE = ("python", "-m", "bfp", "leave")
LEAVE_WAIT_S = 630
ASK_S = 10.0  # the head is told to leave at the same time, and starts Python first
LAST_WORDS_S = 3.0  # for what the driver said last to reach the submitter
POLL_S = 0.2
GCS_PORT, DASHBOARD_PORT = 6379, 8265  # of the head: each worker and each submitter has a connection there
SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"
V4_IN_V6 = bytes(10) + b"\xff\xff"
DRIVE = ["-m", "bfp", "drive"]


def leave(role: str, *, wait_s: float, environment: Mapping[str, str], port: int = PORT) -> None:
    """Return when this pod may end. Raises InputError for a role that no pod has, and outside of a pod."""
    if "KUBERNETES_SERVICE_HOST" not in environment:
        raise InputError("bfp leave: this is no pod of Kubernetes; it is what one runs before it ends")
    if role == "head":
        lead(wait_s=wait_s, port=port)
    elif role == "worker":
        follow(peer(GCS_PORT) or environment.get("FQ_RAY_IP", ""), wait_s=wait_s, port=port)
    elif role == "submitter":
        name = environment.get("RAY_DASHBOARD_ADDRESS", "").rpartition(":")[0]
        follow(peer(DASHBOARD_PORT) or name, wait_s=wait_s, port=port)
    else:
        raise InputError(f"bfp leave {role}: head, worker or submitter; it is what a pod runs before it ends")


def lead(*, wait_s: float, port: int = PORT) -> None:
    """Stop the drivers on this machine and wait for them, heard by who follows."""
    found = drivers()
    if not found:
        return
    until = time.monotonic() + wait_s
    with socket.create_server(("", port), reuse_port=True, backlog=4096):  # who connects is held by the kernel
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        while drivers() and time.monotonic() < until:
            time.sleep(POLL_S)
        time.sleep(LAST_WORDS_S)


def follow(head: str, *, wait_s: float, port: int = PORT) -> None:
    """Wait until the head has left, if it is leaving."""
    until = time.monotonic() + ASK_S
    while head and time.monotonic() < until:
        try:
            with socket.create_connection((head, port), timeout=ASK_S) as leaving:
                leaving.settimeout(wait_s)
                with suppress(OSError):
                    leaving.recv(1)
                return
        except OSError:
            time.sleep(POLL_S)


def peer(port: int) -> str:
    """The address of who is at the other end of this pod's connection to a port; "" where there is none."""
    for file in SOCKETS:
        with suppress(OSError):
            for line in file.read_text().splitlines()[1:]:
                _, _, remote, state = line.split()[:4]
                address, _, number = remote.partition(":")
                if state == ESTABLISHED and int(number, 16) == port:
                    return _address(address)
    return ""


def _address(written: str) -> str:
    """An address as Linux writes it there: words of 32 bits, each as this machine has it in memory."""
    words = [int(written[at : at + 8], 16) for at in range(0, len(written), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 16 and packed.startswith(V4_IN_V6):
        packed = packed[len(V4_IN_V6) :]
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def drivers() -> list[int]:
    """The processes on this machine that are `python -m bfp drive`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = file.read_bytes().decode(errors="replace").split("\0")
            # A zombie's is empty; a shell around it has the command as one word.
            if words[1:4] == DRIVE:
                found.append(int(file.parent.name))
    return found
