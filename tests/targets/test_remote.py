"""A run on a cluster as it is followed from here: what its lines, and its end, come to. The cluster is a script."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bfp.cli.doctor import examine_cluster
from bfp.drivers import Capacity
from bfp.errors import DamagedFile, InputError, Interrupted, JobFailed
from bfp.runs import Listener
from bfp.specs import load
from bfp.specs.clusters import RayTarget
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.paths import local_paths
from bfp.targets import remote
from bfp.targets.cluster import Check, Job
from bfp.targets.letter import Letter, read_letter
from bfp.targets.remote import Remote
from tests.cohorts.makers import write_bids
from tests.targets import makers

RUN = "/data/runs/small"
BELOW = ["cohorts=[{name: a, bids: /nowhere/b}]"]


@dataclass
class Script:
    """A cluster that says what it is told to. after: what becomes of a job once its lines are told."""

    known: list[Job] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    after: Job | None = None
    sent: list[tuple[Letter, int]] = field(default_factory=list)
    silent: int = 0  # times that it does not answer first
    told_to_stop: bool = False

    def capacity(self) -> Capacity:
        return Capacity(8, 0, 64.0, "the cluster lab")

    def nodes(self) -> int:
        return 3

    def lent(self) -> Capacity | None:
        return Capacity(64, 8, 512.0, "the cluster lab")

    def manifest(self, letter: Letter) -> str:
        return letter.run

    def jobs(self, run: str) -> list[Job]:
        if self.silent:
            self.silent -= 1
            raise InputError("the cluster lab does not answer")
        return list(self.known)

    def send(self, letter: Letter, *, attempt: int, listener: Listener) -> Job:
        self.sent.append((letter, attempt))
        self.known.append(Job(f"job-{attempt}", "running", digest=letter.digest))
        return self.known[-1]

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        yield from self.told
        if self.after is not None:
            self.known = [self.after]

    def ends(self, job: Job) -> bool:
        return self.told_to_stop

    def stop(self, job: Job) -> None:
        self.known = [job._replace(stage="stopped")]

    def checks(self) -> Iterator[Check]:
        yield Check("reachable", "ok", "yes")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STATE_EVERY_S", 0.01)


def on(script: Script, **fields: Any) -> Remote:
    settings = RayTarget.model_validate({"target": "ray", "address": "http://lab:8265", **fields})
    return Remote("lab", settings, script, file="/home/me/bfp.toml")


def say(event: str, **fields: Any) -> str:
    return json.dumps({"event": event, **fields})


def follow(script: Script) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    done = on(script).follow(RUN, script.known[0], listener=heard.append)
    return done, heard


def test_a_runs_events_are_heard_and_rays_own_words_are_not() -> None:
    lines = ["(raylet) chatter", say("phase", phase="listing", total=None, unit=""), '{"no": "event"}', "{broken"]
    end = [say("end", outcome="done", message=""), say("finished", figures={"stacks": 3})]
    script = Script([Job("job-1", "running")], [*lines, *end])
    done, heard = follow(script)
    assert done["figures"] == {"stacks": 3}
    assert [event["event"] for event in heard] == ["phase", "end"]


@pytest.mark.parametrize(
    ("lines", "after", "error", "told"),
    [
        ([say("refused", message="store: no such store")], "failed", InputError, "store: no such store"),
        ([say("end", outcome="failed", message="a shard was lost")], "failed", JobFailed, "a shard was lost"),
        ([say("end", outcome="interrupted", message="20 steps stand")], "failed", Interrupted, "20 steps stand"),
        ([], "stopped", Interrupted, "stopped \\(job job-1\\); submit the same again"),
        (["/usr/bin/python: No module named bfp"], "failed", InputError, "lab: bfp is not installed where the driver"),
        (["Traceback", "OSError: disk"], "failed", JobFailed, "ended without a word: killed; the last that it wrote:"),
        ([], "failed", JobFailed, "ended without a word: killed; it wrote nothing"),
    ],
)
def test_an_end_that_is_not_good_raises_what_a_run_here_would(
    lines: list[str], after: Any, error: type[Exception], told: str
) -> None:
    said = "killed" if after == "failed" else ""
    script = Script([Job("job-1", "running")], lines, Job("job-1", after, said))
    with pytest.raises(error, match=told):
        follow(script)


def test_what_an_earlier_start_ended_with_does_not_speak_for_the_next() -> None:
    lines = [
        say("begins"),
        say("end", outcome="interrupted", message="at step 100"),
        say("begins"),
        "Ray did not start",
    ]
    script = Script([Job("job-1", "running")], lines, Job("job-1", "failed", "its driver failed"))
    with pytest.raises(JobFailed, match="ended without a word: its driver failed"):
        follow(script)


def test_a_job_that_is_done_is_no_failure_where_its_last_word_was_not_heard() -> None:
    script = Script([Job("job-1", "running")], [say("phase", phase="listing")], Job("job-1", "done"))
    assert follow(script)[0] == {}


def test_of_two_jobs_of_a_run_the_one_that_runs_is_meant_and_stop_ends_both() -> None:
    script = Script([Job("job-1", "running"), Job("job-2", "waiting")])
    assert on(script).job(RUN).id == "job-1"
    stopped: list[str] = []

    def stop(job: Job) -> None:
        stopped.append(job.id)
        script.known = [each if each.id != job.id else each._replace(stage="stopped") for each in script.known]

    script.stop = stop  # type: ignore[method-assign]
    assert on(script).stop(RUN).stage == "stopped"
    assert stopped == ["job-2", "job-1"]


def test_a_check_of_another_spec_is_not_taken_for_this_one(tmp_path: Path) -> None:
    script = Script(told=[say("checked", rows=[], warnings=[], bfp="1", python="3.12.1", ray="2")])
    target = on(script, shared_paths=[str(tmp_path)])
    assert target.ask(load(makers.write_spec(tmp_path)), listener=print)["bfp"] == "1"
    with pytest.raises(InputError, match="going on on lab with another spec"):
        target.ask(load(makers.write_spec(tmp_path, seed=3)), listener=print)


def test_a_job_that_its_cluster_has_forgotten_has_failed() -> None:
    script = Script([Job("job-1", "running")], [], Job("job-2", "running"))
    with pytest.raises(JobFailed, match="does not know of it any more: it was made anew"):
        follow(script)


def test_what_a_job_waits_for_is_told_once() -> None:
    script = Script([Job("job-1", "waiting", "no quota")], [say("finished")])
    heard: list[dict[str, Any]] = []
    turns = iter([script.known] * 3 + [[Job("job-1", "running")]] * 9)
    script.jobs = lambda run: next(turns)  # type: ignore[method-assign]
    on(script).follow(RUN, script.known[0], listener=heard.append)
    assert heard == [{"event": "note", "message": "no quota"}]


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again() -> None:
    script = Script([Job("job-1", "running")], [say("finished")], silent=5)
    assert follow(script)[0] == {"event": "finished"}
    script = Script([Job("job-1", "running")], [say("finished")], silent=remote.PATIENCE)
    with pytest.raises(JobFailed, match="does not answer"):  # nothing was wrong with what was sent
        follow(script)


def test_the_same_spec_is_sent_once_and_another_one_not_beside_it(tmp_path: Path) -> None:
    script = Script()
    target = on(script, shared_paths=[str(tmp_path)])
    spec = load(makers.write_spec(tmp_path))
    first = target.send(spec)
    assert target.send(spec) == first
    assert [attempt for _, attempt in script.sent] == [1]
    other = load(makers.write_spec(tmp_path, seed=3))
    with pytest.raises(InputError, match=r"going on on lab with another spec \(job job-1\).*bfp stop"):
        target.send(other)
    script.known = [first._replace(stage="failed")]
    assert target.send(other).id == "job-2"


def test_what_is_sent_while_one_that_was_told_to_stop_saves_begins_after_it(tmp_path: Path) -> None:
    script, heard = Script(told_to_stop=True), []
    target = on(script, shared_paths=[str(tmp_path)])
    spec = load(makers.write_spec(tmp_path))
    first = target.send(spec)
    looks = iter(range(3))

    def jobs(run: str) -> list[Job]:
        if next(looks, None) is None:
            script.known[0] = first._replace(stage="stopped")
        return list(script.known)

    script.jobs = jobs  # type: ignore[method-assign]
    assert target.send(spec, listener=heard.append).id == "job-2"
    assert [event["message"] for event in heard] == ["job job-1 was told to stop: waiting until it has saved"]


DONE, FAILED, INTERRUPTED = (
    say("end", outcome=outcome, message="odd") for outcome in ("done", "failed", "interrupted")
)


def test_who_waits_for_an_attempt_to_end_leaves_alone_what_another_has_sent_meanwhile(tmp_path: Path) -> None:
    """On Kubernetes every attempt at a run has the same name."""
    script = Script(told_to_stop=True)
    target = on(script, shared_paths=[str(tmp_path)])
    spec = load(makers.write_spec(tmp_path))
    digest = target.letter(spec).digest
    old, new = (Job("rayjob", stage, digest=digest, attempt=uid) for stage, uid in (("running", "1"), ("waiting", "2")))
    looks = iter([[old], [old]])
    stopped: list[Job] = []
    script.jobs = lambda run: next(looks, [new])  # type: ignore[method-assign]
    script.stop = stopped.append  # type: ignore[method-assign]
    assert target.send(spec) == new
    assert (stopped, script.sent) == ([], [])


def test_a_log_that_cannot_be_read_keeps_nobody_from_status_and_sending(tmp_path: Path) -> None:
    script = Script()

    def ends(job: Job) -> bool:
        raise InputError("500")

    script.ends = ends  # type: ignore[method-assign]
    target = on(script, shared_paths=[str(tmp_path)])
    spec = load(makers.write_spec(tmp_path))
    assert target.send(spec) == target.send(spec) == target.state(RUN)


@pytest.mark.parametrize(
    ("job", "lines", "told"),
    [
        (Job("job-1", "running"), [], ("running", "it was told to stop, and saves what stands")),
        (Job("job-1", "failed"), [say("refused", message="no such bucket")], ("failed", "no such bucket")),
        (Job("job-1", "failed", "killed for memory"), [FAILED], ("failed", "odd (killed for memory)")),
        (Job("job-1", "failed", "killed"), [FAILED, say("begins")], ("failed", "killed")),
        (Job("job-1", "failed", "its time is over"), [INTERRUPTED], ("failed", "its time is over")),
        (Job("job-1", "stopped"), [DONE], ("done", "")),
        (Job("job-1", "stopped"), [INTERRUPTED], ("stopped", "")),
    ],
)
def test_a_job_is_told_in_its_driver_s_own_words_where_they_say_more(job: Job, lines: list[str], told: Any) -> None:
    assert on(Script([job], lines, told_to_stop=True)).state(RUN)[1:3] == told


def test_a_stop_says_that_it_was_asked_and_whoever_waits_no_longer_stops_it_nevertheless() -> None:
    script, heard = Script([Job("job-1", "running")]), []
    script.stop = lambda job: None  # type: ignore[method-assign, assignment]

    def tired(run: str) -> list[Job]:
        if heard:
            raise KeyboardInterrupt
        return list(script.known)

    script.jobs = tired  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"job job-1 was told to stop, and does.*bfp status {RUN} --on lab"):
        on(script).stop(RUN, listener=heard.append)
    assert heard[0]["message"].startswith("job job-1 was told to stop")


def test_a_driver_reads_the_letter_that_was_sent(tmp_path: Path) -> None:
    spec = load(makers.write_spec(tmp_path))
    command = ["synthstrip", "-i", "{scan}", "-m", "{mask}"]
    sent = on(Script(), brain_program=command).letter(spec)
    found = read_letter(sent.environment())
    assert (found.spec, found.target, found.nodes, found.check) == (spec, "lab", 3, False)
    assert Capacity(4, 0, 700.0, "there").up_to(found.lent) == Capacity(64, 8, 700.0, "there")
    assert Capacity(4, 0, 700.0, "there").up_to(None) == Capacity(4, 0, 700.0, "there")
    assert found.profile().local.brain_program == command
    assert found.digest == sent.digest
    with pytest.raises(InputError, match="nothing was sent here"):
        read_letter({})


def test_paths_that_the_nodes_do_not_share_are_all_named(tmp_path: Path) -> None:
    spec = load(makers.write_spec(tmp_path))
    with pytest.raises(InputError) as caught:
        on(Script(), shared_paths=["/data"]).plan(spec)
    for part in (
        f"    output: {tmp_path}/runs",
        "    model: /",
        "cohorts[0].bids: ",
        "shared_paths",
        "/data",
    ):
        assert part in str(caught.value)


def test_a_folder_for_mlflow_has_to_be_one_that_the_nodes_share(tmp_path: Path) -> None:
    spec = load(makers.write_spec(tmp_path, output="/data/runs", model="/data/m"), overrides=BELOW)
    for mlflow, refused in (("file:///home/me/mlruns", True), ("file:///data/mlruns", False), ("https://a.org", False)):
        target = on(Script(), shared_paths=["/data", "/nowhere"], mlflow=mlflow)
        if refused:
            with pytest.raises(InputError, match=r"mlflow of \[lab\]: /home/me/mlruns"):
                target.plan(spec)
        else:
            assert target.plan(spec).rows


def test_gpus_that_a_job_would_hold_and_not_use_are_warned_of(tmp_path: Path) -> None:
    ingest = tmp_path / "ingest.yaml"
    ingest.write_text(
        f"kind: ingest\nname: a\noutput: {tmp_path}/runs\nstore: {tmp_path}/store\n"
        f"cohorts: [{{name: a, bids: {tmp_path}/cohort}}]\n"
    )
    write_bids(tmp_path / "cohort", subjects=2)
    script = Script()
    script.lent = lambda: Capacity(8, 2, 64.0, "a job on lab")  # type: ignore[method-assign]
    target = on(script, shared_paths=[str(tmp_path), "/nowhere"])
    (warning,) = [text for text in target.plan(load(ingest)).warnings if "GPU" in text]
    assert warning == "a job on lab has 2 GPUs, and this ingest uses none: a target without leaves them to others"
    infer = load(makers.write_spec(tmp_path, output="/nowhere/runs", model="/nowhere/m"), overrides=BELOW)
    assert target._idle_gpus(infer) == []
    script.lent = lambda: None  # type: ignore[method-assign]
    assert not target.plan(load(ingest)).warnings, "where a job takes only what it asks for"


def test_where_the_profile_says_that_storage_is_counts_from_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    env = {"AWS_ENDPOINT_URL": "https://s3.lab", "AWS_REGION": "there", "AWS_CA_BUNDLE": "/of/the/nodes", "OTHER": "x"}
    with on(Script(), env=env):
        assert [os.environ.get(name) for name in env] == ["https://s3.lab", "here", None, None]
    assert "AWS_ENDPOINT_URL" not in os.environ


@pytest.mark.parametrize("by", ["shared_paths", "volumes"])
def test_a_shared_folder_that_is_not_here_leaves_the_plan_to_the_nodes(tmp_path: Path, by: str) -> None:
    spec = load(makers.write_spec(tmp_path, output="/nowhere/runs", model="/nowhere/m"), overrides=BELOW)
    settings: Any = {"target": "kuberay", "image": "bfp:1", by: ["/nowhere"]}
    if by == "volumes":
        settings[by] = [{"claim": "brains", "path": "/nowhere"}]
    script = Script(told=[say("checked", rows=[], warnings=[], bfp="1", python="3", ray="2")])
    target = Remote("kube", KubeRayTarget.model_validate(settings), script, file="bfp.toml")
    assert "/nowhere is not on this machine" in dict(target.plan(spec).rows)["plan"]
    points = {found.point: found.text for found in examine_cluster(target, spec)}
    assert points["plan here"].startswith("made there")


def test_doctor_says_what_a_spec_claims_what_that_leaves_to_ray_data_and_what_others_hold(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "kind: pretrain\nname: a\noutput: /nowhere/runs\nstore: /nowhere/store\n"
        "compute: {workers: 2, cpus_per_worker: 3, gpus_per_worker: 0}\n"
    )
    answer = say("checked", rows=[], warnings=[], bfp="1", python="3", ray="2", free={"cpus": 5, "gpus": 0})
    target = on(Script(told=[answer]), shared_paths=["/nowhere"])
    points = {found.point: found for found in examine_cluster(target, load(file))}
    assert points["claims"].text.startswith("6 of 8 CPUs; 2 CPUs left for Ray Data, of which pretraining needs none")
    assert (points["free there now"].verdict, points["free there now"].text) == ("warn", "5 CPUs and 0 GPUs")


def test_a_run_whose_spec_is_damaged_is_said_here(tmp_path: Path) -> None:
    spec = load(makers.write_spec(tmp_path, model=str(tmp_path / "model")), overrides=["cohorts=[{name: a, bids: .}]"])
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "spec.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFile, match=r"spec\.yaml: damaged"):
        on(Script(), shared_paths=[str(tmp_path), str(Path.cwd())]).plan(spec)


def test_which_paths_a_spec_names() -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    found = local_paths(load(jobs / "finetune.yaml"))
    assert set(found) <= {"output", "store", "labels", "encoder"}
    ingest = load(
        jobs / "ingest.yaml",
        overrides=['cohorts=[{name: a, glob: "/d/*.nii", pattern: "/(?P<subject>x)_(?P<modality>y)"}]'],
    )
    assert local_paths(ingest)["cohorts[0].glob"] == "/d/*.nii"
    assert "cohorts[0].pattern" not in local_paths(ingest)
    by_uri = load(jobs / "finetune.yaml", overrides=["output=file:///d/runs", "store=s3://b/store"])
    assert local_paths(by_uri)["output"] == "/d/runs"
    assert "store" not in local_paths(by_uri)
    started = load(jobs / "pretrain.yaml", overrides=["encoder=timm:vit_large_patch14_dinov2@/w/l.safetensors"])
    assert local_paths(started)["encoder"] == "/w/l.safetensors"
