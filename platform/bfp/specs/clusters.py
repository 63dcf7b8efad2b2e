"""The targets of a profile: what a cluster is called, how it is reached, and what a job gets there.

    local      this machine (`target`)
    ray        a Ray cluster that is up, by its Jobs API
    kuberay    Kubernetes with the KubeRay operator: a Ray cluster for each job (`kuberay`)
    slurm      a SLURM cluster: Ray inside an allocation for each job

A spec says what is done, a target where: nothing in here changes what comes out of a run.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from bfp.specs.fields import SBATCH_OPTION_PATTERN, Clash, Misfit, Positive
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.target import ClusterTarget, Secret, SharedFolder, Text, from_here


def _of_the_dashboard(address: str) -> str:
    found = urlsplit(address)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ValueError(
            "the address of the cluster's dashboard, where its Jobs API is: http://HOST:8265 or https://HOST"
        )
    if "@" in found.netloc:
        raise ValueError("no user or password may stand here; name the token under `token`")
    return address.rstrip("/")


# What a job on SLURM and the ways to find it again rest on (`targets.slurm_script`).
_OWN_OPTIONS = (
    *("array", "comment", "dependency", "error", "export", "input", "job-name", "no-requeue", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "requeue", "signal", "time", "wrap", "wait", "test-only"),
)


def _not_our_own(option: str) -> str:
    name = option.removeprefix("--").partition("=")[0]
    if any(own.startswith(name) for own in _OWN_OPTIONS):  # sbatch takes them abbreviated too
        raise ValueError("bfp sets this itself; leave it out")
    return option


SbatchOption = Annotated[str, StringConstraints(pattern=SBATCH_OPTION_PATTERN), AfterValidator(_not_our_own)]


def _from_home_or_root(path: str) -> str:
    if not path.startswith(("/", "~/")):
        raise ValueError("a path on the cluster, from / or your home: ~/.config/bfp/secrets.env")
    return path


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
    environment: Annotated[Text, AfterValidator(from_here)] | None = Field(
        None,
        description="The virtual environment on the cluster with bfp in it; null: the one that submits.",
        examples=["/data/envs/bfp"],
    )
    container: Annotated[Text, AfterValidator(from_here)] | None = Field(
        None, description="An Apptainer image with bfp in it, in place of an environment.", examples=["/data/bfp.sif"]
    )
    secrets_file: Annotated[Text, AfterValidator(_from_home_or_root)] | None = Field(
        None,
        description="A file on the cluster of NAME=value lines that the job reads: the credentials of the storage. It "
        "has to be yours alone (chmod 600).",
        examples=["~/.config/bfp/secrets.env"],
    )
    logs: SharedFolder | None = Field(
        None, description="Where the job's own log goes; null: into the run's folder, where that is a shared path."
    )
    options: list[SbatchOption] = Field([], description="More lines for sbatch.", examples=[["--constraint=a100"]])

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
