"""Kubernetes as a target, on a real API server: sent, watched, stopped, and whatever an API server does meanwhile.

The operator and the kubelet are played (tests/kube.py): what is under test is what bfp asks and makes of answers.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from bfp import drivers
from bfp.cli.main import run
from bfp.drivers import Plan
from bfp.errors import BfpError, InputError, Interrupted, JobFailed
from bfp.specs import Spec, load
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.profile import read_profile
from bfp.targets import kube_api, kuberay, kuberay_checks, kuberay_log, remote
from bfp.targets.cluster import Job
from bfp.targets.kube_api import Refused
from bfp.targets.kuberay import KubeRay
from bfp.targets.kuberay_manifest import as_yaml, first_nodes, job_name, ray_job
from bfp.targets.letter import letter
from bfp.targets.remote import Remote
from tests.kube import RAYJOBS, Kube, Operator, looking_after, path_of, wait_until
from tests.targets.kube_rules import templates
from tests.targets.makers import write_spec

pytest.importorskip("kubernetes", reason="the client of Kubernetes is not installed: pip install 'bfp[cluster]'")

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = itertools.count(1)
KUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces"
DONE = {"event": "finished", "status": {}, "figures": {}, "report": "x"}


class Lab:
    """One namespace of its own, a target for it, and one run."""

    def __init__(self, kube: Kube, folder: Path, *, who: str = "admin", **fields: Any) -> None:
        self.kube = kube
        self.namespace = fields.pop("namespace", None) or kube.namespace(f"lab-{next(NUMBERS)}")
        self.settings = KubeRayTarget.model_validate(
            {
                "target": "kuberay",
                "image": "example.org/bfp:1",
                "context": who,
                "namespace": self.namespace,
                "shared_paths": [str(folder)],
                **fields,
            }
        )
        self.backend = KubeRay("lab", self.settings, file="bfp.toml")
        self.remote = Remote("lab", self.settings, self.backend, file="bfp.toml")
        self.spec = load(write_spec(folder))
        self.run = self.spec.folder
        self.operator = Operator(kube, self.namespace, job_name(self.run))

    def stopping(self) -> KubeRay:
        """Of a profile that has lost its queue meanwhile."""
        return KubeRay("lab", self.settings.model_copy(update={"queue": None}), file="bfp.toml")

    @property
    def job(self) -> Job:
        (found,) = self.backend.jobs(self.run)
        return found

    def follow(self, heard: list[Any] | None = None) -> dict[str, Any]:
        listener = (heard if heard is not None else []).append
        return self.remote.follow(self.run, self.job, listener=listener)

    def says(self, *events: dict[str, Any]) -> None:
        """The driver writes, by the pod that follows it."""
        self.kube.kubelet.write(self.operator.submitter, *(json.dumps(event) for event in events))


@pytest.fixture
def lab(kubernetes: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a lab; what waits between two looks waits less."""
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.kubeconfig))
    monkeypatch.setattr(kuberay, "LOOK_S", 1.0)
    monkeypatch.setattr(kuberay, "POLL_S", 0.1)
    monkeypatch.setattr(kuberay_log, "POLL_S", 0.1)
    monkeypatch.setattr(kube_api, "PAUSE_S", 0.1)
    monkeypatch.setattr(remote, "STATE_EVERY_S", 0.1)
    return lambda **fields: Lab(kubernetes, tmp_path, **fields)


def with_seed(spec: Spec, seed: int) -> Spec:
    return spec.model_copy(update={"seed": seed})


# what is sent --------------------------------------------------------------------------------------------------------


def test_everything_in_infra_is_taken_by_a_real_api_server(kubernetes: Kube) -> None:
    files = sorted((ROOT / "infra/kuberay").glob("*.yaml"), key=lambda file: file.stem != "namespace")
    assert {file.stem for file in files} == {"kueue", "namespace", "network-policy", "rbac"}
    for file in files:
        kubernetes.apply(list(yaml.safe_load_all(file.read_text())))
    policies = kubernetes.get("/apis/networking.k8s.io/v1/namespaces/bfp/networkpolicies")["items"]
    assert {policy["metadata"]["name"] for policy in policies} == {"bfp-default-deny", "bfp-ray"}


@pytest.mark.parametrize("profile", sorted(ROOT.glob("infra/profiles/kuberay-*.toml")), ids=lambda file: file.stem)
def test_the_catalogue_is_taken_whole_by_a_real_api_server(kubernetes: Kube, profile: Path) -> None:
    """What the server sends back holds all that was sent: it has taken nothing out."""
    kubernetes.apply(list(yaml.safe_load_all((ROOT / "infra/kuberay/namespace.yaml").read_text())))
    ((name, settings),) = read_profile(profile).clusters.items()
    assert isinstance(settings, KubeRayTarget)
    for file in sorted(ROOT.glob("jobs/*.yaml")):
        sent = letter(load(file), target=name, settings=settings, nodes=first_nodes(settings))
        manifest = yaml.safe_load(as_yaml(ray_job(settings, sent)))
        answer = kubernetes.ask("POST", path_of(manifest), manifest, dryRun="All")
        assert answer.status_code == 201, answer.text
        assert lost(manifest, answer.json()) == []
        for number, template in enumerate(templates(manifest)):
            pod = {"metadata": {"name": f"x-{number}", **template["metadata"]}, "spec": template["spec"]}
            answer = kubernetes.ask("POST", "/api/v1/namespaces/bfp/pods", pod, dryRun="All")
            assert answer.status_code == 201, answer.text
            assert lost(pod, answer.json()) == []


def lost(sent: Any, kept: Any, at: str = "") -> list[str]:
    """Where something of what was sent is not in what came back."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [gone for name, inner in sent.items() for gone in lost(inner, kept.get(name), f"{at}.{name}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) <= len(kept):  # it adds tolerations
        return [gone for number, inner in enumerate(sent) for gone in lost(inner, kept[number], f"{at}[{number}]")]
    return [] if sent == kept else [f"{at}: {sent!r} → {kept!r}"]


def test_a_dry_run_prints_what_is_sent(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    assert lost(yaml.safe_load(here.remote.manifest(here.spec)), here.operator.job) == []


# followed ------------------------------------------------------------------------------------------------------------


def test_a_run_is_followed_from_the_queue_to_its_end(lab: Any) -> None:
    here = lab(queue="team")
    local_queue(here, "team")
    here.remote.send(here.spec)
    heard: list[Any] = []
    admit = lambda: here.kube.patch(here.operator.path, {"spec": {"suspend": False}})  # noqa: E731

    def finish() -> None:
        here.says({"event": "progress", "done": 1}, {"event": "end", "outcome": "done"}, DONE)
        here.operator.end("SUCCEEDED", "Complete")

    with looking_after(
        here.operator,
        (
            lambda job: True,
            lambda: (workload(here, "QuotaReserved", "False", "no nvidia.com/gpu left"), time.sleep(0.6)),
        ),
        (lambda job: True, lambda: (admit(), here.operator.take_up(), time.sleep(0.6))),
        (lambda job: True, here.operator.run),
        (lambda job: job["status"].get("jobStatus") == "RUNNING", finish),
    ):
        assert here.follow(heard) == DONE
    notes = [event["message"] for event in heard if event["event"] == "note"]
    assert "the queue team: no quota yet: no nvidia.com/gpu left" in notes
    assert "its Ray cluster is starting" in notes
    assert [event for event in heard if event["event"] == "progress"] == [{"event": "progress", "done": 1}]
    assert here.job.stage == "done"
    assert here.job.exit_code == 0


@pytest.mark.parametrize(
    ("reason", "message", "said", "code"),
    [
        ("AppFailed", "Job entrypoint command failed with exit code 1, last available logs", "exit code 1", 1),
        ("AppFailed", "Job entrypoint command failed with exit code 2, last available logs", "exit code 2", 2),
        ("SubmissionFailed", "BackoffLimitExceeded", "could not be handed to Ray: BackoffLimitExceeded", None),
        ("DeadlineExceeded", "", "it took longer than `deadline_h` lets it", None),
        ("PreRunningDeadlineExceeded", "waited 300 s", "was not there in time: waited 300 s", None),
        ("JobDeploymentStatusTransitionGracePeriodExceeded", "x", "Ray says that it has ended", None),
        ("JobStatusCheckTimeoutExceeded", "timeout", "keeps the operator from port 8265", None),
        ("ValidationFailed", "authOptions", "KubeRay's operator refuses it: authOptions", None),
        ("SomethingNew", "unheard of", "SomethingNew: unheard of", None),
    ],
)
def test_a_failure_is_told_with_its_reason_and_exit_code(
    lab: Any, reason: str, message: str, said: str, code: int | None
) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.operator.end("FAILED", "Failed", reason=reason, message=message)
    assert here.job.stage == "failed"
    assert said in here.job.said
    assert here.job.exit_code == code
    with pytest.raises(JobFailed, match="ended without a word") as caught:
        here.follow()
    assert said in str(caught.value)


def test_what_the_driver_says_of_its_end_goes_before_what_the_operator_says(lab: Any) -> None:
    for outcome, error, exit_code in (("failed", JobFailed, 1), ("interrupted", Interrupted, 130)):
        here = lab()
        here.remote.send(here.spec)
        here.operator.run()
        here.says({"event": "end", "outcome": outcome, "message": f"it {outcome}"})
        here.operator.end("FAILED", "Failed", reason="AppFailed", message=f"failed with exit code {exit_code}")
        with pytest.raises(error, match=f"it {outcome}"):
            here.follow()
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.says({"event": "refused", "message": "cohorts[0].bids: nothing is there"})
    here.operator.end("FAILED", "Failed", reason="AppFailed", message="failed with exit code 2")
    with pytest.raises(InputError, match="nothing is there"):
        here.follow()


def test_an_image_without_bfp_is_told_with_the_remedy(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.kube.kubelet.write(here.operator.submitter, "/usr/bin/python: No module named bfp")
    here.operator.end("FAILED", "Failed", reason="AppFailed", message="failed with exit code 1")
    with pytest.raises(InputError, match="bfp is not installed where the driver runs; use the image of infra/image"):
        here.follow()


def test_a_job_that_a_new_cluster_takes_up_is_followed_on(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    heard: list[Any] = []

    def retry() -> None:
        here.says({"event": "progress", "done": 1})
        here.operator.end("FAILED", "Retrying", message="failed with exit code 1", failed=1)
        time.sleep(1.5)
        here.operator.run()
        here.says({"event": "progress", "done": 2}, DONE)
        here.operator.end("SUCCEEDED", "Complete")

    here.operator.run()
    with looking_after(here.operator, (lambda job: True, retry)):
        assert here.follow(heard) == DONE
    assert [event["done"] for event in heard if event["event"] == "progress"] == [1, 2]
    told = [event["message"] for event in heard if event["event"] == "note"]
    assert any("a new Ray cluster takes it up" in text for text in told)


def test_what_pods_wait_for_is_told(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    assert "has not taken it up yet" in here.job.said
    here.operator.warn("FailedToCreateHeadPod", 'pods "x" is forbidden: exceeded quota: gpus, requested: 8, limited: 0')
    assert here.job.said.startswith("the namespace has no quota for it: FailedToCreateHeadPod")
    here.operator.take_up()
    here.operator.make_pods(running=False)
    head = f"{here.operator.cluster}-head"
    here.operator.tell(head, {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
    assert here.job == (
        here.operator.name,
        "waiting",
        f"the image of {head} cannot be had (ImagePullBackOff): not found; see `image` and `image_pull_secrets`",
        None,
        here.remote.letter(here.spec).digest,
        here.operator.job["metadata"]["uid"],
    )
    here.operator.tell(head, {"waiting": {"reason": "ContainerCreating"}})
    here.operator.warn("FailedMount", 'claim "brains" not found', pod=head)
    assert here.job.said == f'{head} cannot start (FailedMount): claim "brains" not found; see `volumes`'
    here.operator.tell(head, {"running": {}}, last={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    assert here.job.said == f"{head} was killed for want of memory: raise head.memory_gb"


def test_every_line_is_heard_once_although_the_connection_breaks(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.kube.kubelet.breaks_after += [3, 0, 5, 1]
    texts = [f"line {number}" for number in range(12)]
    here.kube.kubelet.write(here.operator.submitter, *texts[:4])
    here.kube.kubelet.write(here.operator.submitter, *texts[4:9], time_of="2026-01-01T00:00:04.5Z")
    here.kube.kubelet.write(here.operator.submitter, *texts[9:])
    threading.Timer(2, lambda: here.operator.end("SUCCEEDED", "Complete")).start()
    assert list(here.backend.lines(here.job, follow=True)) == texts
    assert list(here.backend.lines(here.job, follow=False)) == texts


def test_a_log_s_times_are_instants_in_whatever_zone_a_node_is(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.kube.kubelet.breaks_after += [3, 2]
    times = ("01:00:09.100000000+01:00", "00:00:09.200000000Z", "01:00:10.000000000+01:00", "19:00:11.000000000-05:00")
    for day, time_of in zip(("01", "01", "01", "00"), times, strict=True):
        written = f"2026-01-{day}T{time_of}" if day != "00" else f"2025-12-31T{time_of}"
        here.kube.kubelet.write(here.operator.submitter, f"at {time_of}", time_of=written)
    threading.Timer(2, lambda: here.operator.end("SUCCEEDED", "Complete")).start()
    assert list(here.backend.lines(here.job, follow=True)) == [f"at {time_of}" for time_of in times]


def test_a_pod_on_a_dead_node_is_given_up_for_the_one_in_its_place(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay_log, "GIVEN_UP_S", 1.0)
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    kubelet, first = here.kube.kubelet, here.operator.submitter
    kubelet.write(first, "begun", "step 1", "step 1")
    heard: list[str] = []

    def dies() -> None:
        try:
            wait_until(lambda: len(heard) == 3)
            kubelet.dead.add(first)
            kubelet.breaks_after += [0] * 3
            kubelet.end(first)
            kubelet.write(here.operator.replace_submitter(), "begun", "step 1", "step 1", "step 1", "step 2")
            wait_until(lambda: len(heard) == 5)
        finally:
            here.operator.end("SUCCEEDED", "Complete")

    thread = threading.Thread(target=dies)
    thread.start()
    for text in here.backend.lines(here.job, follow=True):
        if not text.startswith('{"event": "note"'):
            heard.append(text)
    thread.join()
    assert heard == ["begun", "step 1", "step 1", "step 1", "step 2"]


def test_a_job_beside_the_head_is_read_there(lab: Any) -> None:
    here = lab(mode="SidecarMode")
    here.remote.send(here.spec)
    here.operator.take_up()
    assert list(here.backend.lines(here.job, follow=False)) == []


# what an API server does meanwhile -----------------------------------------------------------------------------------


def test_a_restart_of_the_api_server_goes_unnoticed(lab: Any) -> None:
    here = lab(who="alice", namespace="bfp")
    for name in ("namespace", "rbac"):
        here.kube.apply(list(yaml.safe_load_all((ROOT / f"infra/kuberay/{name}.yaml").read_text())))
    here.remote.send(here.spec)
    here.operator.run()
    here.says({"event": "progress", "done": 1})
    heard: list[Any] = []

    def restart() -> None:
        wait_until(lambda: len(heard) == 1)
        here.kube.end()
        time.sleep(2)
        here.kube.begin()
        here.says({"event": "progress", "done": 2}, DONE)
        here.operator.end("SUCCEEDED", "Complete")

    thread = threading.Thread(target=restart)
    thread.start()
    assert here.follow(heard) == DONE
    thread.join()
    assert [event["done"] for event in heard if event["event"] == "progress"] == [1, 2]


def test_a_watch_that_has_expired_is_begun_anew(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    version = here.operator.job["metadata"]["resourceVersion"]
    here.operator.take_up()
    here.kube.forget_history()
    path = RAYJOBS.format(here.namespace)
    query = {"watch": "true", "resourceVersion": "1", "timeoutSeconds": "1"}
    assert json.loads(here.kube.ask("GET", path, **query).text)["object"]["code"] == 410, "else nothing is tried here"
    began = time.monotonic()
    for old in ("1", version):
        here.backend._api.await_change(path, name=here.operator.name, version=old, wait_s=20)
    assert time.monotonic() - began < 10
    here.operator.run()
    here.says(DONE)
    here.operator.end("SUCCEEDED", "Complete")
    assert here.follow() == DONE


def test_who_sends_at_once_sends_one_job(lab: Any) -> None:
    here = lab()
    with ThreadPoolExecutor(6) as pool:
        jobs = list(pool.map(lambda _: here.remote.send(here.spec), range(6)))
    assert len(set(jobs)) == 1
    assert len(here.kube.get(RAYJOBS.format(here.namespace))["items"]) == 1


def test_who_replaces_at_once_makes_one_job(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.operator.end("FAILED", "Failed", reason="AppFailed")
    here.operator.delete_pods()
    before = here.operator.job["metadata"]["uid"]
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            here.operator.collect()
            time.sleep(0.1)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = list(pool.map(lambda _: here.remote.send(here.spec), range(4)))
    finally:
        done.set()
        collector.join()
    assert len(set(jobs)) == 1
    assert jobs[0].stage == "waiting"
    assert here.operator.job["metadata"]["uid"] != before


def test_what_has_replaced_a_job_meanwhile_is_left_alone(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    old = here.operator.job
    here.kube.ask("DELETE", here.operator.path)
    here.remote.send(here.spec)
    new = here.operator.job["metadata"]
    here.backend._delete(old)
    here.backend._await_the_end(
        here.operator.name, old["metadata"]["labels"]["bfp/run"], uid=old["metadata"]["uid"], listener=print
    )
    assert here.operator.job["metadata"]["uid"] == new["uid"]
    assert "deletionTimestamp" not in here.operator.job["metadata"]


def test_a_run_that_goes_on_with_another_spec_is_refused(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    with pytest.raises(InputError, match="is going on on lab with another spec"):
        here.remote.send(with_seed(here.spec, 5))
    other = here.remote.letter(with_seed(here.spec, 5))
    assert here.backend.send(other, attempt=2, listener=print).digest == here.job.digest


# stopped -------------------------------------------------------------------------------------------------------------


def test_a_job_is_stopped_by_suspending_it_and_sent_again(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    heard: list[Job] = []

    def look() -> None:
        wait_until(lambda: here.operator.job["status"].get("jobDeploymentStatus") == "Suspended")
        heard.append(here.job)

    def suspend() -> None:
        looking = threading.Thread(target=look)
        looking.start()
        here.operator.suspend(save_s=6.0)
        looking.join()

    with looking_after(here.operator, (lambda job: job["spec"].get("suspend"), suspend)):
        assert here.remote.stop(here.run).stage == "stopped"
        assert here.operator.pods() == [], "stopped is what has no pods left"
    assert [(job.stage, job.said) for job in heard] == [("running", "its pods save and end")]
    with pytest.raises(InputError, match="nobody runs it"):
        here.remote.stop(here.run)
    with pytest.raises(Interrupted, match="stopped"):
        here.follow()
    with looking_after(here.operator, (lambda job: job["metadata"].get("deletionTimestamp"), here.operator.collect)):
        assert here.remote.send(here.spec).stage == "waiting"
    assert "suspend" not in here.operator.job["spec"]


def test_the_next_attempt_is_sent_when_the_pods_of_the_last_have_gone(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.kube.ask("DELETE", here.operator.path, {"propagationPolicy": "Background"})
    saving = threading.Thread(target=here.operator.delete_pods, kwargs={"save_s": 4.0})
    saving.start()
    began, heard = time.monotonic(), []
    job = here.remote.send(here.spec, listener=heard.append)
    assert (job.stage, here.operator.pods()) == ("waiting", []), f"sent after {time.monotonic() - began:.1f} s"
    assert [event["message"] for event in heard] == ["waiting for the pods of the earlier attempt to save and end"]
    saving.join()


def test_what_is_sent_while_a_stopped_one_saves_is_a_new_one(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    uid, heard = here.operator.job["metadata"]["uid"], []
    here.backend.stop(here.job)
    assert here.job[1:3] == ("running", "its pods save and end"), "before the operator has seen it"

    with looking_after(
        here.operator,
        (lambda job: job["spec"].get("suspend"), lambda: here.operator.suspend(save_s=2.0)),
        (lambda job: job["metadata"].get("deletionTimestamp"), here.operator.collect),
    ):
        job = here.remote.send(here.spec, listener=heard.append)
    assert (job.stage, here.operator.pods()) == ("waiting", [])
    assert here.operator.job["metadata"]["uid"] != uid
    assert heard[0]["message"] == f"job {job.id} was told to stop: waiting until it has saved"


def test_a_job_that_the_driver_refuses_is_not_tried_again(lab: Any) -> None:
    here = lab()
    here.remote.send(here.spec)
    here.operator.run()
    here.says({"event": "refused", "message": "cohorts[0].bids: nothing is there"})
    with pytest.raises(InputError, match="nothing is there"):
        here.follow()
    assert here.operator.job["spec"]["suspend"] is True
    here.operator.suspend()
    assert here.job[1:4] == ("failed", "the driver refused it: cohorts[0].bids: nothing is there", 2)


def test_a_job_that_kueue_has_not_seen_yet_is_not_stopped_and_then_run(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = lab(queue="team")
    local_queue(here, "team")
    job = here.remote.send(here.spec)
    threading.Timer(1.0, lambda: workload(here, "QuotaReserved", "False", "")).start()
    here.stopping().stop(job)
    assert here.kube.get(f"{KUEUE}/{here.namespace}/workloads/w")["spec"]["active"] is False
    here.kube.ask("DELETE", f"{KUEUE}/{here.namespace}/workloads/w")
    monkeypatch.setattr(kuberay, "WORKLOAD_WAIT_S", 0.5)
    here.stopping().stop(job)
    here.operator.collect()
    assert here.backend.jobs(here.run) == []


def test_a_job_in_a_queue_is_stopped_through_kueue_which_would_wake_it_again(lab: Any) -> None:
    here = lab(queue="team")
    local_queue(here, "team")
    here.remote.send(here.spec)
    workload(here, "QuotaReserved", "True", "")
    here.kube.patch(here.operator.path, {"spec": {"suspend": False}})
    here.operator.run()

    def evict() -> None:
        assert here.kube.get(f"{KUEUE}/{here.namespace}/workloads/w")["spec"]["active"] is False
        here.kube.patch(here.operator.path, {"spec": {"suspend": True}})
        here.operator.suspend()

    stopped = lambda job: "bfp/stopped" in job["metadata"]["annotations"]  # noqa: E731
    with looking_after(here.operator, (stopped, lambda: (time.sleep(0.5), evict()))):
        assert here.remote.stop(here.run).stage == "stopped"


# who may what --------------------------------------------------------------------------------------------------------


def test_with_the_role_alone_a_user_can_submit_watch_and_stop_and_nothing_else(lab: Any) -> None:
    stranger = lab(who="alice")
    with pytest.raises(InputError, match=r"not allowed \(403\).*User \"alice\" cannot get.*infra/kuberay/rbac.yaml"):
        stranger.backend.send(stranger.remote.letter(stranger.spec), attempt=1, listener=print)
    here = lab(who="alice")
    grant(here)
    here.remote.send(here.spec)
    here.operator.run()
    here.says({"event": "progress", "done": 1})
    assert here.job.stage == "running"
    assert list(here.backend.lines(here.job, follow=False)) == ['{"event": "progress", "done": 1}']
    with looking_after(here.operator, (lambda job: job["spec"].get("suspend"), here.operator.suspend)):
        assert here.remote.stop(here.run).stage == "stopped"
    with looking_after(here.operator, (lambda job: job["metadata"].get("deletionTimestamp"), here.operator.collect)):
        here.remote.send(here.spec)
    core, pod = f"/api/v1/namespaces/{here.namespace}", f"{here.operator.submitter}"
    forbidden = [
        ("GET", f"{core}/secrets"),
        ("GET", f"{core}/secrets/bfp-s3"),
        ("GET", f"{core}/configmaps"),
        ("POST", f"{core}/pods"),
        ("DELETE", f"{core}/pods/{pod}"),
        ("POST", f"{core}/pods/{pod}/exec"),
        ("POST", f"{core}/pods/{pod}/portforward"),
        ("POST", f"{core}/serviceaccounts/bfp/token"),
        ("POST", f"/apis/apps/v1/namespaces/{here.namespace}/deployments"),
        ("POST", f"/apis/batch/v1/namespaces/{here.namespace}/jobs"),
        ("POST", f"/apis/ray.io/v1/namespaces/{here.namespace}/rayclusters"),
        ("PATCH", f"{here.operator.path}/status"),
        ("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{here.namespace}/rolebindings"),
        ("GET", RAYJOBS.format(stranger.namespace)),
        ("GET", "/api/v1/namespaces"),
        ("GET", "/api/v1/nodes"),
    ]
    answers = {(verb, path): here.kube.ask(verb, path, {}, who="alice").status_code for verb, path in forbidden}
    assert answers == dict.fromkeys(forbidden, 403)


def grant(here: Lab) -> None:
    """The documented rights, in this namespace."""
    for document in yaml.safe_load_all((ROOT / "infra/kuberay/rbac.yaml").read_text()):
        document["metadata"]["namespace"] = here.namespace
        here.kube.apply([document])


def local_queue(here: Lab, name: str) -> None:
    document = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": name}}
    here.kube.make(f"{KUEUE}/{here.namespace}/localqueues", document)


def workload(here: Lab, kind: str, status: str, message: str) -> None:
    """What Kueue makes of the job."""
    document = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": here.operator.job["metadata"]["uid"]}},
        "spec": {"active": True},
        "status": {"conditions": [{"type": kind, "status": status, "message": message}]},
    }
    here.kube.make(f"{KUEUE}/{here.namespace}/workloads", document)


# what is wrong, told once --------------------------------------------------------------------------------------------


def told(here: Lab) -> str:
    with pytest.raises(BfpError) as caught:
        here.remote.send(here.spec)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_wrong_token_is_told(lab: Any, kubernetes: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config"
    file.write_text(kubernetes.kubeconfig.read_text().replace("tok-alice", "stale"))
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert "does not know who we are (401): the credentials of the kubeconfig have expired" in told(lab(who="alice"))
    nobody = Refused(403, "Forbidden", 'rayjobs.ray.io is forbidden: User "system:anonymous" cannot list resource')
    assert "does not know who we are (403): " in lab(who="alice").backend._in_words(nobody), "a login that has expired"
    assert "context nobody of " in told(lab(who="nobody"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert f"{tmp_path}/none" in told(lab(who="alice"))


def test_a_server_that_is_not_there_is_told_soon(
    lab: Any, kubernetes: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(kubernetes.kubeconfig.read_text().replace(f":{kubernetes.port}", ":9"))
    monkeypatch.setenv("KUBECONFIG", str(file))
    began = time.monotonic()
    assert "the API server https://127.0.0.1:9 does not answer" in told(lab())
    assert time.monotonic() - began < 30


def test_a_namespace_that_is_not_there_is_told(lab: Any) -> None:
    assert "there is no namespace nowhere: see `namespace` of [lab] in bfp.toml" in told(lab(namespace="nowhere"))


def test_a_namespace_without_quota_is_told(lab: Any) -> None:
    here = lab()
    hard = {"count/rayjobs.ray.io": "0"}
    path = f"/api/v1/namespaces/{here.namespace}/resourcequotas"
    here.kube.make(path, {"metadata": {"name": "few"}, "spec": {"hard": hard}})
    here.kube.patch(f"{path}/few/status", {"status": {"hard": hard, "used": {"count/rayjobs.ray.io": "0"}}})
    wait_until(lambda: here.kube.ask("POST", RAYJOBS.format(here.namespace), probe(), dryRun="All").status_code == 403)
    assert f"the namespace {here.namespace} has no quota left: " in told(here)


def probe() -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"generateName": "p-"}, "spec": {}}


def test_a_queue_that_is_not_there_is_told_before_anything_is_sent(lab: Any) -> None:
    here = lab(queue="nowhere")
    assert f"queue nowhere: no LocalQueue of the namespace {here.namespace} has this name" in told(here)
    assert here.backend.jobs(here.run) == []


def test_a_cluster_without_kueue_is_told(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay, "KUEUE", "/apis/other.example.org")
    assert "queue team: the cluster has no Kueue" in told(lab(queue="team"))


def test_a_cluster_without_kuberay_is_told(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay, "GROUP", "other.example.org")
    monkeypatch.setattr(kuberay_checks, "GROUP", "other.example.org")
    here = lab()
    assert "does not know of RayJobs (404): who runs the cluster installs KubeRay 1.5.1 or newer" in told(here)
    assert [check.verdict for check in here.backend.checks()][-1] == "fail"


def test_an_api_server_that_a_person_has_started_ends_with_what_started_it(kubernetes: Kube) -> None:
    command = [sys.executable, "-m", "tests.kube"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as started:
        assert started.stdout is not None
        state = Path(started.stdout.readline().partition("=")[2].strip()).parent
        pids = [int((state / name).read_text()) for name in ("api.pid", "etcd.pid")]
        assert all(is_there(pid) for pid in pids)
        started.terminate()
    wait_until(lambda: not any(is_there(pid) for pid in pids))
    assert started.returncode == 0


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# bfp doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_finds_what_is_there_and_what_is_missing(lab: Any) -> None:
    here = lab(
        who="alice",
        queue="team",
        secrets=["bfp-s3"],
        config_maps=["storage"],
        volumes=[{"claim": "brains", "path": "/data"}],
        workers={"gpu": {"gpus": 8}},
    )
    points = {check.point: check for check in here.backend.checks()}
    assert points["rights"].verdict == "fail"
    assert "may not" in points["rights"].text
    assert points["queue"].verdict == "warn"
    grant(here)
    wait_until(lambda: {check.point: check for check in here.backend.checks()}["rights"].verdict == "ok")
    points = {check.point: check for check in here.backend.checks()}
    assert {name: check.verdict for name, check in points.items()} == {
        "reachable": "ok",
        "who we are": "ok",
        "KubeRay": "ok",
        "rights": "ok",
        "service_account": "ok",
        "config_maps": "fail",
        "volumes": "fail",
        "queue": "fail",
        "secrets": "ok",
        "GPUs": "ok",
    }
    local_queue(here, "team")
    here.kube.make(f"/api/v1/namespaces/{here.namespace}/configmaps", {"metadata": {"name": "storage"}})
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claims = f"/api/v1/namespaces/{here.namespace}/persistentvolumeclaims"
    here.kube.make(claims, {"metadata": {"name": "brains"}, "spec": claim})
    assert {check.verdict for check in here.backend.checks()} == {"ok"}


def test_a_job_that_a_quota_never_lets_fit_is_refused_and_one_that_has_to_wait_is_warned_of(lab: Any) -> None:
    here = lab(who="alice", head={"cpus": 2, "memory_gb": 16}, workers={"gpu": {"cpus": 8, "gpus": 4, "count": 2}})
    grant(here)
    quotas = f"/api/v1/namespaces/{here.namespace}/resourcequotas"
    hard = {"requests.cpu": "20", "requests.nvidia.com/gpu": "8", "limits.memory": "100Gi", "pods": "2"}
    here.kube.make(quotas, {"metadata": {"name": "team"}, "spec": {"hard": hard}})
    of_others = {"hard": {"pods": "0"}, "scopes": ["BestEffort"]}  # which pods that ask for something never are
    here.kube.make(quotas, {"metadata": {"name": "others"}, "spec": of_others})
    wait_until(lambda: {check.point: check for check in here.backend.checks()}["rights"].verdict == "ok")
    (quota,) = [check for check in here.backend.checks() if check.point == "quota"]
    assert (quota.verdict, quota.text) == ("fail", "quota team: 3 of pods are needed at once, it has 2 and 2 left")
    assert "may never have so much: quota team: 3 of pods" in told(here)
    here.kube.patch(f"{quotas}/team", {"spec": {"hard": {"pods": "10"}}})
    used = {"requests.cpu": "2", "requests.nvidia.com/gpu": "4"}
    here.kube.patch(f"{quotas}/team/status", {"status": {"hard": hard, "used": used}})
    (quota,) = [check for check in here.backend.checks() if check.point == "quota"]
    assert (quota.verdict, quota.text) == (
        "warn",
        "quota team: 8 of requests.nvidia.com/gpu are needed at once, it has 8 and 4 left",
    )
    assert here.remote.send(here.spec).stage == "waiting"


def test_doctor_does_not_call_nobody_somebody(
    lab: Any, kubernetes: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(kubernetes.kubeconfig.read_text().replace("{token: tok-alice}", "{}"))
    monkeypatch.setenv("KUBECONFIG", str(file))
    reachable, who = lab(who="alice").backend.checks()
    assert (reachable.verdict, who.point, who.verdict) == ("ok", "who we are", "fail")
    assert "lets us in" not in reachable.text
    assert who.text.startswith("nobody: the credentials of the kubeconfig have expired")


def test_doctor_names_a_namespace_that_is_not_there(lab: Any) -> None:
    *_, last = lab(namespace="nowhere").backend.checks()
    assert (last.point, last.verdict) == ("namespace", "fail")
    assert last.text.startswith("nowhere: ")
    assert ("namespace", "ok") in [(check.point, check.verdict) for check in lab().backend.checks()]


def test_doctor_looks_for_the_priority_class_where_it_belongs(lab: Any) -> None:
    def looked_for(**fields: Any) -> tuple[str, str]:
        checks = {check.point: check for check in lab(priority_class="training", **fields).backend.checks()}
        return checks["priority_class"].verdict, checks["priority_class"].text

    queued: dict[str, Any] = {"queue": "team"}
    assert looked_for() == ("fail", "training: the cluster has no PriorityClass of this name")
    assert looked_for(**queued) == ("fail", "training: the cluster has no WorkloadPriorityClass of this name")
    kube = lab().kube
    kube.make("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": "training"}, "value": 3})
    assert looked_for()[0] == "ok"
    assert looked_for(**queued)[0] == "fail"
    of_kueue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass", "value": 3}
    kube.make("/apis/kueue.x-k8s.io/v1beta2/workloadpriorityclasses", {**of_kueue, "metadata": {"name": "training"}})
    assert looked_for(**queued)[0] == "ok"
    assert looked_for(who="alice")[1].startswith("training: cannot be seen from here")


def test_doctor_compares_gpus_where_nodes_can_be_seen(lab: Any, kubernetes: Kube) -> None:
    here = lab(workers={"gpu": {"gpus": 8}})
    for there, verdict in (("4", "warn"), ("8", "ok")):
        kubernetes.patch("/api/v1/nodes/node-a/status", {"status": {"allocatable": {"nvidia.com/gpu": there}}})
        assert next(check for check in here.backend.checks() if check.point == "GPUs").verdict == verdict


# the command line ----------------------------------------------------------------------------------------------------


def test_status_logs_stop_and_exit_codes_of_the_command_line(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = lab()
    (tmp_path / "bfp.toml").write_text(
        f'[lab]\ntarget = "kuberay"\nimage = "example.org/bfp:1"\ncontext = "admin"\nnamespace = "{here.namespace}"\n'
        f'shared_paths = ["{tmp_path}"]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drivers, "plan", lambda spec, **_: Plan([("units", "3")], {}))
    asked = ["submit", "job.yaml", "--on", "lab"]
    assert run([*asked, "--detach"]) == 0
    assert "small on lab: waiting" in capsys.readouterr().out
    assert run(["status", here.run, "--on", "lab"]) == 0
    assert "has not taken it up yet" in " ".join(capsys.readouterr().out.split())
    here.operator.run()
    here.says({"event": "warning", "message": "only one site"})
    assert run(["logs", here.run, "--on", "lab"]) == 0
    assert "only one site" in capsys.readouterr().out
    assert run([*asked, "--set", "seed=4"]) == 2, "another spec of the same run"
    assert "goes" not in capsys.readouterr().out
    here.operator.end("FAILED", "Failed", reason="AppFailed", message="failed with exit code 1")
    assert run(["status", here.run, "--on", "lab", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["job"]
    assert (told["stage"], told["exit_code"]) == ("failed", 1)
    assert told["said"] == "the driver failed: failed with exit code 1"
    assert run(["stop", here.run, "--on", "lab"]) == 2, "it is over"
    done = {"event": "end", "outcome": "failed", "message": "no site has labels"}
    with looking_after(
        here.operator,
        (lambda job: job["metadata"].get("deletionTimestamp"), here.operator.collect),
        (
            lambda job: not job.get("status"),
            lambda: (here.operator.run(), here.says(done)),
        ),
        (
            lambda job: job.get("status", {}).get("jobStatus") == "RUNNING",
            lambda: here.operator.end("FAILED", "Failed", reason="AppFailed", message="failed with exit code 1"),
        ),
    ):
        assert run(asked) == 1
    assert "no site has labels" in capsys.readouterr().err
    here.kube.ask("DELETE", here.operator.path)
    here.operator.delete_pods()
    assert run([*asked, "--detach"]) == 0
    here.operator.run()
    with looking_after(here.operator, (lambda job: job["spec"].get("suspend"), here.operator.suspend)):
        assert run(["stop", here.run, "--on", "lab"]) == 0
    assert run(["status", here.run, "--on", "lab"]) == 0
    assert "small on lab: stopped" in capsys.readouterr().out
    assert run(["status", here.run, "--on", "lap"]) == 2
    assert "the nearest is lab" in capsys.readouterr().err
