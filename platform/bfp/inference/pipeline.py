"""Sessions through Ray Data: prepared on CPUs, done by copies of the model, a few sessions in flight.

Each session is a row, and the stacks of a session are all that is held of it, so memory is bounded by how many Ray
Data lets through, not by the cohort. The model's actors claim no CPU, or a target with few of them would have none
left to prepare scans; without GPUs their threads share the CPUs with those that prepare, whichever is behind.

Only the copies of the model load torch and timm: that takes seconds of a CPU in every process that does, and neither
the driver nor those that prepare scans have a use for it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import ray.data
from ray.util.annotations import RayDeprecationWarning

from bfp.cohorts.derivatives import Masks
from bfp.cohorts.prepare import prepare
from bfp.cohorts.sessions import Session
from bfp.imaging.stacks import Recipe
from bfp.inference.outcomes import Failure, Outcome
from bfp.inference.ready import Ready, ready
from bfp.inference.way_back import ToSegment, to_segment
from bfp.storage import Place

SESSIONS_TOGETHER = 4
"""That a copy of the model predicts at a time, so that its batches are filled across them. Of four sessions of 150
stacks batches of 64 are 94 % full, of each by itself 78 %; they are 90 MB."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How the work is spread out. workers: sessions prepared at once, None for every CPU; gpus, threads: of each
    model."""

    workers: int | None
    models: int
    gpus: float
    threads: int
    batch_size: int
    retries: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


class Model(Protocol):
    """A copy of the model."""

    def outcomes(self, sessions: Sequence[Any]) -> list[Outcome | Failure]:
        """One of each session, whatever goes wrong."""
        ...


def predict_sessions(
    sessions: Sequence[tuple[str, Session]],
    *,
    model: Place,
    recipe: Recipe,
    shown: Sequence[str],
    scan_timeout_s: float,
    machine: Machine,
) -> Iterator[Outcome | Failure]:
    """The outcomes of (inputs, session), in whatever order they are done. A session whose worker died is not among
    them: preparing one is tried once, for whoever calls this to count (`drivers.attempts` says why)."""
    return _through_ray(
        sessions,
        partial(prepared, recipe=recipe, shown=tuple(shown), scan_timeout_s=scan_timeout_s),
        partial(_predictor, model, device=machine.device, batch_size=machine.batch_size),
        machine=machine,
        together=SESSIONS_TOGETHER,
    )


def segment_sessions(
    sessions: Sequence[tuple[str, Session]],
    *,
    model: Place,
    recipe: Recipe,
    shown: Sequence[str],
    drawn_on: Sequence[str],
    masks: Masks,
    scan_timeout_s: float,
    machine: Machine,
) -> Iterator[Outcome | Failure]:
    """As `predict_sessions`, of a model that segments. drawn_on: the modalities that it learned masks on.

    The copy of the model writes the mask, so that no volume passes through the driver; a session's row is committed
    after its mask, which a rerun writes again.
    """
    return _through_ray(
        sessions,
        partial(
            _prepared_to_segment,
            recipe=recipe,
            shown=tuple(shown),
            drawn_on=tuple(drawn_on),
            scan_timeout_s=scan_timeout_s,
        ),
        partial(_segmenting, model, device=machine.device, batch_size=machine.batch_size, masks=masks),
        machine=machine,
        together=1,
    )


def _through_ray(
    sessions: Sequence[tuple[str, Session]],
    prepare_one: Callable[[str, Session], Any],
    make_model: Callable[[], Model],
    *,
    machine: Machine,
    together: int,
) -> Iterator[Outcome | Failure]:
    """together: sessions that a copy of the model is given at a time."""
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a worker that dies costs its session only; the caller sees which are missing
    items = [{"session": pickle.dumps(each)} for each in sessions]
    with ray.data.DataContext.current(context):
        with warnings.catch_warnings():
            # Ray 2.60 wants its arguments named, and has no name for how often a task is tried again.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            rows = (
                ray.data.from_items(items, override_num_blocks=len(items))
                .map(
                    partial(_prepare_row, prepare_one=prepare_one),
                    num_cpus=1,
                    compute=ray.data.TaskPoolStrategy(size=machine.workers),
                    max_retries=0,
                )
                .map_batches(
                    _ModelRows,  # Ray Data takes a class for actors
                    batch_size=together,
                    fn_constructor_kwargs={"make_model": make_model, "threads": machine.threads},
                    num_cpus=0,
                    num_gpus=machine.gpus,
                    compute=ray.data.ActorPoolStrategy(size=machine.models),
                    max_restarts=-1,  # a pool whose actor has used up its restarts waits for ever
                    max_task_retries=machine.retries,
                )
            )
        for row in rows.iter_rows():
            yield pickle.loads(row["outcome"])


# on CPUs -------------------------------------------------------------------------------------------------------------


def _prepare_row(row: dict[str, Any], *, prepare_one: Callable[[str, Session], Any]) -> dict[str, Any]:
    """A session to one that is ready, or to a failure."""
    inputs, session = pickle.loads(row["session"])
    try:
        found = prepare_one(inputs, session)
    except Exception as error:  # Ray Data drops the row of a task that raises, and with it the cause
        found = Failure.of(inputs, error)
    return {"ready": pickle.dumps(found)}


def prepared(inputs: str, session: Session, *, recipe: Recipe, shown: Sequence[str], scan_timeout_s: float) -> Ready:
    """A session as a model predicts it."""
    pieces = prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s)
    by_modality = recipe.form == "neighbours"
    return ready(session, pieces, shown=shown, by_modality=by_modality, size_px=recipe.size_px, inputs=inputs)


def _prepared_to_segment(
    inputs: str,
    session: Session,
    *,
    recipe: Recipe,
    shown: Sequence[str],
    drawn_on: Sequence[str],
    scan_timeout_s: float,
) -> ToSegment:
    pieces = list(prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s))
    return to_segment(session, pieces, recipe=recipe, shown=shown, drawn_on=drawn_on, inputs=inputs)


# where the model is --------------------------------------------------------------------------------------------------


class _ModelRows:
    """A copy of the model in a process of its own."""

    def __init__(self, *, make_model: Callable[[], Model], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = make_model()

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        found = [pickle.loads(each) for each in rows["ready"]]
        failed = [each for each in found if isinstance(each, Failure)]
        done = self._model.outcomes([each for each in found if not isinstance(each, Failure)])
        return {"outcome": [pickle.dumps(each) for each in [*failed, *done]]}


def _predictor(folder: Place, *, device: str, batch_size: int) -> Model:
    from bfp.inference.predictor import predictor_of

    return predictor_of(folder, device=device, batch_size=batch_size)


def _segmenting(folder: Place, *, device: str, batch_size: int, masks: Masks) -> Model:
    from bfp.inference.segmenting import Segmenting

    return Segmenting(folder, device=device, batch_size=batch_size, masks=masks)
