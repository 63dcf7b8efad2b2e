"""What went wrong on a worker, in a few lines: Ray's wrappers taken off, the cause in plain words.

The traceback is not lost: the error that is raised here is chained to what Ray raised, and `bfp --debug` shows all.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import bfp
from bfp.errors import BfpError, JobFailed

# Ray's own failures by the name of their class, so that this module can be imported without Ray.
IN_PLAIN_WORDS = {
    "OutOfMemoryError": "a worker was ended, as the machine ran out of memory; lower compute.workers or the batch size",
    "ObjectStoreFullError": "Ray's object store is full; lower compute.workers",
    "OutOfDiskError": "the disk that holds Ray's temporary files is full; make room under /tmp",
    "WorkerCrashedError": "a worker died without a word, as when the system runs out of memory; lower compute.workers",
    "ActorDiedError": "a worker died without a word, as when the system runs out of memory; lower compute.workers",
    "LocalRayletDiedError": "Ray itself died on this machine; submit again, and see `bfp doctor`",
    "NodeDiedError": "a machine of the cluster died; submit again to resume",
}


def in_plain_words(error: BaseException) -> BfpError:
    """The error as bfp tells it: its own errors as they are, whatever else as JobFailed with the cause's place."""
    cause = root_cause(error)
    if isinstance(cause, BfpError):
        return cause
    words = IN_PLAIN_WORDS.get(type(cause).__name__)
    if words is not None and type(cause).__module__.startswith("ray."):
        return JobFailed(words)
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if type(cause).__name__ == "OutOfMemoryError" or "alloc_cpu" in said:  # torch's, of a GPU and of the host
        return JobFailed(f"out of memory{_place(cause)}; a smaller batch, or one computed in parts, needs less")
    return JobFailed(f"{type(cause).__name__}: {said}{_place(cause)}")


def root_cause(error: BaseException) -> BaseException:
    """The exception under Ray's wrappers: of a task, an actor, a training worker, a dataset."""
    while True:
        inner = _wrapped(error)
        if inner is None or inner is error:
            return error
        error = inner


def _wrapped(error: BaseException) -> BaseException | None:
    if not type(error).__module__.startswith("ray.") and not hasattr(error, "as_instanceof_cause"):
        return None
    for candidate in (
        getattr(error, "cause", None),
        next(iter(getattr(error, "worker_failures", {}).values()), None),
        getattr(error, "controller_failure", None),
        error.__cause__,
    ):
        if isinstance(candidate, BaseException):
            return candidate
    return None


def _place(error: BaseException) -> str:
    """Where in bfp it was raised; "" where that is not known, as after a journey between processes."""
    package = str(Path(bfp.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
    if not frames:
        return ""
    return f"\n    at bfp/{Path(frames[-1].filename).relative_to(package)}:{frames[-1].lineno}, in {frames[-1].name}"
