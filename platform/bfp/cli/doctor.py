"""`bfp doctor`: what a job needs from this machine, each point with what was found and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from bfp import __version__
from bfp.errors import JobFailed
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

Verdict = Literal["ok", "warn", "fail"]


class Found(NamedTuple):
    """One point: what was looked at, how it is, what was found, and the remedy where one is needed."""

    point: str
    verdict: Verdict
    text: str
    remedy: str = ""


def examine() -> list[Found]:
    """Look at every point, the quick ones first."""
    points: list[Callable[[], list[Found]]] = [
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


def findings_text(findings: list[Found]) -> Iterator[RenderableType]:
    """A line a point, the remedy below it."""
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for found in findings:
        yield Text.assemble((f"{found.verdict:<5}", styles[found.verdict]), f" {found.point:<14} {found.text}")
        if found.remedy:
            yield f"      {'':<14} → {found.remedy}"
    bad = sum(found.verdict == "fail" for found in findings)
    yield "ready" if not bad else f"jobs cannot run: {counted(bad, 'point')} of {len(findings)} failed"


def _python() -> list[Found]:
    text = f"bfp {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return [Found("python", "ok", text)]
    return [Found("python", "fail", text, "use Python 3.11, 3.12 or 3.13")]


def _packages() -> list[Found]:
    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in versions.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if missing:
        return [Found("packages", "fail", f"{', '.join(missing)} not installed", INSTALL)]
    return [Found("packages", "ok", text)]


def _extras() -> list[Found]:
    found = []
    for name, (extra, purpose) in EXTRAS.items():
        version = _version(name)
        if version is None:
            found.append(
                Found(f"extra {extra}", "warn", f"{name} is not installed", f"for {purpose}: pip install {name}")
            )
        else:
            found.append(Found(f"extra {extra}", "ok", f"{name} {version}, for {purpose}"))
    return found


def _cpus() -> list[Found]:
    from bfp.drivers.plan import cpus_here

    cpus, machine = cpus_here(), os.cpu_count() or 1
    text = f"{cpus}" + (f" of the machine's {machine}" if cpus != machine else "")
    if cpus == 1:
        return [Found("CPUs", "warn", text, "jobs run on one CPU, but slowly")]
    return [Found("CPUs", "ok", text)]


def _memory() -> list[Found]:
    from bfp.targets.ray_here import object_store_bytes

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = total >= ENOUGH_MEMORY_BYTES
    found = [
        Found(
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
            Found("shared memory", "ok" if enough else "warn", f"{shared.total / GIB:.1f} GiB in /dev/shm", remedy)
        )
    return found


def _disk() -> list[Found]:
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
        found.append(Found(point, verdict, f"{free / GIB:.1f} GiB free in {folder}", remedy[verdict]))
    return found


def _credentials() -> list[Found]:
    """The names of what is set, never a value."""
    names = [name for name in S3_VARIABLES if os.environ.get(name)]
    files = [file for file in ("~/.aws/credentials", "~/.aws/config") if os.path.exists(os.path.expanduser(file))]
    if names or files:
        return [Found("S3", "ok", f"set: {', '.join([*names, *files])}")]
    return [
        Found("S3", "ok", "no credentials set; s3:// places would need AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    ]


def _gpu() -> list[Found]:
    import torch

    if not torch.cuda.is_available():
        return [Found("GPU", "ok", "none that torch can use; jobs run on the CPU")]
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [Found("GPU", "ok", f"{', '.join(names)} (CUDA {torch.version.cuda})")]


def _ray() -> list[Found]:
    from bfp.targets.ray_here import start_ray, stop_ray

    began = time.monotonic()
    try:
        logs = start_ray(cpus=1)
    except (JobFailed, OSError) as error:
        return [Found("Ray", "fail", str(error), "wait until the machine is less busy, and make room under /tmp")]
    import ray

    try:
        ray.get(ray.remote(platform.node).remote())
    except (RuntimeError, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        stop_ray(logs, keep_logs=True)
        return [Found("Ray", "fail", f"ran no task: {type(error).__name__}: {said}", f"see its own logs in {logs}")]
    stop_ray(logs, keep_logs=False)
    return [Found("Ray", "ok", f"started and ran a task in {time.monotonic() - began:.0f} s")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
