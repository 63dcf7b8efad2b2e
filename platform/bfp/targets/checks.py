"""What keeps a run from starting, said before anything is written: another spec, another submitter,
a claim that is too large."""

from __future__ import annotations

from importlib.util import find_spec

import bfp
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.runs import RunFolder
from bfp.specs import Finetune, Infer, Pretrain, Spec, dump, loads
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
    if isinstance(spec, Pretrain) and claimed_cpus(spec) > capacity.cpus:
        raise InputError(
            f"compute: {spec.compute.workers} × {spec.compute.cpus_per_worker} CPUs are claimed and "
            f"{capacity.where} has {capacity.cpus}; lower compute.workers or compute.cpus_per_worker"
        )
    gpus, fields = claimed_gpus(spec)
    if gpus > capacity.gpus:
        raise InputError(
            f"compute: {gpus:g} GPUs are claimed ({fields}) and {capacity.where} has {capacity.gpus}; claim fewer or "
            "leave it out"
        )


def check_tracking(profile: Profile) -> None:
    """Raise InputError where figures are to go to MLflow and its client is not installed."""
    if profile.local.mlflow is not None and find_spec("mlflow") is None:
        raise InputError(f"{profile.file}: {profile.table}.mlflow: needs MLflow's client: pip install 'bfp[mlflow]'")


def claimed_cpus(spec: Spec) -> int:
    """The CPUs that a spec wants all at once; what other kinds do is spread over those that there are."""
    return spec.compute.workers * spec.compute.cpus_per_worker if isinstance(spec, Pretrain) else 0


def claimed_gpus(spec: Spec) -> tuple[float, str]:
    """The GPUs that a spec asks for by number, and by which fields of `compute`; without, it takes what there is."""
    match spec:
        case Pretrain():
            return spec.compute.workers * (spec.compute.gpus_per_worker or 0), "workers × gpus_per_worker"
        case Finetune():
            return spec.compute.gpus or 0, "gpus"
        case Infer():
            return spec.compute.models * (spec.compute.gpus_per_model or 0), "models × gpus_per_model"
    return 0, ""
