"""Figures to MLflow as well: all of them, one MLflow run a folder, and never at the run's cost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bfp.errors import InputError, Interrupted
from bfp.runs import Run, RunFolder
from bfp.runs.tracking import Tracker
from bfp.specs.profile import Profile
from bfp.specs.target import LocalTarget
from bfp.storage import Place
from bfp.targets.checks import check_tracking

pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")

SPEC = "kind: pretrain\nname: a\nssl: {prototypes: 16}\nwhere: null\n"


def submit(folder: Path, *, tracking: str) -> Run:
    return Run(Place(str(folder)), spec_yaml=SPEC, kind="pretrain", version="0", tracking=tracking)


def warnings_of(run: RunFolder) -> list[str]:
    return [event["message"] for event in run.events() if event["event"] == "warning"]


def test_mlflow_has_figures_spec_and_outcome_of_every_submission_in_one_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"file://{tmp_path / 'mlruns'}"
    with pytest.raises(Interrupted), submit(tmp_path / "a", tracking=uri) as run:
        run.figures(1, {"loss": 3.0, "rate": 0.5})
        raise Interrupted("stopped")
    with submit(tmp_path / "a", tracking=uri) as run:
        run.figures(2, {"loss": 2.0})
    with submit(tmp_path / "b", tracking=uri) as run:
        run.figures(1, {"loss": 9.0})
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("bfp")
    assert experiment is not None
    found = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["a", "b"]
    mine = found["a"]
    assert mine.info.status == "FINISHED"
    history = client.get_metric_history(mine.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 2.0)]
    assert mine.data.params == {"kind": "pretrain", "name": "a", "ssl.prototypes": "16"}
    (spec,) = (tmp_path / "mlruns").rglob(f"{mine.info.run_id}/artifacts/spec.yaml")
    assert spec.read_text() == SPEC
    assert not warnings_of(RunFolder(Place(str(tmp_path / "a"))))


def test_a_server_that_is_down_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    with submit(tmp_path / "a", tracking="http://127.0.0.1:9") as run:
        until = time.monotonic() + 300
        while not warnings_of(run) and time.monotonic() < until:
            run.figures(0, {"loss": 1.0})
            time.sleep(0.1)
        run.figures(1, {"loss": 1.0})
    folder = RunFolder(Place(str(tmp_path / "a")))
    assert folder.outcome() == "done"
    (warning,) = warnings_of(folder)
    assert warning.startswith("http://127.0.0.1:9: MLflow cannot be reached or refuses (")
    assert len(folder.metrics()) == 2


def test_after_trouble_nothing_is_gathered_that_nobody_will_send() -> None:
    tracker = Tracker("http://127.0.0.1:9", folder="runs/a", name="a", kind="pretrain", spec_yaml=SPEC)
    tracker._thread.join(60)
    assert tracker.trouble() is not None
    for step in range(3):
        tracker.add(step, {"loss": 1.0})
    assert tracker._waiting.empty()


def test_a_client_that_is_not_installed_is_asked_for_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile("bfp.toml", local=LocalTarget(mlflow="http://127.0.0.1:9"))
    check_tracking(profile)
    monkeypatch.setattr("bfp.targets.checks.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bfp\.toml: local\.mlflow: .* pip install 'bfp\[mlflow\]'"):
        check_tracking(profile)
