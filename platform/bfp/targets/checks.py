"""What keeps a run from starting, said before anything is written: another spec, another submitter,
a claim that is too large."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import bfp
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.runs import RunFolder
from bfp.specs import Benchmark, Finetune, Infer, Pretrain, Spec, dump, loads
from bfp.specs.profile import Profile
from bfp.specs.submitting import differences
from bfp.storage import Place, place

RESOLVED_BY = "# resolved by bfp "  # and the version: the first line of a run's spec.yaml


def run_folder(spec: Spec) -> Place:
    """The folder of a spec's run."""
    return place(spec.output) / spec.name


def run_spec(spec: Spec) -> str:
    """What stands in a run's spec.yaml: the resolved spec under the version that resolved it."""
    return f"{RESOLVED_BY}{bfp.__version__}\n{dump(spec)}"


def check_same_spec(spec: Spec, text: str, *, run: RunFolder) -> None:
    """Raise InputError where the spec.yaml of a run, as text, is that of another spec."""
    try:
        before = loads(text, file=f"{run.folder}/spec.yaml")
    except InputError as error:
        first = text.partition("\n")[0]
        writer = first.removeprefix(RESOLVED_BY) if first.startswith(RESOLVED_BY) else "an unknown version"
        raise InputError(
            f"{run.folder}: a run of bfp {writer}, whose spec bfp {bfp.__version__} cannot read; put it right, or give "
            f"--name another:\n{error}"
        ) from error
    if changed := differences(before, spec):
        lines = "\n".join(f"    {entry.path}: {entry.old} → {entry.new}" for entry in changed)
        raise InputError(
            f"{run.folder}: a run with this name was made from another spec (its value → the new one):\n{lines}\n"
            "  give --name another, or take the changes back; what else stands in `compute`, and the checkpoints' "
            "cadence, may change freely"
        )


def check_idle(run: RunFolder) -> None:
    """Raise InputError where a run is going on."""
    if holder := run.holder():
        raise InputError(
            f"{run.folder}: this run is going on (process {holder['pid']} on {holder['host']}); "
            f"follow it with `bfp status {run.folder}`"
        )


def check_claims(spec: Spec, capacity: Capacity) -> None:
    """Raise InputError where the run would wait for ever for CPUs or GPUs that the target does not have."""
    cpus, gpus, fields = claims(spec, capacity)
    if isinstance(spec, Pretrain) and cpus > capacity.cpus:
        raise InputError(
            f"compute: {spec.compute.workers} × {spec.compute.cpus_per_worker} CPUs are claimed and "
            f"{capacity.where} has {capacity.cpus}; lower compute.workers or compute.cpus_per_worker"
        )
    if gpus > capacity.gpus:
        raise InputError(
            f"compute: {gpus:g} GPUs are claimed ({fields}) and {capacity.where} has {capacity.gpus}; claim fewer, or "
            "0 to compute on CPUs"
        )


def check_tracking(profile: Profile) -> None:
    """Raise InputError where figures are to go to MLflow and its client is not installed."""
    if profile.local.mlflow is not None and find_spec("mlflow") is None:
        raise InputError(f"{profile.file}: {profile.table}.mlflow: needs MLflow's client: pip install 'bfp[mlflow]'")


class Claims(NamedTuple):
    """What a spec wants all at once; what it leaves of the CPUs is Ray Data's, which spreads over those that are there.

    fields: those of `compute` that say how many GPUs.
    """

    cpus: int
    gpus: float
    fields: str


def claims(spec: Spec, capacity: Capacity) -> Claims:
    """What a spec claims of a target; where it does not say how many GPUs, that depends on whether there are any."""
    match spec:
        case Pretrain(compute=compute):
            each = int(capacity.gpus > 0) if compute.gpus_per_worker is None else compute.gpus_per_worker
            cpus = compute.workers * compute.cpus_per_worker
            return Claims(cpus, compute.workers * each, "workers × gpus_per_worker, by itself one each")
        case Finetune(compute=compute) | Benchmark(compute=compute):
            return Claims(0, min(1, capacity.gpus) if compute.gpus is None else compute.gpus, "gpus")
        case Infer(compute=compute):
            copies, of_each = compute.models, compute.gpus_per_model
            gpus = min(copies, capacity.gpus) if of_each is None else copies * of_each
            return Claims(0, gpus, "models × gpus_per_model")
    return Claims(0, 0, "")


def with_claims(spec: Spec, capacity: Capacity) -> Spec:
    """The spec with the GPUs that it takes, where it leaves them to the target: some may be yet to come there."""
    changes: dict[str, float] = {}
    match spec:
        case Pretrain() if spec.compute.gpus_per_worker is None:
            changes = {"gpus_per_worker": int(capacity.gpus > 0)}
        case Finetune() | Benchmark() if spec.compute.gpus is None:
            changes = {"gpus": claims(spec, capacity).gpus}
        case Infer() if spec.compute.gpus_per_model is None:
            changes = {"gpus_per_model": claims(spec, capacity).gpus / spec.compute.models}
    return spec.model_copy(update={"compute": spec.compute.model_copy(update=changes)}) if changes else spec
