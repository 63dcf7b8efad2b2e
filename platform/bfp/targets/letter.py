"""The letter: all that a driver on a cluster is told, as two environment variables.

    BFP_SPEC     the resolved spec, as YAML
    BFP_TARGET   JSON: the target's name, the version of bfp that sent it, what the cluster's machines have, how many
                 nodes are to be waited for, and what the target lends in all

It is the same for every kind of cluster, and the same command reads it there: `python -m bfp drive`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bfp import __version__
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.specs import Spec, dump, loads
from bfp.specs.clusters import Cluster
from bfp.specs.profile import Profile
from bfp.specs.target import LocalTarget
from bfp.storage import place
from bfp.targets.ray_here import ENVIRONMENT

SPEC = "BFP_SPEC"
TARGET = "BFP_TARGET"
COMMAND = "python -m bfp drive"
CHECKED = "#check"  # behind a run's folder: jobs that only make its plan


@dataclass(frozen=True, slots=True)
class Letter:
    """target: its name; local: what its machines have; nodes: how many Ray has to have before the run begins; lent:
    what the job gets in all, though not each node need be there yet, None: what is there.

    check: whether the driver only makes the plan there, for `bfp doctor`.
    """

    spec: Spec
    target: str
    local: LocalTarget
    nodes: int
    lent: Capacity | None = None
    check: bool = False

    @property
    def run(self) -> str:
        """The run's folder, as a path or URI: what jobs are found by; those of a check are none of the run's."""
        return str(place(self.spec.folder)) + CHECKED * self.check

    @property
    def digest(self) -> str:
        """Of the spec: two letters of one run and one digest ask for the same."""
        return hashlib.sha256(dump(self.spec).encode()).hexdigest()[:12]

    def environment(self) -> dict[str, str]:
        """The variables of the driver and its workers."""
        told = {
            "name": self.target,
            "bfp": __version__,
            "local": self.local.model_dump(mode="json", exclude_defaults=True),
            "nodes": self.nodes,
            "lent": asdict(self.lent) if self.lent else None,
            "check": self.check,
        }
        return {**ENVIRONMENT, SPEC: dump(self.spec), TARGET: json.dumps(told, ensure_ascii=False)}

    def profile(self) -> Profile:
        """What the driver there is told of the machines."""
        return Profile(f"bfp.toml of the submitter, [{self.target}]", self.target, self.local)


def letter(spec: Spec, *, target: str, settings: Cluster, nodes: int, lent: Capacity | None = None) -> Letter:
    local = LocalTarget(brain_program=settings.brain_program, mlflow=settings.mlflow)
    return Letter(spec, target, local, nodes, lent)


def read_letter(environment: Mapping[str, str]) -> Letter:
    """The letter that a target has sent here.

    Raises InputError where there is none, or another version of bfp wrote it: it may mean other things by a field.
    """
    if SPEC not in environment or TARGET not in environment:
        raise InputError("bfp drive: nothing was sent here; it is what `bfp submit --on NAME` runs on a cluster")
    told = json.loads(environment[TARGET])
    if told["bfp"] != __version__:
        raise InputError(
            f"bfp {told['bfp']} has sent this job, and {told['name']} has bfp {__version__}: install the same on both "
            f'sides (there by the image or environment of the target), or on a Ray cluster set `code = "package"`'
        )
    return Letter(
        spec=loads(environment[SPEC], file=SPEC),
        target=told["name"],
        local=LocalTarget.model_validate(told["local"]),
        nodes=told["nodes"],
        lent=Capacity(**told["lent"]) if told["lent"] else None,
        check=told["check"],
    )


def run_digest(run: str) -> str:
    """Of a run's folder, for names that have to be short."""
    return hashlib.sha256(run.encode()).hexdigest()[:10]
