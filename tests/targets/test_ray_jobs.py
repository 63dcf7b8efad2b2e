"""`bfp submit --on NAME` on a real Ray cluster of two nodes: the bytes of an ingest here, and what is refused how.

The nodes are raylets of this machine. What survives the death of which is a trial of its own, of many minutes:
`python -m tests.campaigns.ray_cluster`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import safetensors.numpy
import yaml

from bfp.runs import RunFolder
from bfp.storage import place
from tests.cohorts.makers import write_bids
from tests.conftest import CHECKOUT
from tests.raycluster import RayCluster
from tests.test_readme import commands

pytestmark = pytest.mark.long  # a cluster of two nodes beside the Ray of other tests
pytest.importorskip("aiohttp_cors", reason="Ray's job client is not installed: pip install 'bfp[cluster]'")

SUBJECTS = 12
STEPS = 60
PATIENCE_S = 900


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


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Callable[[str], list[Any]]]:
    """One that takes the metrics of a port each second, with our rules; asks it for what an expression was since."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus here (Debian's package prometheus)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(CHECKOUT / "infra/monitoring/rules.yaml")],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(told))
    began = time.time()
    with (folder / "prometheus.log").open("w") as log:
        going = subprocess.Popen(
            [
                *(program, f"--config.file={folder}/prometheus.yml", f"--web.listen-address={address}"),
                f"--storage.tsdb.path={folder}/prometheus",
            ],
            stdout=log,
            stderr=log,
        )

    def ask(expression: str) -> list[Any]:
        asked = {"query": expression, "start": began, "end": time.time(), "step": "1"}
        answer = requests.get(f"http://{address}/api/v1/query_range", params=asked, timeout=30).json()
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    try:
        yield ask
    finally:
        going.terminate()
        going.wait()


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


def test_the_readmes_commands_make_a_store_on_the_cluster_with_the_bytes_of_one_made_here(lab: Lab) -> None:
    lab.ingest("ingest", "store-there")
    shown = [command for command in commands() if "--on lab" in command]
    assert shown == ["bfp doctor ingest.yaml --on lab", "bfp submit ingest.yaml --on lab"]
    for command in shown:
        done = lab.bfp(*command.split()[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    assert bytes_of(lab.folder / "store-there") == bytes_of(lab.folder / "store")
    assert "target" in done.stderr
    assert "4 CPUs" in done.stderr
    assert "preparing" in done.stderr
    assert json.loads(lab.bfp("status", "runs/ingest", "--on", "lab", "--json").stdout)["job"]["stage"] == "done"


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


def test_another_bfp_than_the_nodes_have_is_refused_unless_it_is_sent_along(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "platform" / "bfp", tmp_path / "bfp", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "bfp" / "__init__.py"
    init.write_text(re.sub(r'__version__ = "[^"]*"', '__version__ = "0.0.9"', init.read_text()))
    spec = lab.ingest("packed", "store-packed")
    refused = lab.bfp("submit", spec, "--on", "lab", PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "bfp 0.0.9 has sent this job, and lab has bfp" in refused.stderr
    assert not (lab.folder / "runs" / "packed").exists()
    done = lab.bfp("submit", spec, "--on", "by-package", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (lab.run("packed").spec_text() or "").startswith("# resolved by bfp 0.0.9")
    assert bytes_of(lab.folder / "store-packed") == bytes_of(lab.folder / "store")


def test_doctor_plans_a_spec_from_the_nodes_side(lab: Lab) -> None:
    done = lab.bfp("doctor", lab.ingest("asked", "store-asked"), "--on", "lab", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    points = {found["point"]: found for found in json.loads(done.stdout)}
    assert points["nodes"]["text"].startswith("2, 4 CPUs")
    assert "12 subjects" in points["plan there"]["text"]
    assert points["claims"]["text"] == "0 of 4 CPUs; 4 CPUs left for Ray Data"
    assert (points["free there now"]["text"], points["free there now"]["verdict"]) == ("4 CPUs and 0 GPUs", "ok")
    assert not (lab.folder / "runs" / "asked").exists()
    done = lab.bfp("doctor", "--on", "no-token")
    assert (done.returncode, "asks for a token" in done.stdout) == (1, True)


def test_every_panel_of_the_dashboard_shows_what_a_real_prometheus_took_from_runs(lab: Lab) -> None:
    (lab.folder / "cohort/sub-odd/anat").mkdir(parents=True)
    (lab.folder / "cohort/sub-odd/anat/sub-odd_T1w.nii.gz").write_bytes(b"no scan")
    with prometheus(lab.folder, lab.cluster.metrics_port) as ask:
        ingest = lab.ingest("watched", "store-watched", max_rejected=0.5)
        assert lab.bfp("submit", ingest, "--on", "lab").returncode == 0
        pretrain = lab.pretrain("watched-too", steps=STEPS, workers=1, cpus=1)
        with lab.submitting("submit", pretrain, "--on", "lab") as client:
            until(lambda: any(row["step"] >= 5 for row in lab.run("watched-too").metrics()), said=lab.said)
            lab.cluster.kill_a_node()  # which is warned of
            assert client.wait(PATIENCE_S) == 0, lab.said()
        lab.cluster.start_node()
        panels = json.loads((CHECKOUT / "infra/monitoring/grafana.json").read_text())["panels"]
        shown = {
            panel["title"]: ask(target["expr"].replace("$run", "watched.*"))
            for panel in panels
            for target in panel["targets"]
        }
    empty = {title for title, found in shown.items() if not found}
    assert empty == {"Requests repeated"}, "none was: the storage is a disk"
