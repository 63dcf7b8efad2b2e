"""The target `local`, with a small real driver on a real Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bfp
from bfp import drivers
from bfp.drivers import Capacity
from bfp.drivers.gpus import gpus_here
from bfp.errors import InputError, Interrupted, JobFailed, StorageError
from bfp.runs import Run, RunFolder
from bfp.specs import dump, load
from bfp.storage import Place
from bfp.targets import Local, resolve
from bfp.targets.checks import run_spec, with_claims
from tests.processes import below
from tests.targets import makers

CHECKOUT = Path(__file__).parents[2]
FINETUNE = "kind: finetune\nstore: s\nencoder: e\ntask: {type: classification, target: t, classes: [a, b]}\n"


@pytest.fixture
def small_driver(monkeypatch):
    """The small driver in the place of the kind's own; call it with how the job goes."""

    def put(mode: str = "well", units: int = 3) -> None:
        monkeypatch.setattr(drivers, "plan", makers.plan)
        monkeypatch.setattr(
            drivers, "execute", lambda spec, run, profile: makers.execute(spec, run, mode=mode, units=units)
        )

    return put


def test_a_job_runs_to_its_end_and_leaves_results_events_and_a_page(small_driver, ray_session, tmp_path):
    small_driver()
    heard = []
    spec = load(makers.write_spec(tmp_path))
    with resolve(None) as target:
        run = target.submit(spec, listener=heard.append)
    assert run.outcome() == "done"
    assert run.results()["figures"]["sessions"] == 3
    assert [event["event"] for event in heard if event["event"] != "progress"] == ["start", "phase", "phase", "end"]
    assert "done" in (run.folder / "report" / "index.html").read().decode()
    assert load(run.folder.path / "spec.yaml") == spec


def test_a_failure_on_a_worker_is_told_in_one_line_and_stands_in_the_run(small_driver, ray_session, tmp_path):
    small_driver("fails")
    with Local() as target, pytest.raises(JobFailed, match=r"^ValueError: unit 0 is odd$"):
        target.submit(load(makers.write_spec(tmp_path)), listener=lambda event: None)
    run = RunFolder(Place(f"{tmp_path}/runs/small"))
    assert run.outcome() == "failed"
    assert "unit 0 is odd" in (run.folder / "report" / "index.html").read().decode()


def test_a_worker_that_dies_is_told_in_plain_words(small_driver, ray_session, tmp_path):
    small_driver("dies")
    with Local() as target, pytest.raises(JobFailed, match="a worker died without a word"):
        target.submit(load(makers.write_spec(tmp_path)), listener=lambda event: None)


def test_a_wish_to_stop_that_comes_as_the_driver_ends_keeps_what_follows_from_starting(
    monkeypatch, ray_session, tmp_path
):
    monkeypatch.setattr(drivers, "execute", lambda spec, run, profile: os.kill(os.getpid(), signal.SIGINT))
    spec = load(makers.write_spec(tmp_path))
    with Local() as target, pytest.raises(Interrupted, match="small had just finished"):
        target.submit(spec, listener=lambda event: None)
    assert RunFolder(Place(f"{tmp_path}/runs/small")).outcome() == "done"


def finished_run(tmp_path, **fields):
    """A run that a spec with these fields has left behind."""
    spec = load(makers.write_spec(tmp_path, **fields))
    with Run(Place(f"{tmp_path}/runs/small"), spec_yaml=dump(spec), kind=spec.kind, version="0"):
        pass
    return spec


def test_a_name_used_by_another_spec_is_refused_with_the_fields_that_differ(small_driver, tmp_path):
    small_driver()
    finished_run(tmp_path, embedding="true", seed=1)
    before = sorted(tmp_path.rglob("*"))
    with Local() as target, pytest.raises(InputError, match=r"(?s)seed: 1 → 2\n.*embedding: true → false"):
        target.plan(load(makers.write_spec(tmp_path, embedding="false", seed=2)))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_spec_of_a_run_that_was_spoilt_is_told_with_what_is_wrong_in_it(small_driver, tmp_path):
    small_driver()
    spec = load(makers.write_spec(tmp_path))
    file = tmp_path / "runs/small/spec.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(run_spec(spec).replace("seed:", "sed:"))
    told = (
        rf"a run of bfp {bfp.__version__}, whose spec bfp {bfp.__version__} cannot read(?s:.*)small/spec.yaml:\d+  sed"
    )
    with Local() as target, pytest.raises(InputError, match=told):
        target.plan(spec)


def test_what_says_only_how_a_run_is_run_may_change(small_driver, tmp_path):
    small_driver()
    finished_run(tmp_path)
    with Local() as target:
        assert target.plan(load(makers.write_spec(tmp_path, compute="{workers: 2}"))).rows


def test_a_run_that_goes_on_elsewhere_is_refused(small_driver, tmp_path):
    small_driver()
    spec = load(makers.write_spec(tmp_path))
    going_on = Run(Place(f"{tmp_path}/runs/small"), spec_yaml=dump(spec), kind=spec.kind, version="0")
    with going_on, Local() as target, pytest.raises(InputError, match="this run is going on"):
        target.plan(spec)


def test_an_output_that_cannot_be_written_is_refused(small_driver, tmp_path):
    small_driver()
    (tmp_path / "runs").write_text("a file")
    with Local() as target, pytest.raises(InputError, match="is a file; give a folder"):
        target.plan(load(makers.write_spec(tmp_path)))


def test_training_that_claims_more_cpus_than_there_are_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("kind: pretrain\nname: a\nstore: s\ncompute: {workers: 4, cpus_per_worker: 8}\n")
    with Local(cpus=2) as target, pytest.raises(InputError, match="4 × 8 CPUs are claimed and this machine has 2"):
        target.plan(load(file))


@pytest.mark.parametrize(
    ("spec", "claimed"),
    [
        ("kind: pretrain\nstore: s\ncompute: {workers: 2, gpus_per_worker: 1}", r"2 GPUs .*workers × gpus_per_worker"),
        ("kind: pretrain\nstore: s\ncompute: {workers: 2}", r"2 GPUs .*by itself one each"),
        (f"{FINETUNE}compute: {{gpus: 3}}", r"3 GPUs .*\(gpus\)"),
        (
            "kind: infer\nmodel: m\ncohorts: [{name: a, bids: b}]\ncompute: {models: 4, gpus_per_model: 0.5}",
            r"2 GPUs .*models × gpus_per_model",
        ),
    ],
    ids=["pretrain", "pretrain by itself", "finetune", "infer"],
)
def test_a_job_that_claims_more_gpus_than_there_are_is_refused_before_anything_is_written(
    spec, claimed, small_driver, monkeypatch, tmp_path
):
    small_driver()
    monkeypatch.setattr(sys.modules["bfp.drivers.plan"], "gpus_here", lambda: 1)
    file = tmp_path / "a.yaml"
    file.write_text(f"{spec}\nname: a\noutput: {tmp_path}/runs\n")
    with Local(cpus=8) as target, pytest.raises(InputError, match=f"{claimed}.* and this machine has 1"):
        target.plan(load(file))
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(sys.modules["bfp.drivers.plan"], "gpus_here", lambda: 3)
    with Local(cpus=8) as target:
        assert target.plan(load(file)).rows


@pytest.mark.parametrize(
    ("spec", "gpus", "takes"),
    [
        ("kind: pretrain\nstore: s\ncompute: {workers: 2}", 0, ("gpus_per_worker", 0)),
        ("kind: pretrain\nstore: s\ncompute: {workers: 2}", 4, ("gpus_per_worker", 1)),
        ("kind: pretrain\nstore: s\ncompute: {workers: 2, gpus_per_worker: 0}", 4, ("gpus_per_worker", 0)),
        (FINETUNE, 4, ("gpus", 1)),
        ("kind: infer\nmodel: m\ncohorts: [{name: a, bids: b}]\ncompute: {models: 4}", 2, ("gpus_per_model", 0.5)),
    ],
)
def test_on_a_cluster_a_job_takes_the_gpus_that_its_profile_lends_also_where_they_are_yet_to_come(
    spec, gpus, takes, tmp_path
):
    file = tmp_path / "a.yaml"
    file.write_text(f"{spec}\nname: a\noutput: {tmp_path}/runs\n")
    before = load(file)
    told = with_claims(before, Capacity(0, 0, 0.0).up_to(Capacity(8, gpus, 64.0)))
    field, count = takes
    assert getattr(told.compute, field) == count
    assert told.model_copy(update={"compute": before.compute}) == before


def test_hidden_gpus_do_not_count(monkeypatch):
    monkeypatch.setattr("bfp.drivers.gpus._gpus_of_the_driver", lambda: 4)
    for visible, count in ((None, 4), ("0,2", 2), ("", 0), ("0,1,2,3,4,5", 4)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus_here() == count


def lose_the_folder(spec, run, profile):
    """A driver under which the disk that holds the run goes away."""
    run.folder.path.rename(run.folder.path.with_name("away"))
    run.folder.path.write_text("a file: nothing can be written below it")


def full_disk(spec, run, profile):
    raise StorageError(f"{run.folder}/model: cannot write it: no space left")


def test_input_that_turns_out_wrong_after_the_run_began_is_the_run_s_failure(monkeypatch, ray_session, tmp_path):
    monkeypatch.setattr(drivers, "execute", full_disk)
    with Local() as target, pytest.raises(JobFailed, match="no space left") as failed:
        target.submit(load(makers.write_spec(tmp_path)), listener=lambda event: None)
    assert failed.value.exit_code == 1
    run = RunFolder(Place(f"{tmp_path}/runs/small"))
    assert run.outcome() == "failed"
    assert "no space left" in (run.folder / "report" / "index.html").read().decode()


def test_a_run_whose_end_cannot_be_written_has_failed(monkeypatch, ray_session, tmp_path):
    monkeypatch.setattr(drivers, "execute", lose_the_folder)
    with Local() as target, pytest.raises(JobFailed, match="cannot write it"):
        target.submit(load(makers.write_spec(tmp_path)), listener=lambda event: None)


def test_a_page_that_cannot_be_written_does_not_hide_what_failed(small_driver, monkeypatch, ray_session, tmp_path):
    def no_page(run):
        raise StorageError("report: cannot write it: no space left")

    small_driver("fails")
    monkeypatch.setattr("bfp.reports.write_page", no_page)
    with Local() as target, pytest.raises(JobFailed, match="unit 0 is odd"):
        target.submit(load(makers.write_spec(tmp_path)), listener=lambda event: None)


def test_a_spec_that_came_first_after_the_plan_is_kept(small_driver, tmp_path):
    small_driver()
    with Local() as target:
        spec = load(makers.write_spec(tmp_path, seed=2))
        assert target.plan(spec).rows
        before = finished_run(tmp_path, seed=1)  # by somebody else, between plan and submit
        with pytest.raises(InputError, match="seed: 1 → 2"):
            target.submit(spec, listener=lambda event: None)
    assert load(tmp_path / "runs/small/spec.yaml") == before


def test_a_store_that_lets_two_submitters_run_is_warned_of(small_driver, monkeypatch, tmp_path):
    small_driver()
    monkeypatch.setattr(Place, "creates_once", lambda self: False)
    with Local() as target:
        assert "only one does" in target.plan(load(makers.write_spec(tmp_path))).warnings[-1]


def test_a_target_that_no_profile_names_is_refused():
    with pytest.raises(InputError, match="--on cluster: no target has this name"):
        resolve("cluster")
    with pytest.raises(InputError, match="--detach"):
        resolve(None, detach=True)


def submitted(mode: str, spec: Path) -> subprocess.Popen:
    """`bfp submit` with the small driver, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.targets.makers", mode, "submit", str(spec), "--cpus", "1"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_counts(run: RunFolder, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not any(event["event"] == "progress" for event in run.events()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ended_within(process: subprocess.Popen, seconds: float) -> tuple[int, str]:
    began = time.monotonic()
    _, said = process.communicate(timeout=300)
    assert time.monotonic() - began < seconds
    return process.returncode, said


def test_ctrl_c_ends_a_run_resumably_with_130_and_without_chatter(tmp_path):
    run = RunFolder(Place(f"{tmp_path}/runs/small"))
    process = submitted("well", makers.write_spec(tmp_path))
    wait_until_it_counts(run, process)
    os.kill(process.pid, signal.SIGINT)
    code, said = ended_within(process, 20)
    assert code == 130
    assert run.outcome() == "interrupted"
    assert run.holder() is None
    assert said.endswith("units stand; submit again to go on\n")
    assert not [word for word in ("Traceback", "chatter", "raylet", "INFO", "Usage stats") if word in said], said


def test_sigterm_to_every_process_as_slurm_sends_it_ends_a_run_as_resumably(tmp_path):
    run = RunFolder(Place(f"{tmp_path}/runs/small"))
    process = submitted("well", makers.write_spec(tmp_path))
    wait_until_it_counts(run, process)
    for pid in sorted(below(process.pid)):
        os.kill(pid, signal.SIGTERM)
    code, said = ended_within(process, 20)
    assert (code, run.outcome()) == (130, "interrupted")
    assert said.endswith("units stand; submit again to go on\n")


def test_a_second_ctrl_c_breaks_off_a_driver_that_does_not_listen(tmp_path):
    run = RunFolder(Place(f"{tmp_path}/runs/small"))
    process = submitted("deaf", makers.write_spec(tmp_path))
    wait_until_it_counts(run, process)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    code, said = ended_within(process, 20)
    assert (code, run.outcome()) == (130, "interrupted")
    assert "Traceback" not in said
