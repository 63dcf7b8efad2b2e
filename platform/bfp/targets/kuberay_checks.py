"""What `bfp doctor --on NAME` looks at on Kubernetes: the API server, the operator, our rights, what the profile names.

Nothing is made there but questions about ourselves (reviews, which are not kept), and no secret is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bfp.specs.kuberay import KubeRayTarget
from bfp.targets.cluster import Check, Verdict
from bfp.targets.kube_api import KubeApi, Refused
from bfp.targets.kuberay_manifest import GROUP, KIND, PLURAL, VERSION

# What a user needs (infra/kuberay/rbac.yaml), as (group, resource, verb), and what for.
RIGHTS = (
    ("ray.io", "rayjobs", "create", "submit"),
    ("ray.io", "rayjobs", "get", "submit and status"),
    ("ray.io", "rayjobs", "watch", "submit and logs"),
    ("ray.io", "rayjobs", "patch", "stop"),
    ("ray.io", "rayjobs", "delete", "submit again"),
    ("", "pods", "list", "status"),
    ("", "pods", "get", "logs"),
    ("", "pods/log", "get", "logs"),
    ("", "events", "list", "status"),
)
ANONYMOUS = "system:anonymous"  # who the server takes those for who show no credentials
QUEUE_RIGHTS = (
    ("kueue.x-k8s.io", "localqueues", "get", "submit"),
    ("kueue.x-k8s.io", "workloads", "list", "status"),
    ("kueue.x-k8s.io", "workloads", "patch", "stop"),
)


def checks(api: KubeApi, settings: KubeRayTarget, *, kueue: Callable[[], str | None]) -> Iterator[Check]:
    """Every point. kueue: finds the path of Kueue's API. Raises Refused where not even this may be asked."""
    version = api.get("/version")  # which it tells anybody
    yield Check("reachable", "ok", f"{api.server} answers: Kubernetes {version['gitVersion']}")
    who = _who(api)
    yield who
    if who.verdict == "fail":
        return
    operator = _operator(api)
    yield operator
    if operator.verdict == "fail":
        return
    namespace = list(_namespace(api, settings.namespace))
    yield from namespace
    if any(found.verdict == "fail" for found in namespace):
        return
    rights = (*RIGHTS, *(QUEUE_RIGHTS if settings.queue else ()))
    lacking = [f"{verb} {resource} ({use})" for group, resource, verb, use in rights
               if not _may(api, settings.namespace, verb, group, resource)]  # fmt: skip
    where = f"the namespace {settings.namespace}"
    if lacking:
        remedy = f"is {where} yours? who runs the cluster grants infra/kuberay/rbac.yaml there"
        yield Check("rights", "fail", f"may not, in {where}: {', '.join(lacking)}", remedy)
    else:
        yield Check("rights", "ok", f"all that submit, status, logs and stop need, in {where}")
    yield from _references(api, settings, kueue)
    yield from _quotas(api, settings)
    yield from _gpus(api, settings)


def _who(api: KubeApi) -> Check:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        found = api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
    except Refused as error:  # since Kubernetes 1.28
        if error.status != 401 and ANONYMOUS not in error.message:
            return Check("who we are", "ok", "the API server takes our credentials; it does not say for whom")
        name = ANONYMOUS
    else:
        name = str(found["status"]["userInfo"]["username"])
    if name == ANONYMOUS:
        lacking = "nobody: the credentials of the kubeconfig have expired, are another cluster's, or are none"
        return Check("who we are", "fail", lacking, "log in again (`kubectl get rayjobs` says the same)")
    return Check("who we are", "ok", name)


def _namespace(api: KubeApi, name: str) -> Iterator[Check]:
    """Whether it is there, where we may look."""
    try:
        found = api.find(f"/api/v1/namespaces/{name}")
    except Refused as error:
        if error.status != 403:
            raise
        return
    if found is None:
        remedy = "set `namespace`, or who runs the cluster makes it (infra/kuberay/namespace.yaml)"
        yield Check("namespace", "fail", f"{name}: the cluster has none of this name", remedy)
    else:
        yield Check("namespace", "ok", name)


def _operator(api: KubeApi) -> Check:
    install = "who runs the cluster installs KubeRay 1.5.1 or newer (infra/guides/kubernetes.md)"
    try:
        served = api.get(f"/apis/{GROUP}/{VERSION}")
    except Refused as error:
        if error.status != 404:
            raise
        return Check("KubeRay", "fail", "the cluster does not know of RayJobs", install)
    if PLURAL not in [found["name"] for found in served["resources"]]:
        return Check("KubeRay", "fail", f"{GROUP}/{VERSION} has no RayJobs", install)
    if not _knows_tokens(api):
        return Check("KubeRay", "fail", "its RayJob knows no authOptions: it is older than 1.5.1", install)
    return Check("KubeRay", "ok", f"{KIND} of {GROUP}/{VERSION}, with tokens (1.5.1 or newer)")


def _knows_tokens(api: KubeApi) -> bool:
    for path in (f"/openapi/v3/apis/{GROUP}/{VERSION}", "/openapi/v2"):
        try:
            return "authOptions" in json.dumps(api.get(path))
        except Refused:
            continue
    return True  # it does not publish what it knows


def _references(api: KubeApi, settings: KubeRayTarget, kueue: Callable[[], str | None]) -> Iterator[Check]:
    """Whether what the profile names is there. Of a secret that is asked by name only where we may read it, which
    nobody needs; it is never read."""
    core = "/api/v1"
    named = [
        ("service_account", core, "serviceaccounts", [settings.service_account]),
        ("config_maps", core, "configmaps", settings.config_maps),
        ("volumes", core, "persistentvolumeclaims", [volume.claim for volume in settings.volumes]),
    ]
    if settings.queue:
        named.append(("queue", kueue() or "", "localqueues", [settings.queue]))
    if settings.priority_class:
        yield _priority(api, settings.priority_class, kueue=kueue if settings.queue else None)
    for field, group, resource, names in named:
        for name in names:
            yield _reference(api, settings.namespace, field, group, resource, name)
    for field, names in (("secrets", settings.secrets), ("image_pull_secrets", settings.image_pull_secrets)):
        for name in names:
            unseen = "cannot be seen from here, as it should be"
            yield Check(field, "ok", f"{name}: {unseen}; a pod that lacks it says so in `bfp status`")


def _reference(api: KubeApi, namespace: str, field: str, group: str, resource: str, name: str) -> Check:
    path = f"{group}/namespaces/{namespace}/{resource}" if group else None
    return _named(
        api, field, name, path, absent=f"not in the namespace {namespace}", remedy="make it there", unseen="warn"
    )


def _priority(api: KubeApi, name: str, *, kueue: Callable[[], str | None] | None) -> Check:
    """The priority class, which is of no namespace. kueue: where it is one of Kueue's."""
    group, kind = (kueue(), "WorkloadPriorityClass") if kueue else ("/apis/scheduling.k8s.io/v1", "PriorityClass")
    path = f"{group}/{kind.lower()}es" if group else None
    absent = f"the cluster has no {kind} of this name"
    return _named(api, "priority_class", name, path, absent=absent, remedy="make it", unseen="ok")


def _named(
    api: KubeApi, field: str, name: str, path: str | None, *, absent: str, remedy: str, unseen: Verdict
) -> Check:
    """Whether what a field names is there. path: of all of its kind, None where there is no Kueue to know of them.

    unseen: how it is that we may not look: what belongs to the whole cluster is not for everybody to see.
    """
    if path is None:
        return Check(field, "fail", f"{name}: Kueue is not there", "install Kueue, or leave `queue` out")
    try:
        found = api.find(f"{path}/{name}")
    except Refused as error:
        if error.status != 403:
            raise
        return Check(field, unseen, f"{name}: cannot be seen from here: {error.message}")
    if found is None:
        return Check(field, "fail", f"{name}: {absent}", f"{remedy}, or set `{field}`")
    return Check(field, "ok", name)


class Lack(NamedTuple):
    """What a job needs of a resource and a quota does not leave. most: of the quota, left: of it now."""

    quota: str
    resource: str
    needs: float
    most: float
    left: float

    @property
    def text(self) -> str:
        needs, most, left = (f"{value:,.10g}" for value in (self.needs, self.most, self.left))
        return f"quota {self.quota}: {needs} of {self.resource} are needed at once, it has {most} and {left} left"


def lacks(api: KubeApi, settings: KubeRayTarget) -> list[Lack]:
    """What the quotas of the namespace, where we may see them, do not leave for the head and the first workers."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        quotas = api.items(f"/api/v1/namespaces/{settings.namespace}/resourcequotas")
    except Refused as error:
        if error.status != 403:
            raise
        return []
    pods = [settings.head, *(group for group in settings.workers.values() for _ in range(group.count))]
    needed: Counter[str] = Counter(pods=len(pods))
    for pod in pods:
        for prefix in ("", "requests.", "limits."):
            needed[f"{prefix}cpu"] += pod.cpus
            needed[f"{prefix}memory"] += int(pod.memory_gb * 1e9)
    for group in settings.workers.values():
        if group.gpus:
            needed[f"requests.{group.gpu_resource}"] += group.gpus * group.count
    found = []
    for quota in quotas:
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue  # it counts some pods only, and which of ours is not for us to say
        used = quota.get("status", {}).get("used", {})
        for resource, written in quota["spec"].get("hard", {}).items():
            most = float(parse_quantity(written))
            left = most - float(parse_quantity(used.get(resource, "0")))
            if needed[resource] > left:
                found.append(Lack(quota["metadata"]["name"], resource, needed[resource], most, left))
    return found


def _quotas(api: KubeApi, settings: KubeRayTarget) -> Iterator[Check]:
    for lack in lacks(api, settings):
        if lack.needs > lack.most:
            yield Check("quota", "fail", lack.text, "ask for less in the profile, or for a larger quota")
        else:
            yield Check("quota", "warn", lack.text, "a job waits until others have ended; with Kueue it waits in order")


def _gpus(api: KubeApi, settings: KubeRayTarget) -> Iterator[Check]:
    wanted = {group.gpu_resource for group in settings.workers.values() if group.gpus}
    if not wanted:
        return
    try:
        nodes = api.items("/api/v1/nodes")
    except Refused:
        yield Check("GPUs", "ok", "the nodes cannot be seen from here; `bfp status` says if none takes a pod")
        return
    for resource in sorted(wanted):
        most = max((int(node["status"].get("allocatable", {}).get(resource, 0)) for node in nodes), default=0)
        needs = max(group.gpus for group in settings.workers.values() if group.gpu_resource == resource)
        if most >= needs:
            yield Check("GPUs", "ok", f"nodes have up to {most} of {resource}, a pod needs {needs}")
        else:
            remedy = "lower `gpus` and raise `count`; a cluster that grows may have such a node later"
            yield Check("GPUs", "warn", f"nodes have up to {most} of {resource}, a pod needs {needs}", remedy)


def _may(api: KubeApi, namespace: str, verb: str, group: str, resource: str) -> bool:
    kind, _, inner = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": kind}
    if inner:
        asked["subresource"] = inner
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    found = api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(found["status"]["allowed"])
