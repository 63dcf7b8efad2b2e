"""What a cluster says about a RayJob, in words that tell what to do."""

from __future__ import annotations

from typing import Any

import pytest

from bfp.targets.kuberay_words import Around, job_of


def job(*, status: dict[str, Any] | None = None, suspend: bool = False, **metadata: Any) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": "team"}
    named = {"name": "bfp-x-1", "uid": "u", "labels": labels, "annotations": {"bfp/spec": "d", "bfp/run": "s3://b/x"}}
    named["annotations"] |= metadata.pop("annotations", {})
    return {"metadata": {**named, **metadata}, "spec": {"suspend": suspend}, "status": status or {}}


def pod(name: str, group: str = "headgroup", **status: Any) -> dict[str, Any]:
    kind = "head" if group == "headgroup" else "worker"
    return {"metadata": {"name": name, "labels": {"ray.io/group": group, "ray.io/node-type": kind}}, "status": status}


def container(state: dict[str, Any], last: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [{"name": "ray", "image": "i:1", "state": state, "lastState": last or {}}]


STARTING = {"jobDeploymentStatus": "Initializing"}


@pytest.mark.parametrize(
    ("status", "suspend", "stage"),
    [
        ({}, False, "waiting"),
        ({}, True, "waiting"),
        ({"jobDeploymentStatus": "Initializing"}, False, "waiting"),
        ({"jobDeploymentStatus": "Running"}, False, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, False, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, False, "running"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"}, False, "running"),
        ({"jobDeploymentStatus": "Suspending", "jobStatus": "RUNNING"}, True, "waiting"),
        ({"jobDeploymentStatus": "Suspended"}, True, "waiting"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, False, "waiting"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, False, "done"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, False, "stopped"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, False, "failed"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}, False, "failed"),
        ({"jobDeploymentStatus": "ValidationFailed"}, False, "failed"),
    ],
)
def test_every_status_of_the_operator_is_a_stage(status: dict[str, Any], suspend: bool, stage: str) -> None:
    found = job_of(job(status=status, suspend=suspend))
    assert found.stage == stage
    assert (found.exit_code == 0) == (stage == "done")
    assert bool(found.said) == (stage in ("waiting", "failed"))


def test_a_job_that_was_asked_to_stop_is_stopped_when_nothing_of_it_is_left() -> None:
    asked = {"bfp/stopped": "true"}
    for deployment, stage in (("Suspending", "waiting"), ("Suspended", "stopped")):
        found = job_of(job(status={"jobDeploymentStatus": deployment}, suspend=True, annotations=asked))
        assert found.stage == stage
    assert job_of(job(status={"jobDeploymentStatus": "Suspending"}, suspend=True, annotations=asked)).said == (
        "it is being stopped: the driver saves what it has"
    )
    assert job_of(job(status=STARTING, deletionTimestamp="2026-01-01T00:00:00Z")).stage == "stopped"


def test_a_job_runs_until_its_pods_are_gone_whatever_the_operator_says() -> None:
    suspended = {"jobDeploymentStatus": "Suspended"}
    stopped = job(status=suspended, suspend=True, annotations={"bfp/stopped": "true"})
    refused = job(status=suspended, suspend=True, annotations={"bfp/refused": "no site"})
    deleted = job(status=STARTING, deletionTimestamp="2026-01-01T00:00:00Z")
    saving = pod("h", phase="Running")
    saving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for found, last in ((stopped, "stopped"), (refused, "failed"), (deleted, "stopped")):
        going = job_of(found, Around([saving], None, []))
        assert (going.stage, going.said) == ("running", "its pods save and end")
        assert job_of(found, Around([pod("s", phase="Succeeded")], None, [])).stage == last
    complete = job(status={"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"})
    assert job_of(complete, Around([saving], None, [])).stage == "stopped", "`keep_min` keeps its cluster"


def test_a_job_whose_workers_are_killed_for_memory_says_so_while_it_runs() -> None:
    running = job(status={"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "c"})
    killed = container({"running": {}}, {"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    killed[0]["restartCount"] = 3
    well, ill = pod("h", containerStatuses=container({"running": {}})), pod("w", "gpu", containerStatuses=killed)
    found = job_of(running, Around([well, ill], None, []))
    assert (found.stage, found.said) == (
        "running",
        "w was killed for want of memory: raise workers.gpu.memory_gb",
    )
    assert job_of(running, Around([well], None, [])).said == ""
    ill["metadata"]["labels"]["ray.io/cluster"] = "the-attempt-before"
    assert job_of(running, Around([well, ill], None, [])).said == ""


def test_a_refused_job_says_why() -> None:
    asked = {"bfp/refused": "no site has labels"}
    ending = job_of(job(status={"jobDeploymentStatus": "Suspending"}, suspend=True, annotations=asked))
    assert (ending.stage, ending.said) == (
        "waiting",
        "the driver refused it, and it is not tried again: no site has labels",
    )
    over = job_of(job(status={"jobDeploymentStatus": "Suspended"}, suspend=True, annotations=asked))
    assert over[1:4] == ("failed", "the driver refused it: no site has labels", 2)


def test_one_reason_of_the_operator_s_has_two_meanings() -> None:
    status = {"jobDeploymentStatus": "Failed", "reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}
    ended = "The RayJob submitter finished at 2026-01-01 but the ray job did not reach terminal state within 30s"
    assert job_of(job(status={**status, "message": ended})).said.startswith("its submitter has ended, and Ray does not")
    late = "JobDeploymentStatus does not transition to Complete or Failed within the grace period"
    assert job_of(job(status={**status, "message": late})).said.startswith("Ray says that it has ended, and its")


def test_a_job_that_somebody_has_suspended_by_hand_is_told() -> None:
    found = job(status={"jobDeploymentStatus": "Suspended"}, suspend=True, labels={})
    assert job_of(found).said.startswith("somebody has suspended it: it goes on when `suspend` of its RayJob is false")


def test_what_keeps_a_pod_from_being_made_on_its_node_is_told_while_it_waits() -> None:
    event = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'claim "brains" not found\nmore',
        "involvedObject": {"kind": "Pod", "name": "w"},
    }
    other = {**event, "involvedObject": {"kind": "Pod", "name": "somebody-else"}}
    said = job_of(job(status=STARTING), Around([pod("w", "cpu", phase="Pending")], None, [other, event])).said
    assert said == 'w cannot start (FailedMount): claim "brains" not found; see `volumes`'
    sandbox = {**event, "reason": "FailedCreatePodSandBox", "message": "no address left"}
    said = job_of(job(status=STARTING), Around([pod("w", "cpu", phase="Pending")], None, [sandbox])).said
    assert said == "w cannot start (FailedCreatePodSandBox): no address left"
    assert job_of(job(status=STARTING), Around([pod("w", "cpu", phase="Running")], None, [event])).said == (
        "its Ray cluster is starting"
    )


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        (
            [pod("h", containerStatuses=container({"waiting": {"reason": "ErrImagePull", "message": "404\nmore"}}))],
            "the image of h cannot be had (ErrImagePull): 404; see `image` and `image_pull_secrets`",
        ),
        (
            [pod("h", initContainerStatuses=container({"waiting": {"reason": "ImagePullBackOff"}}))],
            "the image of h cannot be had (ImagePullBackOff): i:1; see `image` and `image_pull_secrets`",
        ),
        (
            [
                pod(
                    "h",
                    containerStatuses=container(
                        {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                        {"terminated": {"exitCode": 127, "message": "ray: not found"}},
                    ),
                )
            ],
            "h ends again and again (exit code 127): ray: not found; is it an image of infra/image?",
        ),
        (
            [pod("w", "gpu", containerStatuses=container({"terminated": {"reason": "OOMKilled", "exitCode": 137}}))],
            "w was killed for want of memory: raise workers.gpu.memory_gb",
        ),
        (
            [
                pod(
                    "h",
                    containerStatuses=container(
                        {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
                    ),
                )
            ],
            'h lacks what it refers to: secret "s3" not found; see `secrets`, `config_maps` and the image\'s user',
        ),
        (
            [
                pod(
                    "w",
                    "gpu",
                    conditions=[
                        {
                            "type": "PodScheduled",
                            "status": "False",
                            "reason": "Unschedulable",
                            "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu.",
                        }
                    ],
                ),
                pod("h", containerStatuses=container({"running": {}})),
            ],
            "no node takes w: 0/3 nodes: 3 Insufficient nvidia.com/gpu.",
        ),
        (
            [pod("w", "cpu", reason="Evicted", message="Usage of EmptyDir volume exceeds the limit")],
            "w was evicted: Usage of EmptyDir volume exceeds the limit",
        ),
    ],
)
def test_what_keeps_a_pod_from_running_is_told_with_the_remedy(pods: list[Any], said: str) -> None:
    assert job_of(job(status=STARTING), Around(pods, None, [])).said == said


def test_the_head_goes_before_the_workers() -> None:
    waiting = container({"waiting": {"reason": "ImagePullBackOff"}})
    pods = [pod("w", "cpu", containerStatuses=waiting), pod("h", containerStatuses=waiting)]
    assert job_of(job(status=STARTING), Around(pods, None, [])).said.startswith("the image of h ")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (
            [{"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for nvidia.com/gpu"}],
            "the queue team: no quota yet: insufficient unused quota for nvidia.com/gpu",
        ),
        (
            [{"type": "Evicted", "status": "True", "reason": "Preempted", "message": "to accommodate a workload"}],
            "the queue team: taken off its nodes by Kueue (Preempted): to accommodate a workload",
        ),
        ([{"type": "QuotaReserved", "status": "True"}], "the queue team: it has its quota and starts"),
        ([], "the queue team: it has its quota and starts"),
    ],
)
def test_what_kueue_says_is_told(conditions: list[Any], said: str) -> None:
    assert job_of(job(suspend=True), Around([], {"status": {"conditions": conditions}}, [])).said == said


def test_a_queue_that_nobody_serves_is_told() -> None:
    assert "the queue team: Kueue has not looked at it yet" in job_of(job(suspend=True)).said


def test_the_latest_warning_is_told_where_pods_are_silent() -> None:
    events = [
        {"type": "Warning", "reason": "Old", "message": "a", "lastTimestamp": "2026-01-01T00:00:00Z"},
        {"type": "Normal", "reason": "Created", "message": "b", "lastTimestamp": "2026-01-03T00:00:00Z"},
        {
            "type": "Warning",
            "reason": "FailedToCreateHeadPod",
            "message": 'pods "h" is forbidden: violates PodSecurity "restricted:latest"',
            "lastTimestamp": "2026-01-02T00:00:00Z",
        },
    ]
    assert job_of(job(status=STARTING), Around([], None, events)).said.startswith(
        "the namespace's pod security refuses it: FailedToCreateHeadPod"
    )


def test_a_failure_of_the_cluster_is_told() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod", "message": "no"}
    cluster = {"conditions": [failure]}
    assert job_of(job(status={**STARTING, "rayClusterStatus": cluster})).said == "FailedCreateWorkerPod: no"
    ready = {"desiredWorkerReplicas": 3, "readyWorkerReplicas": 1}
    assert (
        job_of(job(status={**STARTING, "rayClusterStatus": ready})).said
        == "its Ray cluster is starting: 1 of 3 workers"
    )


def test_a_worker_without_memory_is_named_when_the_job_fails() -> None:
    pods = [pod("w", "gpu", containerStatuses=container({"terminated": {"reason": "OOMKilled"}}))]
    status = {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit code 1, last available logs: x"}
    found = job_of(job(status=status), Around(pods, None, []))
    assert found.said == "the driver failed: exit code 1; w was killed for want of memory: raise workers.gpu.memory_gb"
    assert found.exit_code == 1
