"""`bfp submit --on NAME` on a real Ray cluster of two nodes: the same results as here, and what survives which death.

The nodes are raylets of this machine, each killed as a machine dies: all of its processes at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import yaml

from bfp.runs import RunFolder
from bfp.storage import place
from tests.cohorts.makers import write_bids
from tests.conftest import CHECKOUT
from tests.raycluster import RayCluster

pytest.importorskip("aiohttp_cors", reason="Ray's job client is not installed: pip install 'bfp[cluster]'")

SUBJECTS = 12
STEPS = 60
PATIENCE_S = 300


class Lab:
    """A folder with a cohort and a profile, and a cluster that sees it."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        self.folder = folder
        self.cluster = cluster
        write_bids(folder / "cohort", subjects=SUBJECTS)
        shared = {"shared_paths": json.dumps([str(folder)])}
        (folder / "bfp.toml").write_text(
            cluster.profile("lab", **shared)
            + cluster.profile("by-package", **shared, code='"package"')
            + cluster.profile("no-token", **shared).replace("token =", "# token =")
            + cluster.profile("alone")
            + '[away]\ntarget = "ray"\naddress = "http://127.0.0.1:9"\n'
            + f"shared_paths = {shared['shared_paths']}\n"
        )

    def ingest(self, name: str, store: str, **fields: Any) -> Path:
        preprocessing = {"spacing_mm": 5.0, "slice_spacing_mm": 6.0, "size": 44, "register": "none"}
        return self._spec(
            kind="ingest",
            name=name,
            store=str(self.folder / store),
            cohorts=[{"name": "demo", "bids": str(self.folder / "cohort")}],
            preprocessing=preprocessing,
            sessions_per_shard=1,
            pictures=False,
            **fields,
        )

    def pretrain(self, name: str, *, steps: int, workers: int, cpus: int, output: str = "runs") -> Path:
        return self._spec(
            kind="pretrain",
            name=name,
            output=str(self.folder / output),
            store=str(self.folder / "store"),
            encoder="random:vit_tiny_patch16_224",
            encoder_shape={"width": 32, "depth": 2, "heads": 2},
            ssl={"prototypes": 16, "ibot_prototypes": 16, "hidden": 32, "bottleneck": 16, "ibot_bottleneck": 16},
            crops={"global_size_px": 32, "local_size_px": 16, "local_count": 2},
            train={"epochs": 1, "steps_per_epoch": steps, "batch_size": 8, "checkpoint_every": 10, "log_every": 5},
            compute={"workers": workers, "cpus_per_worker": cpus},
        )

    def reference(self) -> RunFolder:
        """A pretraining of STEPS by one worker here, which nothing disturbs."""
        run = self.run("one", "local")
        if run.spec_text() is None:
            done = self.bfp("submit", self.pretrain("one", steps=STEPS, workers=1, cpus=1, output="local"))
            assert done.returncode == 0, done.stderr
        return run

    def run(self, name: str, output: str = "runs") -> RunFolder:
        return RunFolder(place(str(self.folder / output / name)))

    def bfp(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "bfp", *map(str, arguments)],
            cwd=self.folder,
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    @contextmanager
    def submitting(self, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on meanwhile."""
        with (self.folder / "submit.log").open("w") as log:
            going = subprocess.Popen(
                [sys.executable, "-m", "bfp", *map(str, arguments)],
                cwd=self.folder,
                env=self._environment({}),
                stdout=log,
                stderr=log,
                text=True,
            )
        try:
            yield going
        finally:
            going.kill()
            going.wait()

    def said(self) -> str:
        return (self.folder / "submit.log").read_text()

    def _environment(self, changed: dict[str, str]) -> dict[str, str]:
        paths = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": paths, "LAB_TOKEN": self.cluster.token, "COLUMNS": "200", **changed}

    def _spec(self, **fields: Any) -> Path:
        file = self.folder / f"{fields['name']}.yaml"
        file.write_text(yaml.safe_dump({"output": str(self.folder / "runs"), **fields}))
        return file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The cluster's drivers run the code under test, by the same PYTHONPATH."""
    with RayCluster(environment={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}) as cluster:
        made = Lab(tmp_path_factory.mktemp("lab"), cluster)
        done = made.bfp("submit", made.ingest("here", "store"))
        assert done.returncode == 0, done.stderr
        yield made


def until(true: Any, *, said: Any = str) -> None:
    """Wait until it is."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(0.2)


def bytes_of(store: Path) -> dict[str, str]:
    """Every file of a store with a hash of its bytes."""
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


def weights_of(run: RunFolder) -> dict[str, Any]:
    return safetensors.numpy.load_file(run.folder.path / "model" / "model.safetensors")


def assert_same_encoder(one: RunFolder, other: RunFolder) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert max(float(abs(first[name] - second[name]).max()) for name in first) < 1e-5


def warnings_of(run: RunFolder) -> list[str]:
    return [str(event["message"]) for event in run.events() if event["event"] == "warning"]


def test_an_ingest_on_the_cluster_writes_the_bytes_that_one_here_writes(lab: Lab) -> None:
    done = lab.bfp("submit", lab.ingest("there", "store-there"), "--on", "lab", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"]["outcome"] == "done"
    assert bytes_of(lab.folder / "store-there") == bytes_of(lab.folder / "store")
    assert "target" in done.stderr
    assert "4 CPUs" in done.stderr
    assert "preparing" in done.stderr


def test_what_cannot_be_reached_or_is_not_let_in_is_said_before_anything_is_sent(lab: Lab) -> None:
    spec = lab.ingest("refused", "store-refused")
    for on, environment, told in (
        ("no-token", {}, "asks for a token (401), and none was sent: name where it is found in bfp.toml, [no-token]"),
        ("lab", {"LAB_TOKEN": "wrong"}, "does not take the token that was sent (403)"),
        ("lab", {"LAB_TOKEN": ""}, "[lab] token: the environment variable LAB_TOKEN is not set"),
        ("away", {}, "the cluster away does not answer"),
        ("alone", {}, "paths that its nodes do not share:\n    output: "),
        ("lob", {}, "the nearest is lab"),
    ):
        done = lab.bfp("submit", spec, "--on", on, **environment)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
        assert lab.cluster.token not in done.stderr
    assert not (lab.folder / "runs" / "refused").exists()
    huge = lab.pretrain("huge", steps=10, workers=8, cpus=1)
    done = lab.bfp("submit", huge, "--on", "lab")
    assert (done.returncode, "8 × 1 CPUs are claimed and the cluster lab has 4" in done.stderr) == (2, True)


def test_a_dry_run_shows_what_would_be_sent_without_the_token(lab: Lab) -> None:
    done = lab.bfp("submit", lab.ingest("dry", "store-dry"), "--on", "lab", "--dry-run")
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["entrypoint"] == "python -m bfp drive"
    assert yaml.safe_load(sent["runtime_env"]["env_vars"]["BFP_SPEC"])["name"] == "dry"
    assert lab.cluster.token not in done.stdout
    assert not (lab.folder / "store-dry").exists()


def test_the_driver_refuses_what_another_version_of_bfp_sends(lab: Lab, tmp_path: Path) -> None:
    old = tmp_path / "bfp"
    old.symlink_to(CHECKOUT / "platform" / "bfp")
    code = "import bfp; bfp.__version__ = '0.0.9'; from bfp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "submit", str(lab.ingest("old", "store-old")), "--on", "lab"],
        cwd=lab.folder,
        env=lab._environment({}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "bfp 0.0.9 has sent this job, and lab has bfp" in done.stderr


def test_doctor_plans_a_spec_from_the_nodes_side(lab: Lab) -> None:
    done = lab.bfp("doctor", lab.ingest("asked", "store-asked"), "--on", "lab", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    points = {found["point"]: found for found in json.loads(done.stdout)}
    assert points["nodes"]["text"].startswith("2, 4 CPUs")
    assert "12 subjects" in points["plan there"]["text"]
    assert not (lab.folder / "runs" / "asked").exists()
    done = lab.bfp("doctor", "--on", "no-token")
    assert (done.returncode, "asks for a token" in done.stdout) == (1, True)


def test_code_that_was_changed_here_goes_with_the_job(lab: Lab, tmp_path: Path) -> None:
    spec = lab.ingest("packed", "store-packed")
    done = lab.bfp("submit", spec, "--on", "by-package")
    assert done.returncode == 0, done.stderr
    assert bytes_of(lab.folder / "store-packed") == bytes_of(lab.folder / "store")


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
