"""What a Kubernetes cluster says about a RayJob, in words: its stage, what it waits for, why it ended.

Objects in, a `Job` out; nothing is asked here. A RayJob tells little by itself: Kueue says why it is not admitted, the
events of the operator say what it refuses, the pods and their events say what keeps them from running.

A RayJob is suspended, or deleted, long before its pods are gone: until then the driver saves, and it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bfp.targets.cluster import Job, Stage
from bfp.targets.kuberay_manifest import QUEUE, REFUSED, SPEC_DIGEST, STOPPED

Object = Mapping[str, Any]

GRACE_OVER = "JobDeploymentStatusTransitionGracePeriodExceeded"  # one reason of two, which the message tells apart
SUBMITTER_ENDED = "submitter finished"

# https://ray-project.github.io/kuberay: JobDeploymentStatus, JobStatus, JobFailedReason. {} is the operator's message.
FAILED_BECAUSE = {
    "AppFailed": "the driver failed: {}",
    "SubmissionFailed": "the job could not be handed to Ray: {}; its log says more",
    "DeadlineExceeded": "it took longer than `deadline_h` lets it: submit the same again to go on where it stopped",
    "PreRunningDeadlineExceeded": "its Ray cluster was not there in time: {}",
    GRACE_OVER: "Ray says that it has ended, and its submitter has not: {}",
    "JobStatusCheckTimeoutExceeded": "the operator has lost sight of the head: it was taken away, or a network policy "
    "keeps the operator from port 8265 (infra/kuberay/network-policy.yaml): {}",
    "ValidationFailed": "KubeRay's operator refuses it: {}; is it older than 1.5.1?",
}
STAGES: dict[str, Stage] = {"SUCCEEDED": "done", "STOPPED": "stopped", "FAILED": "failed"}
ENDED = ("Complete", "Failed", "ValidationFailed")
UNMADE = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")  # events of a pod that is no failure yet
OVER_PHASES = ("Succeeded", "Failed")
SAVING = "its pods save and end"
REFUSED_CODE = 2  # of a driver that has started nothing

_EXIT_CODE = re.compile(r"exit code (-?[0-9]+)")


class Around(NamedTuple):
    """What belongs to a RayJob: the pods of its run, its Kueue workload, its events and those of pods that wait."""

    pods: Sequence[Object]
    workload: Object | None
    events: Sequence[Object]


ALONE = Around([], None, [])


def job_of(found: Object, around: Around = ALONE) -> Job:
    """A RayJob as an attempt at a run."""
    metadata = found["metadata"]
    stage, said, code = _state(found, around)
    digest = metadata.get("annotations", {}).get(SPEC_DIGEST, "")
    return Job(metadata["name"], stage, said, code, digest, attempt=str(metadata.get("uid", "")))


def stage_of(found: Object) -> Stage:
    """What a RayJob is at, by itself; whether its pods are gone is not looked at."""
    status = found.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if found["metadata"].get("deletionTimestamp"):
        return "stopped"
    if deployment == "Complete":
        return STAGES.get(job, "done")
    if deployment in ENDED:
        return "failed"
    if found["spec"].get("suspend") and deployment in ("Suspended", ""):
        if refusal_of(found) is not None:
            return "failed"
        if was_stopped(found):
            return "stopped"
    if deployment == "Running" and job not in ("", "PENDING"):
        return "running"
    return "waiting"


def was_stopped(found: Object) -> bool:
    """Whether somebody has asked `bfp stop`."""
    return STOPPED in found["metadata"].get("annotations", {})


def is_ending(found: Object) -> bool:
    """Whether nobody wants a RayJob to go on."""
    return bool(found["metadata"].get("deletionTimestamp")) or was_stopped(found) or refusal_of(found) is not None


def refusal_of(found: Object) -> str | None:
    """What the driver said that refused the job, where somebody has heard it."""
    said: str | None = found["metadata"].get("annotations", {}).get(REFUSED)
    return said


def is_live(pod: Object) -> bool:
    """Whether a pod has not ended yet, though it may be about to."""
    return (pod.get("status") or {}).get("phase") not in OVER_PHASES


def waits(pod: Object) -> bool:
    """Whether a pod is yet to run."""
    return (pod.get("status") or {}).get("phase", "Pending") == "Pending"


def _state(found: Object, around: Around) -> tuple[Stage, str, int | None]:
    status, stage = found.get("status") or {}, stage_of(found)
    refused = refusal_of(found)
    ended = status.get("jobDeploymentStatus") in ENDED and not found["metadata"].get("deletionTimestamp")
    saves = stage in ("stopped", "failed") and not ended and any(is_live(pod) for pod in around.pods)
    if saves or (stage == "running" and is_ending(found)):
        return "running", SAVING, None
    if stage == "failed" and refused is not None:
        return stage, f"the driver refused it: {refused}", REFUSED_CODE
    pods = _present(found, around.pods)
    message = str(status.get("message") or "")
    exit_code = _EXIT_CODE.search(message)
    if stage == "done":
        return stage, "", 0
    if stage == "failed":
        reason = str(status.get("reason") or status.get("jobDeploymentStatus") or "")
        because = FAILED_BECAUSE.get(reason, f"{reason}: {{}}")
        if reason == GRACE_OVER and SUBMITTER_ENDED in message:
            because = "its submitter has ended, and Ray does not say that the job has; was the head taken away? {}"
        killed = next(_killed(pods), "")
        said = because.format(_first_line(message) or next(_warnings(around.events), "") or "nothing is said")
        return stage, "; ".join(filter(None, [said, killed])), int(exit_code[1]) if exit_code else None
    if stage == "waiting":
        return stage, _waits_for(found, around), None
    return stage, next(_killed(pods), ""), None  # Ray goes on with the rest, and the same may end the run


def _waits_for(found: Object, around: Around) -> str:
    status = found.get("status") or {}
    deployment = status.get("jobDeploymentStatus", "")
    if was_stopped(found):
        return "it is being stopped: the driver saves what it has"
    if (refused := refusal_of(found)) is not None:
        return f"the driver refused it, and it is not tried again: {refused}"
    if deployment in ("Suspending", "Suspended", "") and found["spec"].get("suspend"):
        return _of_kueue(found, around)
    if deployment == "Retrying":
        because = _first_line(str(status.get("message") or "")) or "see its log"
        return f"it failed ({because}); a new Ray cluster takes it up"
    pods = _present(found, around.pods)
    said = (
        next(_troubles(pods), "")
        or next(_unmade(pods, around.events), "")
        or next(_of_cluster(status), "")
        or next(_warnings(around.events), "")
    )
    if said:
        return said
    if deployment == "":
        return "KubeRay's operator has not taken it up yet; is it running, and does it watch this namespace?"
    if deployment == "Running":
        return "its Ray cluster is up; the job is being handed over"
    cluster = status.get("rayClusterStatus") or {}
    wanted, ready = cluster.get("desiredWorkerReplicas"), cluster.get("readyWorkerReplicas", 0)
    return f"its Ray cluster is starting: {ready} of {wanted} workers" if wanted else "its Ray cluster is starting"


def _of_kueue(found: Object, around: Around) -> str:
    queue = found["metadata"].get("labels", {}).get(QUEUE)
    if queue is None:
        return "somebody has suspended it: it goes on when `suspend` of its RayJob is false; `bfp stop` ends it"
    if around.workload is None:
        said = next(_warnings(around.events), "")
        return said or f"the queue {queue}: Kueue has not looked at it yet; is Kueue there, and does it know RayJob?"
    conditions = {entry["type"]: entry for entry in around.workload.get("status", {}).get("conditions", [])}
    for kind, words in (("Evicted", "taken off its nodes by Kueue"), ("QuotaReserved", "no quota yet")):
        entry = conditions.get(kind)
        if entry is not None and entry["status"] == ("True" if kind == "Evicted" else "False"):
            reason = f" ({entry['reason']})" if entry.get("reason") and kind == "Evicted" else ""
            return f"the queue {queue}: {words}{reason}: {_first_line(entry.get('message', ''))}"
    for check in around.workload.get("status", {}).get("admissionChecks", []):
        if check.get("state") != "Ready":
            return f"the queue {queue}: the check {check['name']}: {check.get('message') or check.get('state')}"
    return f"the queue {queue}: it has its quota and starts"


def _of_cluster(status: Object) -> Iterator[str]:
    cluster = status.get("rayClusterStatus") or {}
    for entry in cluster.get("conditions", []):
        if entry["type"] == "ReplicaFailure" and entry["status"] == "True":
            yield _quota(f"{entry.get('reason', '')}: {entry.get('message', '')}")
    if cluster.get("reason"):
        yield _quota(str(cluster["reason"]))


def _present(found: Object, pods: Sequence[Object]) -> list[Object]:
    """The pods of a job's present Ray cluster, and of its submitter."""
    cluster = (found.get("status") or {}).get("rayClusterName", "")
    return [
        pod
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and (
            pod["metadata"]["labels"].get("ray.io/cluster", cluster) == cluster
            or "job-name" in pod["metadata"]["labels"]
        )
    ]


def _unmade(pods: Sequence[Object], events: Sequence[Object]) -> Iterator[str]:
    """What keeps a pod that a node has taken from being made there."""
    waiting = {pod["metadata"]["name"] for pod in pods if waits(pod)}
    for event in sorted(events, key=_when, reverse=True):
        name, reason = event.get("involvedObject", {}).get("name"), event.get("reason")
        if name in waiting and reason in UNMADE:
            remedy = "" if reason == "FailedCreatePodSandBox" else "; see `volumes`"
            yield f"{name} cannot start ({reason}): {_first_line(event.get('message', ''))}{remedy}"


def _troubles(pods: Sequence[Object]) -> Iterator[str]:
    """What keeps pods from running, the head's first."""
    for pod in sorted(pods, key=lambda pod: pod["metadata"].get("labels", {}).get("ray.io/node-type") != "head"):
        status, name = pod.get("status") or {}, pod["metadata"]["name"]
        yield from _killed([pod])
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            yield from _of_container(
                name, container, waiting.get("reason", ""), _first_line(waiting.get("message", ""))
            )
        for entry in status.get("conditions", []):
            if (
                entry["type"] == "PodScheduled"
                and entry["status"] == "False"
                and entry.get("reason") == "Unschedulable"
            ):
                yield f"no node takes {name}: {_first_line(entry.get('message', ''))}"


def _of_container(pod: str, container: Object, reason: str, message: str) -> Iterator[str]:
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        yield (
            f"the image of {pod} cannot be had ({reason}): {message or container.get('image', '')}; see `image` and "
            "`image_pull_secrets`"
        )
    elif reason == "CreateContainerConfigError":
        yield f"{pod} lacks what it refers to: {message}; see `secrets`, `config_maps` and the image's user"
    elif reason in ("CreateContainerError", "RunContainerError"):
        yield f"{pod} cannot be started ({reason}): {message}; is it an image of infra/image?"
    elif reason == "CrashLoopBackOff":
        last = (container.get("lastState") or {}).get("terminated") or {}
        yield (
            f"{pod} ends again and again (exit code {last.get('exitCode', 'unknown')}): "
            f"{_first_line(last.get('message', '')) or message}; is it an image of infra/image?"
        )


def _killed(pods: Sequence[Object]) -> Iterator[str]:
    """The pods that went over their memory."""
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses", []):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                if (state.get("terminated") or {}).get("reason") == "OOMKilled":
                    group = pod["metadata"].get("labels", {}).get("ray.io/group", "")
                    field = f"workers.{group}.memory_gb" if group not in ("", "headgroup") else "head.memory_gb"
                    yield f"{pod['metadata']['name']} was killed for want of memory: raise {field}"
                    break
        if (pod.get("status") or {}).get("reason") == "Evicted":
            yield f"{pod['metadata']['name']} was evicted: {_first_line(pod['status'].get('message', ''))}"


def _warnings(events: Sequence[Object]) -> Iterator[str]:
    """What was warned of, the latest first; pods speak for themselves."""
    for event in sorted(events, key=_when, reverse=True):
        if event.get("type") == "Warning" and event.get("involvedObject", {}).get("kind") != "Pod":
            yield _quota(f"{event.get('reason', '')}: {_first_line(event.get('message', ''))}")


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _quota(said: str) -> str:
    if "exceeded quota" in said:
        return f"the namespace has no quota for it: {said}"
    if "violates PodSecurity" in said:
        return f"the namespace's pod security refuses it: {said}"
    return said


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].partition(", last available logs")[0].strip()
