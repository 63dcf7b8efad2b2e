"""The training state to a folder and back: complete or invisible, and readable by another number of workers.

    <folder>/step-00001000/      what torch.distributed.checkpoint wrote: files of each worker, and `.metadata`
    <folder>/step-00001000.json  the marker, written last: the step, and size and SHA-256 of every file

Without its marker a checkpoint does not exist, so a kill at any moment leaves the one before. `.metadata` is a
pickle, and unpickling runs what is in it: nothing is read before its hash agrees with the marker's, and nothing is
unpickled but what torch writes there.

Training goes on meanwhile (`Writer`): it stops for a copy of the state, no longer. On disk the workers write in place;
for an object store each writes to a local folder and uploads its own files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from bfp.errors import StorageError
from bfp.pretraining.schedules import Length, Schedules
from bfp.pretraining.step import TrainState
from bfp.runs.scratch import scratch
from bfp.storage import Place, plainly

FORMAT = 2
_MARKER = re.compile(r"step-(\d{8,})\.json")
_PIECE = 1 << 26  # bytes of a file of an object store that are asked for at a time
_GO_ON = "; delete its step-*.json to go on from the one before"
# What torch pickles into `.metadata`: classes of these modules, and these names.
_METADATA = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_METADATA_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # where Python 3.13 has it
}

Facts = dict[str, tuple[int, str]]  # {name of a file: (bytes, SHA-256)}
T = TypeVar("T")


class Marker(TypedDict):
    """The marker file: format, how many steps are done, how many workers wrote it, and {name: [bytes, SHA-256]}.

    steps: how many it was to be, and earlier: how many before it was extended, as [steps, until] (see `schedules`).
    """

    format: int
    step: int
    steps: int
    earlier: list[Length]
    workers: int
    files: Facts


class Writer:
    """Writes checkpoints in a thread of its own while training goes on; one at a time. Every worker has one.

    From the first checkpoint on it holds a copy of this worker's share of the state in host memory (16 bytes a
    parameter; page-locked where the state is on a GPU), which is what peak memory grows by.

    schedules: those that the state is trained by. keep: of the last checkpoints; with keep_every, those whose step is a
    multiple of it stay as well. before_marker: called on rank 0 with the step, in that thread, when all files are
    there. Leaving its `with` waits for the last one, and raises what went wrong with it unless something else did.
    """

    def __init__(
        self,
        folder: Place,
        *,
        schedules: Schedules,
        keep: int,
        keep_every: int | None,
        before_marker: Callable[[int], None],
    ) -> None:
        self._folder, self._schedules, self._keep, self._keep_every = folder, schedules, keep, keep_every
        self._before_marker = before_marker
        _alone_is_fine()
        self._rank, workers = _rank_and_workers()
        # Of its own: the steps' collectives go on at the same time, and two threads may not share a group.
        self._group: Any = dist.new_group(backend="gloo") if workers > 1 else None
        self._stager: DefaultStager | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()
        if self._stager is not None:
            self._stager.close()

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint of the state as it is now, once the one before is written."""
        self.wait()
        if self._stager is None:
            cuda = state.cls_centre.is_cuda
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
                )
            )
        copied: Any = self._stager.stage(tensors(state))
        self._thread = threading.Thread(target=self._write, args=(copied, state.step), daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """Until nothing is being written; the seconds that it took, 0 where nothing was. Raises what went wrong."""
        began_s, waited_s = time.perf_counter(), 0.0
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
            waited_s = time.perf_counter() - began_s
        self.check()
        return waited_s

    @property
    def saved(self) -> int | None:
        """The step of the last complete checkpoint; None before the first."""
        return max(steps(self._folder), default=None)

    def check(self) -> None:
        """Raise what went wrong with a checkpoint since the last call."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, copied: dict[str, Any], step: int) -> None:
        try:
            self._commit(copied, step)
        except BaseException as error:  # handed to the thread that trains, which raises it
            self._error = error

    def _commit(self, copied: dict[str, Any], step: int) -> None:
        """Every worker's files, then rank 0's marker. None of them ends before it is there."""
        target = self._folder / _name(step)
        with _local(target) as local:
            self._agree(lambda: self._clear(local))  # before any worker writes
            try:
                with plainly(Place(str(local)), "write"):
                    _dcp_save(copied, local, self._group)
            except StorageError:
                with suppress(OSError):  # what went wrong first is what matters
                    self._clear(local)  # a full disk has room again
                raise
            everyones = self._agree(lambda: self._hand_in(local, target))
        self._agree(lambda: self._mark(step, everyones))

    def _clear(self, local: Path) -> None:
        """Remove what a kill has left."""
        if self._rank == 0:
            for file in local.iterdir():
                file.unlink()

    def _hand_in(self, local: Path, target: Place) -> Facts:
        """Upload this worker's files, where they are not in place; what they are."""
        own = [file for file in sorted(local.iterdir()) if file.name.startswith(f"__{self._rank}_")]
        own += [local / ".metadata"] if self._rank == 0 else []
        facts = {file.name: (file.stat().st_size, _sha256(file)) for file in own}
        if not target.is_local:
            for file in own:
                (target / file.name).upload(file)
        return facts

    def _mark(self, step: int, everyones: list[Facts]) -> None:
        """Write the marker, and remove what is no longer kept."""
        if self._rank == 0:
            self._before_marker(step)
            marker = Marker(
                format=FORMAT,
                step=step,
                steps=self._schedules.steps,
                earlier=list(self._schedules.earlier),
                workers=len(everyones),
                files={file: fact for own in everyones for file, fact in sorted(own.items())},
            )
            (self._folder / f"{_name(step)}.json").write(json.dumps(marker, indent=1).encode())
            _prune(self._folder, keep=self._keep, keep_every=self._keep_every)

    def _agree(self, work: Callable[[], T]) -> list[T]:
        """What each worker's `work` returns, when all have done it; raises, on all of them, what one raises."""
        if self._group is None:
            return [work()]
        done: tuple[T | None, Exception | None]
        try:
            done = work(), None
        except Exception as error:  # raised below, here too
            done = None, error
        everyones: list[Any] = [None] * self._group.size()
        dist.all_gather_object(everyones, done, group=self._group)
        for _, raised in everyones:
            if raised is not None:
                raise raised
        return [found for found, _ in everyones]


def steps(folder: Place) -> list[int]:
    """The steps of the complete checkpoints in the folder, in order."""
    return sorted(int(found[1]) for name in folder.names() if (found := _MARKER.fullmatch(name)))


def lengths(folder: Place, *, step: int) -> tuple[int, list[Length]]:
    """How many steps the run was to have at the checkpoint of that step, and before (see `schedules`)."""
    marker = _marker(folder, step)
    return marker["steps"], [Length(*length) for length in marker["earlier"]]


def load(state: TrainState, folder: Place, *, step: int) -> Marker:
    """Fill the state, of the same architecture, from the checkpoint of that step. Every worker calls it.

    Raises StorageError where a file is missing or is not what was written.
    """
    marker = _fill(tensors(state), folder, step=step, alone=_rank_and_workers()[1] == 1)
    state.step = step
    for moments in state.optimiser.state.values():
        moments["step"].fill_(step)
    return marker


def load_teacher(vit: nn.Module, folder: Place, *, step: int) -> Tensor:
    """Fill a ViT, of the same architecture, with the teacher's weights after that step; its mask token, (1, D).

    One process calls it, however many workers wrote the checkpoint; the folder is only read. Raises StorageError as
    `load` does, and where the checkpoint was removed since: a run that goes on keeps its last ones only.
    """
    wanted = {f"backbone.vit.{name}": weight for name, weight in _detached(vit).items()}
    mask_token = wanted["backbone.mask_token"] = torch.zeros_like(wanted["backbone.vit.cls_token"][0])
    try:
        _fill({"teacher": wanted}, folder, step=step, alone=True)
    except (StorageError, OSError) as error:
        if step in (there := steps(folder)):
            raise
        kept = ", ".join(f"{each:,}" for each in there) or "none"
        raise StorageError(
            f"{folder}: no complete checkpoint of step {step:,}, or it was removed while it was read; those of steps "
            f"{kept} are there: name one of them"
        ) from error
    return mask_token


def _fill(wanted: dict[str, Any], folder: Place, *, step: int, alone: bool) -> Marker:
    """Read these tensors, named as in `tensors`, from the checkpoint of that step, once its files have been checked."""
    marker = _marker(folder, step)
    source = folder / _name(step)
    with nullcontext(source.path) if source.is_local else scratch() as local:
        for name, (_, sha256) in marker["files"].items():
            if not source.is_local:
                with open(local / name, "wb") as file:  # too large to hold
                    file.writelines((source / name).pieces(_PIECE))
            _check(source / name, local / name, sha256)
        _alone_is_fine()
        try:
            with open(local / ".metadata", "rb") as file:
                _TorchsOwn(file).load()
            dcp.load(wanted, checkpoint_id=local, no_dist=alone)
        except (pickle.UnpicklingError, CheckpointException) as error:
            raise StorageError(f"{source}: not a checkpoint of this network: {error}{_GO_ON}") from error
    return marker


class _TorchsOwn(pickle.Unpickler):
    """Unpickles nothing but what `.metadata` is made of."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module in _METADATA or (module, name) in _METADATA_NAMES else None
        if found is None and module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            found = dtype
        if found is None or (module in _METADATA and not isinstance(found, type)):
            raise pickle.UnpicklingError(f"its .metadata asks for {module}.{name}, which torch does not write there")
        return found


def tensors(state: TrainState) -> dict[str, Any]:
    """The tensors that make up a state, by kind and parameter name; they share the state's memory."""
    parameters = dict(state.student.named_parameters())
    moments = {name: state.optimiser.state[parameter] for name, parameter in parameters.items()}
    return {
        "student": _detached(state.student),
        "teacher": _detached(state.teacher),
        "exp_avg": {name: moment["exp_avg"] for name, moment in moments.items()},
        "exp_avg_sq": {name: moment["exp_avg_sq"] for name, moment in moments.items()},
        "centre": {"cls": state.cls_centre, "patch": state.patch_centre},
    }


def _detached(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _marker(folder: Place, step: int) -> Marker:
    place = folder / f"{_name(step)}.json"
    try:
        marker: Marker = json.loads(place.read())
        complete = marker.keys() >= Marker.__annotations__.keys() or ("format" in marker and marker["format"] != FORMAT)
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise StorageError(f"{place}: not a marker that bfp wrote, or damaged; delete it to go on from the one before")
    if marker["format"] != FORMAT:
        raise StorageError(
            f"{place}: checkpoint format {marker['format']}, this bfp reads {FORMAT}; use the bfp that wrote it"
        )
    return marker


def _check(place: Place, local: Path, sha256: str) -> None:
    if not local.is_file():
        raise StorageError(f"{place}: the checkpoint's file is missing{_GO_ON}")
    if _sha256(local) != sha256:
        raise StorageError(
            f"{place}: not what was written (its SHA-256 differs from the marker's); it is not read{_GO_ON}"
        )


def _prune(folder: Place, *, keep: int, keep_every: int | None) -> None:
    """Remove all but the last `keep` complete checkpoints and those of every `keep_every` steps; markers first."""
    complete = steps(folder)
    kept = {*complete[-keep:], *(step for step in complete if keep_every and step % keep_every == 0)}
    for step in complete:
        if step not in kept:
            (folder / f"{_name(step)}.json").delete()
    names = {_name(step) for step in kept}
    for entry in list(folder.files()):
        inside = entry.place.parent
        if inside.name.startswith("step-") and inside.name not in names:
            entry.place.delete()
            if inside.is_local and not any(inside.path.iterdir()):
                inside.path.rmdir()


@contextmanager
def _local(target: Place) -> Iterator[Path]:
    """The target itself where it is on disk, else a local folder for as long as it is needed."""
    if target.is_local:
        with plainly(target, "write"):
            target.path.mkdir(parents=True, exist_ok=True)
        yield target.path
    else:
        with scratch() as folder:
            yield folder


def _alone_is_fine() -> None:
    """No more of torch's warning that there is no process group. For good: to take it back concerns all threads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _dcp_save(tensors: dict[str, Any], local: Path, group: ProcessGroup | None) -> None:
    try:
        dcp.save(tensors, checkpoint_id=local, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # of each worker that failed, its error and a traceback
        if shutil.disk_usage(local).free < 2**20:  # torch says that its file ends at another place than it should
            raise OSError(errno.ENOSPC, "no space left") from error
        raise next(iter(error.failures.values()))[0] from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _rank_and_workers() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
