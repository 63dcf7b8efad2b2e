"""The targets of a profile: what a cluster is called, how it is reached, and what a job gets there.

    local      this machine
    ray        a Ray cluster that is up, by its Jobs API
    kuberay    Kubernetes with the KubeRay operator: a Ray cluster for each job
    slurm      a SLURM cluster: Ray inside an allocation for each job

A spec says what is done, a target where: nothing in here changes what comes out of a run. A secret is only ever
referred to: by the name of an environment variable, of a file, or of a Kubernetes secret.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, model_validator

from bfp.specs.fields import (
    DNS_LABEL_PATTERN,
    ENV_NAME_PATTERN,
    EXTENDED_RESOURCE_PATTERN,
    IMAGE_PATTERN,
    SBATCH_OPTION_PATTERN,
    Clash,
    Folders,
    Misfit,
    Positive,
    Strict,
    absolute,
    lies_in,
)
from bfp.words import toml_list

EXAMPLE = ("mri_synthstrip", "-i", "{scan}", "-m", "{mask}")

Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]

# What is called so is a secret, and has no place in a profile or in what is sent to a cluster.
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|ACCESS_KEY|API_?KEY", re.IGNORECASE)


def _of_a_mask(command: list[str], info: ValidationInfo) -> list[str]:
    lacking = [word for word in ("{scan}", "{mask}") if not any(word in other for other in command[1:])]
    if lacking:
        raise ValueError(f"lacks {' and '.join(lacking)} behind the program's name, as in {toml_list(EXAMPLE)}")
    program = os.path.expanduser(command[0])
    if os.sep in program and isinstance(info.context, Folders):
        program = absolute(program, info.context.spec)
    return [program, *command[1:]]


def _of_mlflow(uri: str, info: ValidationInfo) -> str:
    found = urlsplit(uri)
    if "@" in found.netloc:
        raise ValueError(
            "no user or password may stand here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    if "://" in uri:
        return uri
    return f"file://{absolute(uri, info.context.spec)}" if isinstance(info.context, Folders) else uri


def _of_the_dashboard(address: str) -> str:
    found = urlsplit(address)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ValueError(
            "the address of the cluster's dashboard, where its Jobs API is: http://HOST:8265 or https://HOST"
        )
    if "@" in found.netloc:
        raise ValueError("no user or password may stand here; name the token under `token`")
    return address.rstrip("/")


def _a_folder(path: str) -> str:
    if not os.path.isabs(path) or os.path.normpath(path) == "/":
        raise ValueError("an absolute folder other than /, the same on every node: /data")
    return os.path.normpath(path)


def _from_here(path: str, info: ValidationInfo) -> str:
    return absolute(path, info.context.spec) if isinstance(info.context, Folders) else path


def _not_secret(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if SECRET.search(name) or "@" in urlsplit(value).netloc:
            raise ValueError(
                f"{name}: a secret, which never stands in a profile; it has to be there already where the job runs "
                "(README, “Secrets on a cluster”)"
            )
        if name.startswith(("RAY_", "BFP_")):
            raise ValueError(f"{name}: bfp sets what begins with RAY_ and BFP_ itself")
    return env


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


EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL_PATTERN)]
SharedFolder = Annotated[Text, AfterValidator(_a_folder)]


class Secret(Strict):
    """Where a secret is found on the machine that submits."""

    env: EnvName | None = Field(None, description="The environment variable that holds it.", examples=["LAB_TOKEN"])
    file: Annotated[Text, AfterValidator(_from_here)] | None = Field(
        None, description="The file that holds it, and nothing else.", examples=["~/.ray/auth_token"]
    )

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise Misfit(Clash("", 'name one place: {env = "NAME"} or {file = "PATH"}'))
        return self


class LocalTarget(Strict):
    """This machine."""

    brain_program: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1), AfterValidator(_of_a_mask)
        ]
        | None
    ) = Field(
        None,
        description="The command of `preprocessing.brain: program`, word for word and without a shell: a program (on "
        "PATH, or its path, from this file's folder) and its arguments. {scan}: the .nii.gz file that it reads. "
        "{mask}: the one that it has to write, on the scan, in which every voxel that is not 0 is brain.",
        examples=[list(EXAMPLE)],
    )
    mlflow: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_mlflow)] | None = Field(
        None,
        description="Where the figures and the spec of every run go besides its folder: an MLflow tracking server, or "
        "a folder (from this file's). An extra: pip install 'bfp[mlflow]'.",
        examples=["https://mlflow.example.org", "mlruns"],
    )


class ClusterTarget(LocalTarget):
    """What every cluster has."""

    shared_paths: list[SharedFolder] = Field(
        [],
        description="Folders that every node sees under the same path, such as a network file system. A local path of "
        "a spec has to lie in one of them; s3:// needs none.",
        examples=[["/data"]],
    )
    env: Annotated[dict[EnvName, str], AfterValidator(_not_secret)] = Field(
        {},
        description="Environment variables of the job there, such as the storage endpoint. Never a secret.",
        examples=[{"AWS_ENDPOINT_URL": "https://s3.example.org"}],
    )


class RayTarget(ClusterTarget):
    """A Ray cluster that is up, by its Jobs API."""

    target: Literal["ray"]
    address: Annotated[Text, AfterValidator(_of_the_dashboard)] = Field(
        description="The cluster's dashboard, where its Jobs API is.", examples=["http://ray-head.example.org:8265"]
    )
    token: Secret | None = Field(
        None,
        description="The cluster's token, where it asks for one (RAY_AUTH_MODE=token).",
        examples=[{"env": "RAY_AUTH_TOKEN"}],
    )
    code: Literal["image", "package"] = Field(
        "image",
        description="How bfp gets there. image: the nodes have it installed, in this version. package: the bfp that "
        "submits is sent with the job; what it builds on has to be there.",
    )


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


class SlurmTarget(ClusterTarget):
    """A SLURM cluster: Ray inside an allocation for each run."""

    target: Literal["slurm"]
    partition: Text | None = Field(None, description="--partition; null: the cluster's default.")
    account: Text | None = Field(None, description="--account.")
    qos: Text | None = Field(None, description="--qos.")
    nodes: int = Field(1, ge=1, description="Nodes of the allocation, one Ray node each.")
    cpus_per_node: int = Field(4, ge=1, description="CPUs of a node that are asked for.")
    memory_gb: Positive | None = Field(None, description="Memory of a node that is asked for, GB; null: the default.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of a node that are asked for.")
    time_h: Positive = Field(
        24.0, description="The time limit, hours. What is not done by then is put in the queue again."
    )
    warning_s: int = Field(
        300, ge=30, description="How long before the time limit a run is told to save and to end, seconds."
    )
    requeue: bool = Field(True, description="Whether it goes on in the queue after the time limit or a node's failure.")
    modules: list[Text] = Field([], description="Environment modules that are loaded first.", examples=[["cuda/13.0"]])
    environment: Annotated[Text, AfterValidator(_from_here)] | None = Field(
        None,
        description="The virtual environment on the cluster with bfp in it; null: the one that submits.",
        examples=["/data/envs/bfp"],
    )
    container: Text | None = Field(
        None, description="An Apptainer image with bfp in it, in place of an environment.", examples=["/data/bfp.sif"]
    )
    secrets_file: Text | None = Field(
        None,
        description="A file on the cluster of NAME=value lines that the job reads: the credentials of the storage. It "
        "has to be yours alone (chmod 600).",
        examples=["~/.config/bfp/secrets.env"],
    )
    logs: SharedFolder | None = Field(
        None, description="Where the job's own log goes; null: into the run's folder, where that is a shared path."
    )
    options: list[Annotated[str, StringConstraints(pattern=SBATCH_OPTION_PATTERN)]] = Field(
        [], description="More lines for sbatch.", examples=[["--constraint=a100"]]
    )

    @model_validator(mode="after")
    def _one_place_and_time(self) -> SlurmTarget:
        clashes = []
        if self.environment is not None and self.container is not None:
            clashes.append(Clash("environment", "one of environment and container", ("container",)))
        if self.warning_s >= self.time_h * 3600:
            expected = f"less than the time limit, which is {self.time_h * 3600:g} s; a job needs a minute to begin"
            clashes.append(Clash("warning_s", expected, ("time_h",)))
        if clashes:
            raise Misfit(*clashes)
        return self


Cluster = RayTarget | KubeRayTarget | SlurmTarget

CLUSTERS: dict[str, type[Cluster]] = {"ray": RayTarget, "kuberay": KubeRayTarget, "slurm": SlurmTarget}
