"""Kubernetes with the KubeRay operator: a RayJob for each run, by the API server alone.

A run has one RayJob, named for its folder: of two who send the same at once, one makes it and the other finds it. The
operator makes the Ray cluster, hands the job over and takes a failed one up again; Kueue, where there is a queue,
decides when. An attempt that is over is replaced by the next one.

A job is stopped by suspending it: the operator deletes its pods, which let the driver save before they go (`leaving`),
and the RayJob stays to tell of it. Of a job in a queue Kueue is asked instead, which would wake it again.

Nothing here reaches into the cluster's network, and no secret is read: rights that infra/kuberay/rbac.yaml lists are
all that is needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.specs.clusters import KubeRayTarget
from bfp.targets.cluster import OVER, Check, Job
from bfp.targets.kube_api import PATIENCE_S, Broken, KubeApi, Refused
from bfp.targets.kuberay_manifest import (
    GROUP,
    KIND,
    PLURAL,
    RUN,
    STOPPED,
    SUBMITTER,
    VERSION,
    as_yaml,
    first_nodes,
    job_name,
    lent,
    ray_job,
)
from bfp.targets.kuberay_words import ALONE, Around, Object, job_of, stage_of
from bfp.targets.letter import Letter, run_digest

KUEUE = "/apis/kueue.x-k8s.io"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
LOOK_S = 5.0  # how often what surrounds a job is looked at while it waits
GONE_WAIT_S = 900.0  # the pods of what is replaced let their driver save
POLL_S = 1.0
TRIES = 20  # at sending, against others who send, stop and delete the same

# What a user needs (infra/kuberay/rbac.yaml), as (group, resource, verb), and what for.
RIGHTS = (
    ("ray.io", "rayjobs", "create", "submit"),
    ("ray.io", "rayjobs", "get", "submit and status"),
    ("ray.io", "rayjobs", "watch", "submit and logs"),
    ("ray.io", "rayjobs", "patch", "stop"),
    ("ray.io", "rayjobs", "delete", "submit again"),
    ("", "pods", "list", "status"),
    ("", "pods/log", "get", "logs"),
    ("", "events", "list", "status"),
)
QUEUE_RIGHTS = (
    ("kueue.x-k8s.io", "localqueues", "get", "submit"),
    ("kueue.x-k8s.io", "workloads", "list", "status"),
    ("kueue.x-k8s.io", "workloads", "patch", "stop"),
)


class KubeRay:
    """The RayJobs of one namespace."""

    def __init__(self, name: str, settings: KubeRayTarget, *, file: str) -> None:
        self._name = name
        self._settings = settings
        self._file = file
        self._api = KubeApi(settings.context, where=f"--on {name}")
        self._kueue_api: str | None = None

    def capacity(self) -> Capacity:
        return lent(self._settings, self._name)

    def nodes(self) -> int:
        return first_nodes(self._settings)

    def lent(self) -> Capacity:
        return self.capacity()

    def manifest(self, letter: Letter) -> str:
        return as_yaml(ray_job(self._settings, letter))

    def jobs(self, run: str) -> list[Job]:
        with self._telling():
            found = self._api.find(self._path(job_name(run)))
            return [] if found is None else [job_of(found, self._around(found))]

    def send(self, letter: Letter, *, attempt: int) -> Job:
        """attempt says nothing here: what is over is replaced."""
        wanted = ray_job(self._settings, letter)
        with self._telling():
            self._check_queue()
            for _ in range(TRIES):
                try:
                    return job_of(self._api.create(self._path(), wanted))
                except Refused as error:
                    if error.reason != "AlreadyExists":
                        raise
                there = self._api.find(self._path(wanted["metadata"]["name"]))
                if there is None:
                    continue
                if stage_of(there) not in OVER:
                    return job_of(there)
                self._replace(there)
        raise InputError(f"--on {self._name}: {wanted['metadata']['name']}: others send and delete it all the time")

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        """A job that is taken up again has several pods that tell of it, one after the other."""
        heard: dict[str, _Heard] = {}
        with self._telling():
            first = found = self._api.find(self._path(job.id))
            told = ""
            while found is not None and first is not None and _uid(found) == _uid(first):
                over = stage_of(found) in OVER
                teller = self._teller(found)
                if teller is not None:
                    one = heard.setdefault(teller["metadata"]["name"], _Heard(self._api, teller))
                    yield from one.rest(follow=follow)
                if not follow or over:
                    return
                now = job_of(found, self._around(found))
                if now.said not in ("", told):
                    told = now.said
                    yield json.dumps({"event": "note", "message": told}, ensure_ascii=False)
                version = found["metadata"]["resourceVersion"]
                self._api.await_change(self._path(), name=job.id, version=version, wait_s=LOOK_S)
                found = self._api.find(self._path(job.id))

    def stop(self, job: Job) -> None:
        with self._telling():
            found = self._api.find(self._path(job.id))
            if found is None:
                return
            asked: dict[str, Any] = {"metadata": {"annotations": {STOPPED: "true"}}}
            workload = self._workload(found)
            if workload is None:
                asked["spec"] = {"suspend": True}
            self._api.patch(self._path(job.id), asked)
            if workload is not None:
                self._api.patch(_path_of(workload, "workloads"), {"spec": {"active": False}})

    # checks ----------------------------------------------------------------------------------------------------------

    def checks(self) -> Iterator[Check]:
        with self._telling():
            version = self._api.get("/version")
            yield Check("reachable", "ok", f"{self._api.server} lets us in: Kubernetes {version['gitVersion']}")
            yield self._who()
            operator = self._operator()
            yield operator
            if operator.verdict == "fail":
                return
            rights = (*RIGHTS, *(QUEUE_RIGHTS if self._settings.queue else ()))
            lacking = [f"{verb} {resource} ({use})" for group, resource, verb, use in rights
                       if not self._may(verb, group, resource)]  # fmt: skip
            where = f"the namespace {self._settings.namespace}"
            if lacking:
                remedy = f"is {where} yours? who runs the cluster grants infra/kuberay/rbac.yaml there"
                yield Check("rights", "fail", f"may not, in {where}: {', '.join(lacking)}", remedy)
            else:
                yield Check("rights", "ok", f"all that submit, status, logs and stop need, in {where}")
            yield from self._references()
            yield from self._gpus()

    def _who(self) -> Check:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            found = self._api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
        except Refused:  # since Kubernetes 1.28
            return Check("who we are", "ok", "the API server takes our credentials; it does not say for whom")
        return Check("who we are", "ok", str(found["status"]["userInfo"]["username"]))

    def _operator(self) -> Check:
        install = "who runs the cluster installs KubeRay 1.5.1 or newer (infra/guides/kubernetes.md)"
        try:
            served = self._api.get(f"/apis/{GROUP}/{VERSION}")
        except Refused as error:
            if error.status != 404:
                raise
            return Check("KubeRay", "fail", "the cluster does not know of RayJobs", install)
        if PLURAL not in [found["name"] for found in served["resources"]]:
            return Check("KubeRay", "fail", f"{GROUP}/{VERSION} has no RayJobs", install)
        if not self._knows_tokens():
            return Check("KubeRay", "fail", "its RayJob knows no authOptions: it is older than 1.5.1", install)
        return Check("KubeRay", "ok", f"{KIND} of {GROUP}/{VERSION}, with tokens (1.5.1 or newer)")

    def _knows_tokens(self) -> bool:
        for path in (f"/openapi/v3/apis/{GROUP}/{VERSION}", "/openapi/v2"):
            try:
                return "authOptions" in json.dumps(self._api.get(path))
            except Refused:
                continue
        return True  # it does not publish what it knows

    def _references(self) -> Iterator[Check]:
        """Whether what the profile names is there. Of a secret that is asked by name only where we may read it, which
        nobody needs; it is never read."""
        settings, core = self._settings, "/api/v1"
        named = [
            ("service_account", core, "serviceaccounts", [settings.service_account]),
            ("config_maps", core, "configmaps", settings.config_maps),
            ("volumes", core, "persistentvolumeclaims", [volume.claim for volume in settings.volumes]),
        ]
        if settings.queue:
            named.append(("queue", self._kueue() or "", "localqueues", [settings.queue]))
        for field, api, resource, names in named:
            for name in names:
                yield self._reference(field, api, resource, name)
        for field, names in (("secrets", settings.secrets), ("image_pull_secrets", settings.image_pull_secrets)):
            for name in names:
                unseen = "cannot be seen from here, as it should be"
                yield Check(field, "ok", f"{name}: {unseen}; a pod that lacks it says so in `bfp status`")

    def _reference(self, field: str, api: str, resource: str, name: str) -> Check:
        namespace = self._settings.namespace
        if not api:
            return Check(field, "fail", f"{name}: Kueue is not there", "install Kueue, or leave `queue` out")
        try:
            found = self._api.find(f"{api}/namespaces/{namespace}/{resource}/{name}")
        except Refused as error:
            if error.status != 403:
                raise
            return Check(field, "warn", f"{name}: cannot be seen: {error.message}")
        if found is None:
            return Check(field, "fail", f"{name}: not in the namespace {namespace}", f"make it there, or set `{field}`")
        return Check(field, "ok", name)

    def _gpus(self) -> Iterator[Check]:
        wanted = {group.gpu_resource for group in self._settings.workers.values() if group.gpus}
        if not wanted:
            return
        try:
            nodes = self._api.items("/api/v1/nodes")
        except Refused:
            yield Check("GPUs", "ok", "the nodes cannot be seen from here; `bfp status` says if none takes a pod")
            return
        for resource in sorted(wanted):
            most = max((int(node["status"].get("allocatable", {}).get(resource, 0)) for node in nodes), default=0)
            needs = max(group.gpus for group in self._settings.workers.values() if group.gpu_resource == resource)
            if most >= needs:
                yield Check("GPUs", "ok", f"nodes have up to {most} of {resource}, a pod needs {needs}")
            else:
                remedy = "lower `gpus` and raise `count`; a cluster that grows may have such a node later"
                yield Check("GPUs", "warn", f"nodes have up to {most} of {resource}, a pod needs {needs}", remedy)

    def _may(self, verb: str, group: str, resource: str) -> bool:
        kind, _, inner = resource.partition("/")
        asked = {"namespace": self._settings.namespace, "verb": verb, "group": group, "resource": kind}
        if inner:
            asked["subresource"] = inner
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        found = self._api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(found["status"]["allowed"])

    # inside ----------------------------------------------------------------------------------------------------------

    def _path(self, name: str = "") -> str:
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self._settings.namespace}/{PLURAL}"
        return f"{path}/{name}" if name else path

    def _replace(self, there: Object) -> None:
        """Delete what is over, and wait until nothing of it is left: its pods' names would be taken."""
        path = self._path(there["metadata"]["name"])
        try:
            self._api.delete(path, uid=_uid(there))
        except Refused as error:
            if error.status not in (404, 409):  # somebody else has, and may have made another
                raise
        until = time.monotonic() + GONE_WAIT_S
        while (now := self._api.find(path)) is not None and _uid(now) == _uid(there):
            if time.monotonic() > until:
                raise InputError(
                    f"--on {self._name}: {there['metadata']['name']}: what is left of the earlier attempt does not go "
                    f"away; see `kubectl describe rayjob -n {self._settings.namespace} {there['metadata']['name']}`"
                )
            time.sleep(POLL_S)

    def _around(self, found: Object) -> Around:
        """What surrounds a job, where it is needed to say what it is at."""
        stage = stage_of(found)
        if stage not in ("waiting", "failed"):
            return ALONE
        cluster = (found.get("status") or {}).get("rayClusterName", "")
        names = [found["metadata"]["name"], *([cluster] if cluster else [])]
        events = [event for name in names for event in self._listed("events", f"involvedObject.name={name}")]
        return Around(self._pods(found), self._workload(found) if stage == "waiting" else None, events)

    def _pods(self, found: Object) -> list[Object]:
        """The pods of a job's present cluster, and of its submitter."""
        run = run_digest(found["metadata"]["annotations"][RUN])
        cluster = (found.get("status") or {}).get("rayClusterName", "")
        pods = self._listed("pods", "", f"{RUN}={run}")
        return [
            pod
            for pod in pods
            if not pod["metadata"].get("deletionTimestamp")
            and (
                pod["metadata"]["labels"].get("ray.io/cluster", cluster) == cluster
                or "job-name" in pod["metadata"]["labels"]
            )
        ]

    def _teller(self, found: Object) -> Object | None:
        """The pod whose log is that of the driver: the latest submitter, or the head with the submitter beside it."""
        if self._settings.mode == "K8sJobMode":
            pods = self._listed("pods", "", f"job-name={found['metadata']['name']}")
        else:
            cluster = (found.get("status") or {}).get("rayClusterName", "")
            pods = self._listed("pods", "", f"ray.io/cluster={cluster},ray.io/node-type=head") if cluster else []
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def _listed(self, resource: str, fields: str = "", labels: str = "") -> list[dict[str, Any]]:
        query = {"fieldSelector": fields, "labelSelector": labels}
        path = f"/api/v1/namespaces/{self._settings.namespace}/{resource}"
        return self._api.items(path, {name: value for name, value in query.items() if value})

    def _workload(self, found: Object) -> dict[str, Any] | None:
        """What Kueue has made of a job; None where it has not, or is not there."""
        if not self._settings.queue or (kueue := self._kueue()) is None:
            return None
        path = f"{kueue}/namespaces/{self._settings.namespace}/workloads"
        return next(iter(self._api.items(path, {"labelSelector": f"kueue.x-k8s.io/job-uid={_uid(found)}"})), None)

    def _kueue(self) -> str | None:
        """The API of Kueue in the newest version that both sides know; None where there is no Kueue."""
        for version in KUEUE_VERSIONS:
            if self._kueue_api is not None:
                break
            try:
                self._api.get(f"{KUEUE}/{version}")
                self._kueue_api = f"{KUEUE}/{version}"
            except Refused as error:
                if error.status not in (403, 404):
                    raise
        return self._kueue_api

    def _check_queue(self) -> None:
        """Raise InputError where a job would wait for ever for a queue that is not there."""
        queue, namespace = self._settings.queue, self._settings.namespace
        if queue is None:
            return
        kueue = self._kueue()
        if kueue is None:
            raise InputError(
                f"--on {self._name}: queue {queue}: the cluster has no Kueue; who runs it installs Kueue "
                f"(infra/guides/kubernetes.md), or leave `queue` out of [{self._name}] in {self._file}"
            )
        try:
            found = self._api.find(f"{kueue}/namespaces/{namespace}/localqueues/{queue}")
        except Refused as error:
            if error.status != 403:
                raise
            return
        if found is None:
            raise InputError(
                f"--on {self._name}: queue {queue}: no LocalQueue of the namespace {namespace} has this name; "
                f"`kubectl get localqueues -n {namespace}` lists them, infra/kuberay/kueue.yaml makes one"
            )

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the API server's refusal means, in plain words."""
        try:
            yield
        except Refused as error:
            raise InputError(f"--on {self._name}: {self._in_words(error)}") from error

    def _in_words(self, error: Refused) -> str:
        namespace, table = self._settings.namespace, f"[{self._name}] in {self._file}"
        if error.status == 401:
            return (
                f"{self._api.server} does not know who we are (401): the credentials of the kubeconfig have expired or "
                "are another cluster's; log in again (`kubectl get rayjobs` says the same)"
            )
        if "exceeded quota" in error.message:
            return f"the namespace {namespace} has no quota left: {error.message}; stop a job, or ask for more"
        if error.status == 403:
            return (
                f"not allowed (403): {error.message}; is the namespace {namespace} yours (`namespace` of {table})? who "
                "runs the cluster grants infra/kuberay/rbac.yaml there"
            )
        if error.no_api:
            return (
                f"{self._api.server} does not know of RayJobs (404): who runs the cluster installs KubeRay 1.5.1 or "
                "newer (infra/guides/kubernetes.md)"
            )
        if error.status == 404 and error.message.startswith("namespaces "):
            return f"there is no namespace {namespace}: see `namespace` of {table}, or `kubectl create ns {namespace}`"
        return f"the API server refuses it ({error.status} {error.reason}): {error.message}"


class _Heard:
    """The log of one pod, of which every line is heard once."""

    def __init__(self, api: KubeApi, pod: Object) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self._time = ""
        self._at_that_time = 0

    def rest(self, *, follow: bool) -> Iterator[str]:
        """What has not been heard yet; with `follow`, to the end of the container if it has begun."""
        refused = 0
        while True:
            running = self._is_running()
            if running is None:
                return
            try:
                yield from self._read(follow=follow)
                refused = 0
            except Broken:
                time.sleep(POLL_S)
                continue
            except Refused as error:
                refused += 1
                if error.status in (400, 404):
                    return  # the pod is gone, or its container has not begun
                if refused * POLL_S > PATIENCE_S or (error.status == 403 and not self._time):
                    raise
                time.sleep(POLL_S)
                continue
            if not (follow and running):
                return
            # The end of the stream may be that of a connection: what the pod says decides.

    def _read(self, *, follow: bool) -> Iterator[str]:
        """From the second of the last line on, which is as exact as may be asked for; what is known is passed over."""
        query = {"container": SUBMITTER, "follow": str(follow).lower()}
        if self._time:
            query["sinceTime"] = f"{self._time.partition('.')[0].rstrip('Z')}Z"
        last, known, seen = self._time, self._at_that_time, 0
        for line in self._api.log(f"{self._path}/log", query):
            if line.time < last:
                continue
            if line.time == last:
                seen += 1
                if seen <= known:
                    continue
            self._at_that_time = self._at_that_time + 1 if line.time == self._time else 1
            self._time = line.time
            yield line.text

    def _is_running(self) -> bool | None:
        """Whether the container goes on; None where it has not begun or the pod is gone."""
        pod = self._api.find(self._path)
        for container in ((pod or {}).get("status") or {}).get("containerStatuses", []):
            if container["name"] == SUBMITTER:
                state = container.get("state") or {}
                return None if "waiting" in state else "running" in state
        return None


def _uid(found: Object) -> str:
    return str(found["metadata"]["uid"])


def _path_of(found: Object, plural: str) -> str:
    return (
        f"/apis/{found['apiVersion']}/namespaces/{found['metadata']['namespace']}/{plural}/{found['metadata']['name']}"
    )
