"""The RayJob of a run: a target's settings and a letter in, what `kubectl apply` takes out. Nobody is asked.

    RayJob
    ├── metadata       named for the run; what it is found by, and the digest of the spec that it was sent with
    ├── the job        `bfp drive` on the head, submitted once, ended at a deadline, taken up again when it fails
    ├── head           the driver, with the letter in its environment; no work where workers are there for it
    ├── workers        a group for each of `workers`: preprocessing, training
    └── submitter      a pod that hands the job to the head and passes on what it prints

Every pod meets the restricted profile of the Pod Security Standards, asks for what it is limited to and for the disk
that Ray spills to, and, before it is taken away, lets the driver save (`leaving`). Ray's token is made by KubeRay, one
for each cluster (`authOptions`).

The letter goes into the container's environment and not into `runtimeEnvYAML`, which KubeRay puts between double quotes
on a shell's command line: a `$` of a spec, as regular expressions have them, would be the shell's. What the kubelet
would expand itself is doubled (`$$`).
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import yaml

import bfp
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.specs.kuberay import KubeRayTarget, Pods, Toleration, Volume, WorkerGroup
from bfp.targets.leaving import LEAVE, LEAVE_WAIT_S
from bfp.targets.letter import COMMAND, SPEC, Letter, run_digest

GROUP, VERSION, PLURAL, KIND = "ray.io", "v1", "rayjobs", "RayJob"
NAME_LENGTH = 47  # the operator's own limit: the names of a cluster, its service and its pods are made of it
RUN, SPEC_DIGEST, STOPPED, REFUSED = "bfp/run", "bfp/spec", "bfp/stopped", "bfp/refused"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
HEAD, WORKER, SUBMITTER = "ray-head", "ray-worker", "ray-job-submitter"

STOP_GRACE_S = 600  # a step of pretraining and its checkpoint
GRACE_S = STOP_GRACE_S + 60
RAY_FOLDER = "/tmp/ray"
SPILL_FOLDER = f"{RAY_FOLDER}/spill"
OBJECT_STORE_SHARE = 0.9  # of /dev/shm, which Ray's other processes use too
LETTER_BYTES = 120_000  # Linux lets one variable have 131,072

SECURE_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
SECURE_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **SECURE_POD}

# What makes room on nodes leaves the head where it is: the job would end with it.
STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}

# Of KubeRay's helpers, which add to what a job takes: the size of its submitter and of its autoscaler.
SUBMITTER_SIZE = {"cpu": "500m", "memory": "1G"}
AUTOSCALER_SIZE = {"cpu": "500m", "memory": "1G"}


def job_name(run: str) -> str:
    """The name of a run's RayJob; run: its folder, as a path or URI."""
    last = re.sub(r"[^a-z0-9]+", "-", run.rstrip("/").rpartition("/")[2].lower())
    digest = run_digest(run)
    return f"bfp-{last[: NAME_LENGTH - len(digest) - 5].strip('-')}-{digest}".replace("--", "-")


def ray_job(settings: KubeRayTarget, letter: Letter) -> dict[str, Any]:
    """The RayJob. Raises InputError where the spec is too long to be handed over."""
    environment = {**settings.env, **letter.environment()}
    if len(environment[SPEC].encode()) > LETTER_BYTES:
        raise InputError(
            f"{letter.run}: the spec has {len(environment[SPEC].encode()):,} bytes, and a pod's environment takes "
            f"{LETTER_BYTES:,}; put long lists into files"
        )
    name = job_name(letter.run)
    labels = {"app.kubernetes.io/managed-by": "bfp", RUN: run_digest(letter.run), "bfp/kind": letter.spec.kind}
    queued = {QUEUE: settings.queue} if settings.queue else {}
    if settings.queue and settings.priority_class:
        queued[PRIORITY] = settings.priority_class
    cluster: dict[str, Any] = {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": _head(settings, environment, labels),
        "workerGroupSpecs": [
            _workers(name, group, settings, environment, labels, check=letter.check)
            for name, group in settings.workers.items()
        ],
    }
    if settings.autoscaled and not letter.check:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "securityContext": SECURE_CONTAINER,
            "resources": {"requests": AUTOSCALER_SIZE, "limits": AUTOSCALER_SIZE},
        }
    spec: dict[str, Any] = {
        "entrypoint": COMMAND,
        "submissionMode": settings.mode,
        "jobId": name,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0 if letter.check else round(settings.keep_min * 60),
        "activeDeadlineSeconds": round(settings.deadline_h * 3600),
        "backoffLimit": 0 if letter.check else settings.retries,
        "rayClusterSpec": cluster,
    }
    if settings.queue:
        spec["suspend"] = True  # Kueue takes it back when there is room
    if settings.mode == "K8sJobMode":
        spec["submitterPodTemplate"] = _submitter(settings, labels)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {**labels, **queued},
            "annotations": {RUN: letter.run, SPEC_DIGEST: letter.digest, "bfp/version": bfp.__version__},
        },
        "spec": spec,
    }


def as_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as people read it: long texts as blocks, and text that a reader of YAML could take for a number
    in quotes."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def lent(settings: KubeRayTarget, name: str) -> Capacity:
    """What the cluster of a job lends to it, at its largest."""
    head, groups = settings.head, settings.workers.values()
    works = _head_works(settings)
    return Capacity(
        sum(group.most * group.cpus for group in groups) + works * head.cpus,
        sum(group.most * group.gpus for group in groups),
        sum(group.most * _ray_memory_gb(settings, group) for group in groups) + works * _ray_memory_gb(settings, head),
        f"the cluster {name}",
    )


def first_nodes(settings: KubeRayTarget) -> int:
    """How many nodes Ray has before a run begins: the head, and each worker that is there from the start."""
    return 1 + sum(group.count for group in settings.workers.values())


# the groups ----------------------------------------------------------------------------------------------------------


def _head(settings: KubeRayTarget, environment: dict[str, str], labels: dict[str, str]) -> dict[str, Any]:
    works = _head_works(settings)
    container = {
        **_ray_container(HEAD, "head", settings, environment, settings.head, {}),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ],
    }
    template = _template(settings, settings.head, container, labels)
    template["metadata"]["annotations"] = STAYS
    template["spec"] |= _off_spot(settings)
    # The autoscaler beside it makes and ends pods; nothing else here speaks to Kubernetes.
    template["spec"]["automountServiceAccountToken"] = settings.autoscaled
    start = {"num-cpus": str(settings.head.cpus if works else 0), "num-gpus": "0", "dashboard-host": "0.0.0.0"}
    return {"rayStartParams": {**start, **_start_memory(settings, settings.head)}, "template": template}


def _workers(
    name: str,
    group: WorkerGroup,
    settings: KubeRayTarget,
    environment: dict[str, str],
    labels: dict[str, str],
    *,
    check: bool,
) -> dict[str, Any]:
    """A group; of a check it has no pods, which the head makes alone."""
    count = 0 if check else group.count
    gpus = {group.gpu_resource: str(group.gpus)} if group.gpus else {}
    container = _ray_container(WORKER, "worker", settings, _without_letter(environment), group, gpus)
    template = _template(settings, group, container, labels)
    if group.spot:
        template["spec"]["nodeSelector"] = {**group.node_selector, **settings.spot_selector}
        template["spec"]["tolerations"] = _tolerations([*group.tolerations, *settings.spot_tolerations])
    start = {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)}
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": group.most,
        "rayStartParams": {**start, **_start_memory(settings, group)},
        "template": template,
    }


def _submitter(settings: KubeRayTarget, labels: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": SUBMITTER,
        "image": settings.image,
        "resources": {"requests": SUBMITTER_SIZE, "limits": SUBMITTER_SIZE},
        "securityContext": SECURE_CONTAINER,
        "lifecycle": _lifecycle("submitter"),
    }
    template = _template(settings, settings.head, container, labels)
    template["spec"].pop("volumes")
    return {**template, "spec": {**template["spec"], **_off_spot(settings), "restartPolicy": "Never"}}


def _template(settings: KubeRayTarget, pods: Pods, container: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": SECURE_POD,
        "containers": [container],
        "volumes": _volumes(settings),
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if pods.node_selector:
        spec["nodeSelector"] = dict(pods.node_selector)
    if pods.tolerations:
        spec["tolerations"] = _tolerations(pods.tolerations)
    if settings.priority_class and not settings.queue:
        spec["priorityClassName"] = settings.priority_class
    return {"metadata": {"labels": labels}, "spec": spec}


def _ray_container(
    name: str, role: str, settings: KubeRayTarget, environment: dict[str, str], pods: Pods, gpus: dict[str, str]
) -> dict[str, Any]:
    size = {"cpu": str(pods.cpus), "memory": _quantity(pods.memory_gb), **gpus}
    references = [
        *({"configMapRef": {"name": found}} for found in settings.config_maps),
        *({"secretRef": {"name": found}} for found in settings.secrets),
    ]
    stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)}
    return {
        "name": name,
        "image": settings.image,
        "env": [{"name": key, "value": _literal(value)} for key, value in {**stop, **environment}.items()],
        **({"envFrom": references} if references else {}),
        "resources": {"requests": {**size, "ephemeral-storage": _quantity(settings.spill_gb)}, "limits": size},
        "securityContext": SECURE_CONTAINER,
        "lifecycle": _lifecycle(role),
        "volumeMounts": [
            {"name": "shared-mem", "mountPath": "/dev/shm"},
            {"name": "ray-logs", "mountPath": RAY_FOLDER},
            *(_mount(number, volume) for number, volume in enumerate(settings.volumes)),
        ],
    }


# parts ---------------------------------------------------------------------------------------------------------------


def _head_works(settings: KubeRayTarget) -> bool:
    """The head is left to the driver wherever others have CPUs to lend that are not there for GPUs."""
    return not any(group.most and not group.gpus for group in settings.workers.values())


def _off_spot(settings: KubeRayTarget) -> dict[str, Any]:
    """What keeps a pod from nodes that can be taken away, by their labels; a taint does so by itself."""
    if not settings.spot_selector:
        return {}
    without = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in settings.spot_selector.items()]
    required = {"nodeSelectorTerms": [{"matchExpressions": without}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}


def _ray_memory_gb(settings: KubeRayTarget, pods: Pods) -> float:
    return pods.memory_gb - settings.shared_memory_gb


def _start_memory(settings: KubeRayTarget, pods: Pods) -> dict[str, str]:
    return {
        "memory": str(round(_ray_memory_gb(settings, pods) * 1e9)),
        "object-store-memory": str(round(OBJECT_STORE_SHARE * settings.shared_memory_gb * 1e9)),
        "object-spilling-directory": SPILL_FOLDER,
    }


def _volumes(settings: KubeRayTarget) -> list[dict[str, Any]]:
    """KubeRay would make the first two itself, by these names and without bounds."""
    memory = {"medium": "Memory", "sizeLimit": _quantity(settings.shared_memory_gb)}
    return [
        {"name": "shared-mem", "emptyDir": memory},
        {"name": "ray-logs", "emptyDir": {"sizeLimit": _quantity(settings.spill_gb)}},
        *(
            {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": volume.claim, **_read_only(volume)}}
            for number, volume in enumerate(settings.volumes)
        ),
    ]


def _mount(number: int, volume: Volume) -> dict[str, Any]:
    return {"name": f"claim-{number}", "mountPath": volume.path, **_read_only(volume)}


def _read_only(volume: Volume) -> dict[str, bool]:
    return {"readOnly": True} if volume.read_only else {}


def _lifecycle(role: str) -> dict[str, Any]:
    return {"preStop": {"exec": {"command": [*LEAVE, role, str(LEAVE_WAIT_S)]}}}


def _tolerations(found: list[Toleration]) -> list[dict[str, Any]]:
    return [toleration.model_dump(exclude_none=True) for toleration in found]


def _without_letter(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("BFP_")}


def _quantity(gigabytes: float) -> str:
    """As Kubernetes writes it."""
    megabytes = round(gigabytes * 1000)
    return f"{megabytes}M" if megabytes % 1000 else f"{megabytes // 1000}G"


def _literal(value: str) -> str:
    return value.replace("$", "$$")


class _Dumper(yaml.SafeDumper):
    """Without anchors, which repeat the labels of each pod."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# kubectl reads more as numbers than PyYAML does: 1e3, 08, 0o7.
_LIKE_A_NUMBER = re.compile(r"[-+.]?[0-9][0-9a-fA-FxXoO_.+-]*")


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else '"' if _LIKE_A_NUMBER.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
