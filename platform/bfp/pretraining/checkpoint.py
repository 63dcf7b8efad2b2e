"""The training state to a folder and back: complete or invisible, and readable by another number of workers.

    <folder>/step-00001000/      what torch.distributed.checkpoint wrote: files of each worker, and `.metadata`
    <folder>/step-00001000.json  the marker, written last: the step, and size and SHA-256 of every file

Without its marker a checkpoint does not exist, so a kill at any moment leaves the one before. `.metadata` is a
pickle, and unpickling runs what is in it: nothing is read before its hash agrees with the marker's.

On disk the workers write in place; for an object store each writes to a local folder and uploads its own files.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from bfp.errors import StorageError
from bfp.pretraining.step import TrainState
from bfp.runs.scratch import scratch
from bfp.storage import Place

FORMAT = 1


class Marker(TypedDict):
    """The marker file: format, how many steps are done, how many workers wrote it, and {name: [bytes, SHA-256]}."""

    format: int
    step: int
    workers: int
    files: dict[str, tuple[int, str]]


def save(state: TrainState, folder: Place, *, keep: int) -> None:
    """Write a checkpoint of the state, then remove all but the last `keep`. Every worker calls it."""
    rank, workers = _rank_and_workers()
    name = _name(state.step)
    target = folder / name
    with _local(target) as local:
        if rank == 0:
            for file in local.iterdir():  # left by a kill; no worker writes before rank 0 takes part in `save`
                file.unlink()
        with _alone_is_fine():
            dcp.save(tensors(state), checkpoint_id=local, no_dist=workers == 1)
        own = [file for file in sorted(local.iterdir()) if file.name.startswith(f"__{rank}_")]
        own += [local / ".metadata"] if rank == 0 else []
        facts = {file.name: (file.stat().st_size, _sha256(file)) for file in own}
        if not target.is_local:
            for file in own:
                (target / file.name).upload(file)
    everyones: list[dict[str, tuple[int, str]]] = [facts]
    if workers > 1:
        everyones = [{} for _ in range(workers)]
        dist.all_gather_object(everyones, facts)
    if rank == 0:
        files = {file: fact for each in everyones for file, fact in sorted(each.items())}
        marker = Marker(format=FORMAT, step=state.step, workers=workers, files=files)
        (folder / f"{name}.json").write(json.dumps(marker, indent=1).encode())
        _prune(folder, keep=keep)


def steps(folder: Place) -> list[int]:
    """The steps of the complete checkpoints in the folder, in order."""
    names = [name for name in folder.names() if name.startswith("step-") and name.endswith(".json")]
    return sorted(int(name.removeprefix("step-").removesuffix(".json")) for name in names)


def load(state: TrainState, folder: Place, *, step: int) -> None:
    """Fill the state, of the same architecture, from the checkpoint of that step. Every worker calls it.

    Raises StorageError where a file is missing or is not what was written.
    """
    _fill(tensors(state), folder, step=step, alone=_rank_and_workers()[1] == 1)
    state.step = step
    for moments in state.optimiser.state.values():
        moments["step"].fill_(step)


def load_teacher(vit: nn.Module, folder: Place, *, step: int) -> None:
    """Fill a ViT, of the same architecture, with the teacher's weights after that step.

    One process calls it, however many workers wrote the checkpoint; the folder is only read. Raises StorageError as
    `load` does, and where the checkpoint was removed since: a run that goes on keeps its last ones only.
    """
    wanted = {f"backbone.vit.{name}": weight for name, weight in _detached(vit).items()}
    try:
        _fill({"teacher": wanted}, folder, step=step, alone=True)
    except (StorageError, OSError, dcp.CheckpointException) as error:
        if step in (there := steps(folder)):
            raise
        kept = ", ".join(f"{each:,}" for each in there) or "none"
        raise StorageError(
            f"{folder}: no complete checkpoint of step {step:,}, or it was removed while it was read; those of steps "
            f"{kept} are there: name one of them"
        ) from error


def _fill(wanted: dict[str, Any], folder: Place, *, step: int, alone: bool) -> None:
    """Read these tensors, named as in `tensors`, from the checkpoint of that step, once its files have been checked."""
    marker = _marker(folder, step)
    source = folder / _name(step)
    with nullcontext(source.path) if source.is_local else scratch() as local:
        for name, (_, sha256) in marker["files"].items():
            if not source.is_local:
                (local / name).write_bytes((source / name).read())
            _check(source / name, local / name, sha256)
        with _alone_is_fine():
            dcp.load(wanted, checkpoint_id=local, no_dist=alone)


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
    marker: Marker = json.loads(place.read())
    if marker["format"] != FORMAT:
        raise StorageError(
            f"{place}: checkpoint format {marker['format']}, this bfp reads {FORMAT}; use the bfp that wrote it"
        )
    return marker


def _check(place: Place, local: Path, sha256: str) -> None:
    if not local.is_file():
        raise StorageError(
            f"{place}: the checkpoint's file is missing; delete its step-*.json to go on from the one before"
        )
    if _sha256(local) != sha256:
        raise StorageError(
            f"{place}: not what was written (its SHA-256 differs from the marker's); it is not read. "
            "Delete its step-*.json to go on from the one before"
        )


def _prune(folder: Place, *, keep: int) -> None:
    """Remove what is older than the last `keep` complete checkpoints, incomplete ones too; markers first."""
    kept = steps(folder)[-keep:]
    for step in steps(folder):
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
        target.path.mkdir(parents=True, exist_ok=True)
        yield target.path
    else:
        with scratch() as folder:
            yield folder


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Without torch's warning that there is no process group: one worker needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _rank_and_workers() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
