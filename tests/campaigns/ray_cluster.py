"""What a run on a Ray cluster of two nodes survives: its client, a node, the head killed; told to stop.

    python -m tests.campaigns.ray_cluster        several minutes of two cores; arguments are pytest's

Each node is killed as a machine dies: all of its processes at once. What is left has to be the store, to the byte, or
the encoder, to 1e-5, of a run that nothing disturbed.
"""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from bfp.targets import leaving
from tests.processes import below
from tests.raycluster import HEAD
from tests.targets.test_ray_jobs import (
    PATIENCE_S,
    STEPS,
    Lab,
    assert_same_encoder,
    bytes_of,
    lab,
    until,
    warnings_of,
)

__all__ = ["lab"]  # the cluster, as a fixture

LEAVING_PORT = 31_995


def test_a_killed_client_loses_sight_of_a_run_and_no_more(lab: Lab) -> None:
    spec = lab.pretrain("seen", steps=STEPS, workers=2, cpus=2)
    with lab.submitting("submit", spec, "--on", "lab") as client:
        until(lambda: "ray_bfp_loss{" in lab.cluster.metrics(), said=lab.said)
        client.send_signal(signal.SIGKILL)
    again = lab.bfp("submit", spec, "--on", "lab")  # the same: it is followed, not sent once more
    assert again.returncode == 0, again.stderr
    assert [event["event"] for event in lab.run("seen").events()].count("start") == 1
    other = lab.pretrain("seen", steps=70, workers=2, cpus=2)
    assert f"train.steps_per_epoch: {STEPS} → 70" in lab.bfp("submit", other, "--on", "lab").stderr
    assert lab.bfp("status", "runs/seen", "--on", "lab").stdout.startswith("seen on lab: done")
    assert "training" in lab.bfp("logs", "runs/seen", "--on", "lab").stdout


def test_a_stopped_run_saves_and_goes_on_to_the_encoder_of_one_here(lab: Lab) -> None:
    spec = lab.pretrain("one", steps=STEPS, workers=2, cpus=2)
    with lab.submitting("submit", spec, "--on", "lab"):
        until(lambda: any(row["step"] >= 5 for row in lab.run("one").metrics()), said=lab.said)
        stopped = lab.bfp("stop", "runs/one", "--on", "lab")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert lab.run("one").outcome() == "interrupted"
    assert list((lab.folder / "runs/one/checkpoints").iterdir())
    done = lab.bfp("submit", spec, "--on", "lab")
    assert done.returncode == 0, done.stderr
    assert_same_encoder(lab.run("one"), lab.reference())


def test_pods_that_are_taken_away_together_let_the_driver_save(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes does to a job that is stopped: the hooks of its pods run at once, and the operator's own stop."""
    every, head = leaving.drivers, lab.cluster.pid(HEAD)
    monkeypatch.setattr(leaving, "drivers", lambda: [pid for pid in every() if pid in below(head)])
    spec, left = lab.ingest("left", "store-left", compute={"workers": 1}), threading.Event()

    def follow() -> None:
        leaving.follow("127.0.0.1", wait_s=PATIENCE_S, port=LEAVING_PORT)
        left.set()

    with lab.submitting("submit", spec, "--on", "lab") as client:
        until((lab.folder / "store-left" / "commits").exists, said=lab.said)
        threading.Thread(target=follow, daemon=True).start()
        operator = threading.Timer(1, lambda: lab.bfp("stop", "runs/left", "--on", "lab"))
        operator.start()
        leaving.lead(wait_s=PATIENCE_S, port=LEAVING_PORT)
        assert lab.run("left").outcome() == "interrupted"
        assert left.wait(10), "a worker waits no longer than the head"
        assert client.wait(PATIENCE_S) == 130, lab.said()
        operator.join()
    assert "stopped at once" not in lab.said(), "nobody broke it off"
    assert lab.bfp("submit", spec, "--on", "lab").returncode == 0
    assert bytes_of(lab.folder / "store-left") == bytes_of(lab.folder / "store")


def test_a_node_that_dies_costs_an_ingest_nothing_and_is_spoken_of(lab: Lab) -> None:
    spec = lab.ingest("struck", "store-struck")
    with lab.submitting("submit", spec, "--on", "lab") as client:
        until((lab.folder / "store-struck" / "commits").exists, said=lab.said)
        lab.cluster.kill_a_node()
        assert client.wait(PATIENCE_S) == 0, lab.said()
    assert bytes_of(lab.folder / "store-struck") == bytes_of(lab.folder / "store")
    assert any("has left the cluster (1 node left)" in text for text in warnings_of(lab.run("struck")))
    lab.cluster.start_node()


def test_a_node_that_dies_in_a_pretraining_costs_the_steps_since_its_checkpoint(lab: Lab) -> None:
    spec = lab.pretrain("held", steps=STEPS, workers=2, cpus=2)
    with lab.submitting("submit", spec, "--on", "lab") as client:
        until(lambda: any(row["step"] >= 20 for row in lab.run("held").metrics()), said=lab.said)
        lab.cluster.kill_a_node()
        until(lambda: "it waits until a node comes" in lab.said(), said=lab.said)
        lab.cluster.start_node()
        assert client.wait(PATIENCE_S) == 0, lab.said()
    assert_same_encoder(lab.run("held"), lab.reference())
    told = warnings_of(lab.run("held"))
    assert any("training went on from the checkpoint of step" in text for text in told), told


def test_a_head_that_dies_is_followed_by_another_cluster_that_goes_on(lab: Lab) -> None:
    spec = lab.pretrain("last", steps=STEPS, workers=2, cpus=2)
    with lab.submitting("submit", spec, "--on", "lab") as client:
        until(lambda: any(row["step"] >= 20 for row in lab.run("last").metrics()), said=lab.said)
        lab.cluster.kill_all()
        lab.cluster.start_head()
        lab.cluster.start_node()
        assert client.wait(PATIENCE_S) == 1, lab.said()
    assert lab.run("last").outcome() == "lost"
    assert "made anew" in lab.said()
    assert "knows of no job" in lab.bfp("status", "runs/last", "--on", "lab").stderr
    done = lab.bfp("submit", spec, "--on", "lab")
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint of step" in done.stderr
    assert_same_encoder(lab.run("last"), lab.reference())


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v", *sys.argv[1:]]))
