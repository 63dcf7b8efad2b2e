"""Kubernetes with the KubeRay operator: a RayJob for each run, by the API server alone.

A run has one RayJob, named for its folder: of two who send the same at once, one makes it and the other finds it. The
operator makes the Ray cluster, hands the job over and takes a failed one up again; Kueue, where there is a queue,
decides when. An attempt that is over is replaced by the next one.

A job is stopped by suspending it: the operator deletes its Ray cluster, whose pods let the driver save before they go
(`leaving`), and the RayJob stays to tell of it. The operator says so long before the pods are gone: a job is stopped,
and another attempt is sent, when none of them is left. Of a job in a queue Kueue is asked instead, which would wake it
again. A job whose driver refuses it is suspended too, by who follows it: the operator would try it again and again.

`kuberay_checks` is what `bfp doctor` looks at, `kuberay_log` hears the driver.

Nothing here reaches into the cluster's network, and no secret is read: rights that infra/kuberay/rbac.yaml lists are
all that is needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.runs import Listener
from bfp.specs.kuberay import KubeRayTarget
from bfp.targets.cluster import OVER, Check, Job
from bfp.targets.kube_api import KubeApi, Refused
from bfp.targets.kuberay_checks import ANONYMOUS, checks, lacks
from bfp.targets.kuberay_log import DriverLog, refusal
from bfp.targets.kuberay_manifest import (
    GROUP,
    PLURAL,
    QUEUE,
    REFUSED,
    RUN,
    STOPPED,
    VERSION,
    as_yaml,
    first_nodes,
    job_name,
    lent,
    ray_job,
)
from bfp.targets.kuberay_words import ALONE, Around, Object, is_ending, is_live, job_of, stage_of, waits
from bfp.targets.letter import Letter

KUEUE = "/apis/kueue.x-k8s.io"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
LOOK_S = 5.0  # how often what surrounds a job is looked at while it waits
GONE_WAIT_S = 900.0  # the pods of what is replaced let their driver save
WORKLOAD_WAIT_S = 30.0  # Kueue makes one of a job that it has not seen yet
POLL_S = 1.0
REFUSAL_LENGTH = 1000
TRIES = 20  # at sending, against others who send, stop and delete the same


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

    lent = capacity  # a job gets what its RayJob says

    def nodes(self) -> int:
        return first_nodes(self._settings)

    def manifest(self, letter: Letter) -> str:
        return as_yaml(ray_job(self._settings, letter))

    def jobs(self, run: str) -> list[Job]:
        with self._telling():
            found = self._api.find(self._path(job_name(run)))
            return [] if found is None else [job_of(found, self._around(found))]

    def send(self, letter: Letter, *, attempt: int, listener: Listener) -> Job:
        """attempt says nothing here: what is over is replaced."""
        wanted = ray_job(self._settings, letter)
        name, run = wanted["metadata"]["name"], wanted["metadata"]["labels"][RUN]
        with self._telling():
            self._check_queue()
            self._check_quota()
            for _ in range(TRIES):
                there = self._api.find(self._path(name))
                if there is not None and stage_of(there) not in OVER:
                    return job_of(there)
                if there is not None:
                    self._delete(there)
                self._await_the_end(name, run, uid=None if there is None else _uid(there), listener=listener)
                try:
                    return job_of(self._api.create(self._path(), wanted))
                except Refused as error:
                    if error.reason != "AlreadyExists":
                        raise
        raise InputError(f"--on {self._name}: {name}: others send and delete it all the time")

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        """A job that is taken up again has several pods that tell of it, one after the other."""
        log = DriverLog(self._api)
        with self._telling():
            first = found = self._api.find(self._path(job.id))
            told = ""
            while found is not None and first is not None and _uid(found) == _uid(first):
                over = job_of(found, self._around(found)).stage in OVER
                teller = self._teller(found)
                if teller is not None:
                    for text in log.rest(teller, cluster=_cluster(found), follow=follow):
                        if follow and not over and (said := refusal(text)) is not None:
                            with suppress(Refused):  # whoever may only read hears it nevertheless
                                self._suspend(found, {REFUSED: said[:REFUSAL_LENGTH]})
                        yield text
                if not follow or over:
                    return
                now = job_of(found, self._around(found))
                if now.said not in ("", told):
                    told = now.said
                    yield json.dumps({"event": "note", "message": told}, ensure_ascii=False)
                version = found["metadata"]["resourceVersion"]
                self._api.await_change(self._path(), name=job.id, version=version, wait_s=LOOK_S)
                found = self._api.find(self._path(job.id))

    def ends(self, job: Job) -> bool:
        with self._telling():
            found = self._api.find(self._path(job.id))
            return found is not None and _uid(found) == job.attempt and is_ending(found)

    def stop(self, job: Job) -> None:
        with self._telling():
            found = self._api.find(self._path(job.id))
            if found is not None and _uid(found) == job.attempt:
                self._suspend(found, {STOPPED: "true"})

    def checks(self) -> Iterator[Check]:
        with self._telling():
            yield from checks(self._api, self._settings, kueue=self._kueue)

    # inside ----------------------------------------------------------------------------------------------------------

    def _path(self, name: str = "") -> str:
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self._settings.namespace}/{PLURAL}"
        return f"{path}/{name}" if name else path

    def _delete(self, there: Object) -> None:
        with _unless(404, 409):  # somebody else has, and may have made another
            self._api.delete(self._path(there["metadata"]["name"]), uid=_uid(there))

    def _await_the_end(self, name: str, run: str, *, uid: str | None, listener: Listener) -> None:
        """Return when nothing of a run's earlier attempts is left, or somebody else has made another RayJob.

        uid: of the RayJob that was deleted. Its pods, and those of a RayJob that is gone already, still save what the
        next attempt goes on from; besides, their names would be taken.
        """
        until, told = time.monotonic() + GONE_WAIT_S, False
        while True:
            now = self._api.find(self._path(name))
            if now is not None and _uid(now) != uid:
                return
            if now is None and not any(is_live(pod) for pod in self._pods(run)):
                return
            if not told:
                listener({"event": "note", "message": "waiting for the pods of the earlier attempt to save and end"})
                told = True
            if time.monotonic() > until:
                namespace = self._settings.namespace
                raise InputError(
                    f"--on {self._name}: {name}: what is left of the earlier attempt does not go away; see `kubectl "
                    f"describe rayjob -n {namespace} {name}` and `kubectl get pods -n {namespace} -l {RUN}={run}`"
                )
            time.sleep(POLL_S)

    def _suspend(self, found: Object, annotations: dict[str, str]) -> None:
        """Have the operator delete the Ray cluster of a job; annotations say why.

        A job in a queue is Kueue's to suspend, by its workload. One that has none yet will get one, and be run: it is
        waited for, and where it does not come, the RayJob is deleted.
        """
        path, asked = self._path(found["metadata"]["name"]), {"metadata": {"annotations": annotations}}
        if QUEUE not in found["metadata"].get("labels", {}) or self._kueue() is None:
            self._api.patch(path, {**asked, "spec": {"suspend": True}})
            return
        until, begun = time.monotonic() + WORKLOAD_WAIT_S, not found["spec"].get("suspend")
        while (workload := self._workload(found)) is None and not begun and time.monotonic() < until:
            time.sleep(POLL_S)
        if workload is not None:
            self._api.patch(_path_of(workload, "workloads"), {"spec": {"active": False}})
            self._api.patch(path, asked)
        elif begun:  # and Kueue has lost sight of it
            self._api.patch(path, {**asked, "spec": {"suspend": True}})
        else:
            self._delete(found)

    def _around(self, found: Object) -> Around:
        """What surrounds a job, where it is needed to say what it is at."""
        stage = stage_of(found)
        if stage == "done":
            return ALONE
        pods = self._pods(found["metadata"]["labels"][RUN])
        if stage in ("running", "stopped"):
            return Around(pods, None, [])
        cluster = _cluster(found)
        names = [found["metadata"]["name"], *([cluster] if cluster else [])]
        events = [event for name in names for event in self._listed("events", f"involvedObject.name={name}")]
        if stage == "waiting" and any(waits(pod) for pod in pods):
            events += self._listed("events", "involvedObject.kind=Pod,type=Warning")
        return Around(pods, self._workload(found) if stage == "waiting" else None, events)

    def _pods(self, run: str) -> list[Object]:
        """Every pod of a run, those that end and those of earlier attempts included. run: its digest."""
        return [*self._listed("pods", "", f"{RUN}={run}")]

    def _teller(self, found: Object) -> Object | None:
        """The pod whose log is that of the driver: the latest submitter, or the head with the submitter beside it."""
        if self._settings.mode == "K8sJobMode":
            pods = self._listed("pods", "", f"job-name={found['metadata']['name']}")
        else:
            cluster = _cluster(found)
            pods = self._listed("pods", "", f"ray.io/cluster={cluster},ray.io/node-type=head") if cluster else []
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def _listed(self, resource: str, fields: str = "", labels: str = "") -> list[dict[str, Any]]:
        query = {"fieldSelector": fields, "labelSelector": labels}
        path = f"/api/v1/namespaces/{self._settings.namespace}/{resource}"
        return self._api.items(path, {name: value for name, value in query.items() if value})

    def _workload(self, found: Object) -> dict[str, Any] | None:
        """What Kueue has made of a job; None where it has not, or is not there."""
        if QUEUE not in found["metadata"].get("labels", {}) or (kueue := self._kueue()) is None:
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

    def _check_quota(self) -> None:
        """Raise InputError where a job asks for more than the namespace may ever have."""
        never = [lack.text for lack in lacks(self._api, self._settings) if lack.needs > lack.most]
        if never:
            raise InputError(
                f"--on {self._name}: the namespace {self._settings.namespace} may never have so much: "
                f"{'; '.join(never)}; ask for less in [{self._name}] of {self._file}, or for a larger quota"
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
        if error.status == 401 or f'"{ANONYMOUS}"' in error.message:
            return (
                f"{self._api.server} does not know who we are ({error.status}): the credentials of the kubeconfig have "
                "expired or are another cluster's; log in again (`kubectl get rayjobs` says the same)"
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


@contextmanager
def _unless(*statuses: int) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        if error.status not in statuses:
            raise


def _uid(found: Object) -> str:
    return str(found["metadata"]["uid"])


def _cluster(found: Object) -> str:
    """The present Ray cluster of a job; "" where it has none."""
    return str((found.get("status") or {}).get("rayClusterName", ""))


def _path_of(found: Object, plural: str) -> str:
    return (
        f"/apis/{found['apiVersion']}/namespaces/{found['metadata']['namespace']}/{plural}/{found['metadata']['name']}"
    )
