"""How the pods of a job leave: the head when its driver has saved, the others with it, and one alone at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bfp.errors import InputError
from bfp.targets import leaving
from bfp.targets.leaving import drivers, follow, lead, leave, peer

# It takes a moment to save, tells how often it was asked, and waits to be asked.
DRIVER = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.05)
time.sleep(1)
print(len(asked), flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], subprocess.Popen[str]]:
    """Starts a driver of this test alone: others on this machine are nobody's business here."""
    name = f"drive-{os.getpid()}"
    monkeypatch.setattr(leaving, "DRIVE", ["-m", name, "drive"])
    monkeypatch.setattr(leaving, "LAST_WORDS_S", 0.2)
    monkeypatch.setattr(leaving, "ASK_S", 1.0)
    (tmp_path / f"{name}.py").write_text(DRIVER)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", name, "drive"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def within(work: Callable[[], None]) -> tuple[threading.Thread, list[float]]:
    """Work in a thread, and when it has ended."""
    ended: list[float] = []
    thread = threading.Thread(target=lambda: (work(), ended.append(time.monotonic())))
    thread.start()
    return thread, ended


def test_all_wait_until_the_driver_has_saved(
    driver: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "ASK_S", 60.0)  # a machine that is busy begins late
    process, port = driver(), 31_900 + os.getpid() % 90
    followers = [within(lambda: follow("127.0.0.1", wait_s=30, port=port)) for _ in range(3)]
    lead(wait_s=30, port=port)
    left = time.monotonic()
    assert process.poll() == 0, "the head leaves after its driver"
    assert process.stdout is not None
    assert process.stdout.read() == "1\n", "asked once, and let finish"
    for thread, ended in followers:
        thread.join(timeout=5)
        assert left - 0.5 < ended[0] < left + 2
    process.wait()


def test_a_worker_that_is_taken_away_alone_leaves_soon_and_stops_nobody(
    driver: Callable[[], subprocess.Popen[str]],
) -> None:
    process, began = driver(), time.monotonic()
    follow("127.0.0.1", wait_s=30, port=31_990)
    assert time.monotonic() - began < 3
    assert process.poll() is None
    lead(wait_s=30, port=31_991)
    process.wait()


def test_a_head_without_a_driver_leaves_at_once(driver: Callable[[], subprocess.Popen[str]]) -> None:
    began = time.monotonic()
    assert drivers() == []
    lead(wait_s=30, port=31_992)
    assert time.monotonic() - began < 1


def test_a_driver_that_does_not_end_is_waited_for_no_longer_than_said(
    driver: Callable[[], subprocess.Popen[str]],
) -> None:
    process, began = driver(), time.monotonic()
    lead(wait_s=0.3, port=31_993)
    assert time.monotonic() - began < 1
    process.wait()


@pytest.mark.parametrize(
    ("family", "bound", "dialled", "address"),
    [
        (socket.AF_INET, "127.0.0.2", "127.0.0.2", "127.0.0.2"),
        (socket.AF_INET6, "::1", "::1", "::1"),
        (socket.AF_INET, "127.0.0.3", "::ffff:127.0.0.3", "127.0.0.3"),  # as Ray's gRPC has it
    ],
)
def test_the_head_is_known_by_ray_s_connection_to_it(
    family: socket.AddressFamily, bound: str, dialled: str, address: str
) -> None:
    with socket.create_server((bound, 0), family=family) as head:
        port = head.getsockname()[1]
        assert peer(port) == ""
        with socket.create_connection((dialled, port)), head.accept()[0]:
            assert peer(port) == address


def test_a_worker_waits_for_a_head_whose_name_is_gone(
    driver: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "ASK_S", 60.0)
    process = driver()
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "FQ_RAY_IP": "deleted.invalid"}
    with socket.create_server(("127.0.0.1", 0)) as gcs, socket.create_connection(gcs.getsockname()), gcs.accept()[0]:
        monkeypatch.setattr(leaving, "GCS_PORT", gcs.getsockname()[1])
        thread, ended = within(lambda: leave("worker", wait_s=30, environment=pod, port=31_989))
        lead(wait_s=30, port=31_989)
        left = time.monotonic()
        thread.join(timeout=30)
    assert ended[0] > left - 0.5, "not before the driver has saved"
    process.wait()


def test_without_a_connection_who_follows_knows_the_head_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(leaving, "follow", lambda head, **_: asked.append(head))
    monkeypatch.setattr(leaving, "SOCKETS", ())
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    leave("worker", wait_s=1, environment={**pod, "FQ_RAY_IP": "head.bfp.svc"})
    leave("submitter", wait_s=1, environment={**pod, "RAY_DASHBOARD_ADDRESS": "head.bfp.svc.cluster.local:8265"})
    assert asked == ["head.bfp.svc", "head.bfp.svc.cluster.local"]
    with pytest.raises(InputError, match="head, worker or submitter"):
        leave("tail", wait_s=1, environment=pod)


def test_outside_of_a_pod_nobody_is_stopped(driver: Callable[[], subprocess.Popen[str]]) -> None:
    process = driver()
    with pytest.raises(InputError, match="this is no pod of Kubernetes"):
        leave("head", wait_s=1, environment={})
    assert process.poll() is None
    lead(wait_s=30, port=31_994)
    process.wait()


def test_the_command_of_the_pods_is_there() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "bfp", "leave", "worker", "1"], capture_output=True, text=True, env={**os.environ}
    )
    assert asked.returncode == 2
    assert "this is no pod of Kubernetes" in asked.stderr
