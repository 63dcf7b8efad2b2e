"""`bfp doctor`: what a job needs from this machine, each point with what was found and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.cli.output import write_note
from bfp.drivers.plan import Capacity
from bfp.errors import InputError, Interrupted, JobFailed
from bfp.specs import Spec
from bfp.targets.checks import claims
from bfp.targets.cluster import Check, Verdict
from bfp.targets.remote import UNSEEN, Remote
from bfp.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

GIB = 1 << 30
ENOUGH_MEMORY_BYTES = 6 * GIB  # what the demo needs
ENOUGH_DISK_BYTES = 5 * GIB
ENOUGH_SHARED_MEMORY_BYTES = 1 * GIB
NEEDED = ("torch", "torchvision", "timm", "ray", "pyarrow", "nibabel", "SimpleITK", "numpy", "scipy", "scikit-learn")
EXTRAS = {"s3fs": ("s3", "s3:// places"), "nilearn": ("demo", "bfp demo")}
S3_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
)

INSTALL = "in the checkout of bfp: pip install -r requirements.lock"


def examine() -> list[Check]:
    """Look at every point, the quick ones first."""
    points: list[Callable[[], list[Check]]] = [
        _python,
        _packages,
        _extras,
        _cpus,
        _memory,
        _disk,
        _credentials,
        _gpu,
        _ray,
    ]
    return [found for point in points for found in point()]


def examine_cluster(target: Remote, spec: Spec | None) -> list[Check]:
    """Look at every point of a cluster, from here and, where a spec is given, from the nodes' side too.

    For that a job of its own is sent, which plans the spec there and writes nothing but a probe beside its output (on
    SLURM the log of a job too): versions, CPUs and GPUs against what the spec claims, inputs, and whether the output
    can be written.
    """
    found: list[Check] = []
    point = "cluster"
    try:
        found += target.backend.checks()
        if spec is None:
            more = "looks at versions there, at what SPEC claims and at its paths too"
            return [*found, Check("plan there", "ok", f"not asked for: `bfp doctor SPEC --on {target.name}` {more}")]
        point = "plan here"
        rows = dict(target.plan(spec).rows)
        point = "cluster"
        clear = f"nothing stands against {spec.kind} {spec.name} as seen from here"
        found.append(Check("plan here", "ok", rows.get(UNSEEN, clear)))
        told = target.ask(spec, listener=write_note)
        found += _claims(spec, target.backend.capacity(), free=told.get("free"))
        found += _from_its_side(told)
    except (InputError, JobFailed, Interrupted) as error:
        found.append(Check(point, "fail", str(error)))
    return found


def _claims(spec: Spec, capacity: Capacity, *, free: dict[str, int] | None) -> Iterator[Check]:
    """What the spec wants at once, and what that leaves to Ray Data; `Remote.plan` has refused what does not fit.

    free: of a cluster that others use too, what they leave now.
    """
    cpus, gpus, _ = claims(spec, capacity)
    of_gpus = f" and {gpus:g} of {counted(capacity.gpus, 'GPU')}" if capacity.gpus else ""
    left = f"{counted(capacity.cpus - cpus, 'CPU')} left for Ray Data"
    needs = ", of which pretraining needs none: it reads its store itself" if spec.kind == "pretrain" else ""
    yield Check("claims", "ok", f"{cpus} of {counted(capacity.cpus, 'CPU')}{of_gpus}; {left}{needs}")
    if free is not None:
        enough = free["cpus"] >= max(1, cpus) and free["gpus"] >= gpus
        text = f"{counted(free['cpus'], 'CPU')} and {counted(free['gpus'], 'GPU')}"
        remedy = "" if enough else "other jobs hold the rest, and the run would wait; `ray status` there says more"
        yield Check("free there now", "ok" if enough else "warn", text, remedy)


def _from_its_side(told: dict[str, Any]) -> Iterator[Check]:
    """What the driver found where it would run."""
    there = f"{told['bfp']} on Python {told['python']}, Ray {told['ray']}"
    here = platform.python_version()
    if told["python"].rpartition(".")[0] == here.rpartition(".")[0]:
        yield Check("bfp there", "ok", there)
    else:
        yield Check("bfp there", "warn", f"{there}; Python {here} here", "what differs may differ in a digit")
    yield Check("plan there", "ok", "; ".join(f"{label} {text}" for label, text in told["rows"]))
    for warning in told["warnings"]:
        yield Check("plan there", "warn", warning)


def findings_text(findings: list[Check]) -> Iterator[RenderableType]:
    """A line a point, the remedy below it."""
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for found in findings:
        yield Text.assemble((f"{found.verdict:<5}", styles[found.verdict]), f" {found.point:<14} {found.text}")
        if found.remedy:
            yield f"      {'':<14} → {found.remedy}"
    bad = sum(found.verdict == "fail" for found in findings)
    yield "ready" if not bad else f"jobs cannot run: {counted(bad, 'point')} of {len(findings)} failed"


def _python() -> list[Check]:
    text = f"bfp {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return [Check("python", "ok", text)]
    return [Check("python", "fail", text, "use Python 3.11, 3.12 or 3.13")]


def _packages() -> list[Check]:
    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in versions.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if missing:
        return [Check("packages", "fail", f"{', '.join(missing)} not installed", INSTALL)]
    return [Check("packages", "ok", text)]


def _extras() -> list[Check]:
    found = []
    for name, (extra, purpose) in EXTRAS.items():
        version = _version(name)
        if version is None:
            found.append(
                Check(f"extra {extra}", "warn", f"{name} is not installed", f"for {purpose}: pip install {name}")
            )
        else:
            found.append(Check(f"extra {extra}", "ok", f"{name} {version}, for {purpose}"))
    return found


def _cpus() -> list[Check]:
    from bfp.drivers.plan import cpus_here

    cpus, machine = cpus_here(), os.cpu_count() or 1
    text = f"{cpus}" + (f" of the machine's {machine}" if cpus != machine else "")
    if cpus == 1:
        return [Check("CPUs", "warn", text, "jobs run on one CPU, but slowly")]
    return [Check("CPUs", "ok", text)]


def _memory() -> list[Check]:
    from bfp.targets.ray_here import object_store_bytes

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = total >= ENOUGH_MEMORY_BYTES
    found = [
        Check(
            "memory",
            "ok" if enough else "warn",
            f"{total / GIB:.1f} GiB, of which {object_store_bytes() / GIB:.1f} GiB for Ray's object store",
            "" if enough else "lower compute.workers and the batch size in your specs",
        )
    ]
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm")
        enough = shared.total >= ENOUGH_SHARED_MEMORY_BYTES
        remedy = "" if enough else "in a container: --shm-size=2g, else Ray is slow"
        found.append(
            Check("shared memory", "ok" if enough else "warn", f"{shared.total / GIB:.1f} GiB in /dev/shm", remedy)
        )
    return found


def _disk() -> list[Check]:
    found = []
    for point, folder in (("disk here", os.getcwd()), ("disk /tmp", "/tmp")):
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        verdict: Verdict = "fail" if not writable else "ok" if free >= ENOUGH_DISK_BYTES else "warn"
        remedy = {
            "ok": "",
            "warn": "make room, or name another `output` and `store`",
            "fail": "no permission to write here",
        }
        found.append(Check(point, verdict, f"{free / GIB:.1f} GiB free in {folder}", remedy[verdict]))
    return found


def _credentials() -> list[Check]:
    """The names of what is set, never a value."""
    names = [name for name in S3_VARIABLES if os.environ.get(name)]
    files = [file for file in ("~/.aws/credentials", "~/.aws/config") if os.path.exists(os.path.expanduser(file))]
    if names or files:
        return [Check("S3", "ok", f"set: {', '.join([*names, *files])}")]
    return [
        Check("S3", "ok", "no credentials set; s3:// places would need AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    ]


def _gpu() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        return [Check("GPU", "ok", "none that torch can use; jobs run on the CPU")]
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [Check("GPU", "ok", f"{', '.join(names)} (CUDA {torch.version.cuda})")]


def _ray() -> list[Check]:
    from bfp.targets.ray_here import start_ray, stop_ray

    began = time.monotonic()
    try:
        logs = start_ray(cpus=1)
    except (JobFailed, OSError) as error:
        return [Check("Ray", "fail", str(error), "wait until the machine is less busy, and make room under /tmp")]
    import ray

    try:
        ray.get(ray.remote(platform.node).remote())
    except (RuntimeError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        stop_ray(logs, keep_logs=True)
        return [Check("Ray", "fail", f"ran no task: {type(error).__name__}: {said}", f"see its own logs in {logs}")]
    stop_ray(logs, keep_logs=False)
    return [Check("Ray", "ok", f"started and ran a task in {time.monotonic() - began:.0f} s")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
