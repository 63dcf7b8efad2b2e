"""Kubernetes with the KubeRay operator, as a target: what its pods ask for, and what is refused later on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from bfp.specs.fields import (
    DNS_LABEL_PATTERN,
    EXTENDED_RESOURCE_PATTERN,
    IMAGE_PATTERN,
    Clash,
    Misfit,
    Positive,
    Strict,
    lies_in,
)
from bfp.specs.target import ClusterTarget, SharedFolder, Text

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _labels(found: dict[str, str]) -> dict[str, str]:
    for key, value in found.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            raise ValueError(f"{key}: no label as Kubernetes has them: NAME or prefix.example.org/NAME")
        if value and not _LABEL_NAME.fullmatch(value):
            raise ValueError(f"{key}: {value}: a label's value has up to 63 letters, digits, '-', '_' and '.'")
    return found


Labels = Annotated[dict[str, str], AfterValidator(_labels)]
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL_PATTERN)]


class Toleration(Strict):
    """A taint that the pods of a group tolerate."""

    key: Text
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _value_of_equal(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise Misfit(Clash("value", 'goes with operator = "Equal"; "Exists" tolerates every value', ("operator",)))
        return self

    def meets(self, other: Toleration) -> bool:
        """Whether there are taints that both tolerate."""
        value = "Exists" in (self.operator, other.operator) or (self.value or "") == (other.value or "")
        return self.key == other.key and value and (None in (self.effect, other.effect) or self.effect == other.effect)


class Pods(Strict):
    """What a pod of the Ray cluster asks for."""

    cpus: int = Field(4, ge=1, description="CPUs of a pod, and of its Ray.")
    memory_gb: Positive = Field(16.0, description="Memory of a pod, GB (10⁹ bytes), Ray's object store included.")
    node_selector: Labels = Field({}, description="Labels of the nodes that it may run on.")
    tolerations: list[Toleration] = Field([], description="Taints that it tolerates.")


class WorkerGroup(Pods):
    """Pods of one kind that do the work."""

    count: int = Field(1, ge=0, description="How many there are from the start.")
    max_count: int | None = Field(
        None, ge=1, description="How many Ray's autoscaler may make of them; null: no more than `count`."
    )
    gpus: int = Field(0, ge=0, description="GPUs of a pod.")
    gpu_resource: Annotated[str, StringConstraints(pattern=EXTENDED_RESOURCE_PATTERN)] = Field(
        "nvidia.com/gpu", description="What the cluster calls a GPU."
    )
    spot: bool = Field(
        False,
        description="Whether they may run on nodes that can be taken away, by `spot_selector` and its tolerations.",
    )

    @property
    def most(self) -> int:
        """How many there may be."""
        return max(self.count, self.max_count or 0)


class Volume(Strict):
    """A claim that every pod mounts; its path is a shared path."""

    claim: DnsLabel = Field(description="The PersistentVolumeClaim.", examples=["brains"])
    path: SharedFolder = Field(description="Where it is mounted.", examples=["/data"])
    read_only: bool = Field(False, description="Whether it is mounted for reading only.")


# Kueue holds at most eight sets of pods in a workload; the head is one, and a submitter of its own another.
KUEUE_POD_SETS = 8
GROUPS_TAKEN = ("head", "headgroup", "submitter")
RAY_FOLDERS = ("/dev/shm", "/tmp/ray")


class KubeRayTarget(ClusterTarget):
    """Kubernetes with the KubeRay operator: a RayJob for each run."""

    target: Literal["kuberay"]
    context: Text | None = Field(
        None, description="The context of the kubeconfig (KUBECONFIG or ~/.kube/config); null: its current one."
    )
    namespace: DnsLabel = Field("bfp", description="The namespace that jobs run in.")
    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN)] = Field(
        description="The image with bfp and Ray in it (infra/image), by tag or digest.",
        examples=["registry.example.org/bfp:0.1.0-gpu"],
    )
    image_pull_secrets: list[DnsLabel] = Field([], description="Secrets by which the image is pulled.")
    service_account: DnsLabel = Field("bfp", description="The service account of the pods (infra/kuberay/rbac.yaml).")
    mode: Literal["K8sJobMode", "SidecarMode"] = Field(
        "K8sJobMode",
        description="Where `ray job submit` runs. K8sJobMode: in a pod of its own. SidecarMode: beside the head, in a "
        "container of the operator's that a namespace with restricted pod security does not take.",
    )
    queue: DnsLabel | None = Field(None, description="The LocalQueue of Kueue; null: without Kueue.")
    priority_class: DnsLabel | None = Field(
        None, description="With a queue the WorkloadPriorityClass, else the PriorityClass of the pods."
    )
    head: Pods = Field(
        default_factory=Pods, description="The head, with the driver; never on nodes of `spot_selector`."
    )
    workers: dict[DnsLabel, WorkerGroup] = Field(
        default_factory=lambda: {"cpu": WorkerGroup()},
        min_length=1,
        description="The groups of workers, by name.",
        examples=[{"cpu": {"cpus": 8, "count": 4}, "gpu": {"cpus": 16, "gpus": 8, "count": 1}}],
    )
    spot_selector: Labels = Field(
        {}, description="Labels of nodes that can be taken away.", examples=[{"eks.amazonaws.com/capacityType": "SPOT"}]
    )
    spot_tolerations: list[Toleration] = Field([], description="Their taints.")
    secrets: list[DnsLabel] = Field(
        [], description="Kubernetes secrets whose keys become environment variables of the pods.", examples=[["bfp-s3"]]
    )
    config_maps: list[DnsLabel] = Field(
        [], description="ConfigMaps whose keys become environment variables of the pods."
    )
    volumes: list[Volume] = Field([], description="Claims that every pod mounts.")
    shared_memory_gb: Positive = Field(4.0, description="/dev/shm of a pod, of its memory: Ray's object store, GB.")
    spill_gb: Positive = Field(20.0, description="Disk of a pod for Ray's temporary files and what it spills, GB.")
    deadline_h: float = Field(
        72.0,
        gt=0,
        le=8760,
        description="An attempt that takes longer is ended, hours; it resumes when sent again.",
    )
    retries: int = Field(2, ge=0, le=10, description="How often a new cluster takes up a job that failed.")
    keep_min: float = Field(
        2.0,
        gt=0,
        le=10_080,
        description="How long the Ray cluster of what is over stays up, with its nodes and GPUs, minutes. The RayJob "
        "and its log stay until the run is sent again.",
    )

    @property
    def autoscaled(self) -> bool:
        """Whether Ray's autoscaler may make workers."""
        return any(group.most > group.count for group in self.workers.values())

    @model_validator(mode="after")
    def _what_the_operator_and_kueue_take(self) -> KubeRayTarget:
        """The CRD lets through what KubeRay's operator, Kueue or the making of a pod refuses later on."""
        clashes = [*self._groups(), *self._of_kueue(), *self._on_spot(), *self._memory(), *self._mounts()]
        if clashes:
            raise Misfit(*clashes)
        return self

    def _groups(self) -> list[Clash]:
        taken = f"another name; {', '.join(GROUPS_TAKEN)} are taken by KubeRay and Kueue"
        named = [Clash(f"workers.{name}", taken) for name in self.workers if name in GROUPS_TAKEN]
        return named + [
            Clash(f"workers.{name}.max_count", f"at least `count`, {group.count}, or null", (f"workers.{name}.count",))
            for name, group in self.workers.items()
            if group.max_count is not None and group.max_count < group.count
        ]

    def _of_kueue(self) -> list[Clash]:
        if self.queue is None:
            return []
        grows = "null: Kueue admits a job as a whole and takes none that grows; or leave `queue` out"
        clashes = [
            Clash(f"workers.{name}.max_count", grows, ("queue",))
            for name, group in self.workers.items()
            if group.most > group.count
        ]
        most = KUEUE_POD_SETS - (2 if self.mode == "K8sJobMode" else 1)
        if len(self.workers) > most:
            too_many = f"at most {most} groups: with the head and the submitter Kueue takes {KUEUE_POD_SETS}"
            clashes.append(Clash("workers", too_many, ("queue", "mode")))
        return clashes

    def _on_spot(self) -> list[Clash]:
        clashes = [
            Clash(
                f"workers.{name}.spot",
                "name the labels or taints of such nodes under `spot_selector` or `spot_tolerations`",
                ("spot_selector", "spot_tolerations"),
            )
            for name, group in self.workers.items()
            if group.spot and not self.spot_selector and not self.spot_tolerations
        ]
        if self.spot_selector and self.spot_selector.items() <= self.head.node_selector.items():
            lost = "other nodes than those of `spot_selector`: a head that is taken away ends the job"
            clashes.append(Clash("head.node_selector", lost, ("spot_selector",)))
        return clashes + [
            Clash(
                f"head.tolerations[{number}]",
                "none of `spot_tolerations`: a head that is taken away ends the job",
                ("spot_tolerations",),
            )
            for number, toleration in enumerate(self.head.tolerations)
            if any(toleration.meets(spot) for spot in self.spot_tolerations)
        ]

    def _memory(self) -> list[Clash]:
        pods = {"head": self.head, **{f"workers.{name}": group for name, group in self.workers.items()}}
        return [
            Clash(
                f"{field}.memory_gb",
                f"more than shared_memory_gb, {self.shared_memory_gb:g}, which is a part of it",
                ("shared_memory_gb",),
            )
            for field, found in pods.items()
            if found.memory_gb <= self.shared_memory_gb
        ]

    def _mounts(self) -> list[Clash]:
        clashes = []
        for number, volume in enumerate(self.volumes):
            field = f"volumes[{number}].path"
            before = [other.path for other in self.volumes[:number]]
            if volume.path in before:
                clashes.append(Clash(field, "another path: two claims are mounted there"))
            if any(lies_in(volume.path, folder) or lies_in(folder, volume.path) for folder in RAY_FOLDERS):
                clashes.append(Clash(field, f"another path: {' and '.join(RAY_FOLDERS)} are Ray's own"))
        return clashes
