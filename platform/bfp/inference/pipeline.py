"""Sessions through Ray Data: prepared on CPUs, predicted by copies of the model, a few sessions in flight.

A copy of the model is given SESSIONS_TOGETHER sessions at a time, so that its batches are filled across them.

Each session is a row, and the stacks of a session are all that is held of it, so memory is bounded by how many Ray
Data lets through, not by the cohort. The model's actors claim no CPU, or a target with few of them would have none
left to prepare scans; on a CPU each computes with one thread.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from bfp.cohorts.prepare import prepare
from bfp.cohorts.sessions import Session
from bfp.errors import BfpError
from bfp.imaging.stacks import Recipe
from bfp.inference.predictor import Outcome, predictor_of
from bfp.inference.ready import Ready, ready
from bfp.storage import Place

SESSIONS_TOGETHER = 4
"""Of four sessions of 150 stacks batches of 64 are 94 % full, of each by itself 78 %; they are 90 MB."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How the work is spread out. workers: sessions prepared at once, None for every CPU; gpus: of each model."""

    workers: int | None
    models: int
    gpus: float
    batch_size: int
    retries: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A session that could not be done for a reason that is not its scans' own: it is tried again the next time."""

    inputs: str
    cause: str


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
    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a worker that dies costs its session only; the caller sees which are missing
    items = [{"session": pickle.dumps(each)} for each in sessions]
    device = "cuda" if machine.gpus else "cpu"
    with ray.data.DataContext.current(context):
        with warnings.catch_warnings():
            # Ray 2.60 wants its arguments named, and has no name for how often a task is tried again.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            prepared = ray.data.from_items(items, override_num_blocks=len(items)).map(
                partial(prepare_row, recipe=recipe, shown=tuple(shown), scan_timeout_s=scan_timeout_s),
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=machine.workers),
                max_retries=0,
            )
            rows = prepared.map_batches(
                PredictRows,  # Ray Data takes a class for actors
                batch_size=SESSIONS_TOGETHER,
                fn_constructor_kwargs={"model": model, "device": device, "batch_size": machine.batch_size},
                num_cpus=0,
                num_gpus=machine.gpus,
                compute=ray.data.ActorPoolStrategy(size=machine.models),
                max_restarts=-1,  # a pool whose actor has used up its restarts waits for ever
                max_task_retries=machine.retries,
            )
        for row in rows.iter_rows():
            yield pickle.loads(row["outcome"])


def prepare_row(row: dict[str, Any], *, recipe: Recipe, shown: Sequence[str], scan_timeout_s: float) -> dict[str, Any]:
    """A session to one that is ready, or to a failure."""
    inputs, session = pickle.loads(row["session"])
    try:
        pieces = prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s)
        by_modality = recipe.form == "neighbours"
        found = ready(session, pieces, shown=shown, by_modality=by_modality, size_px=recipe.size_px, inputs=inputs)
    except Exception as error:  # Ray Data drops the row of a task that raises, and with it the cause
        return {"ready": pickle.dumps(_failure(inputs, error))}
    return {"ready": pickle.dumps(found)}


class PredictRows:
    """A copy of the model in a process of its own."""

    def __init__(self, *, model: Place, device: str, batch_size: int) -> None:
        torch.set_num_threads(1)
        self._predictor = predictor_of(model, device=device, batch_size=batch_size)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        found: list[Ready | Failure] = [pickle.loads(each) for each in rows["ready"]]
        sessions = [each for each in found if isinstance(each, Ready)]
        outcomes: list[Outcome | Failure] = [each for each in found if isinstance(each, Failure)]
        try:
            described = self._predictor.vectors(sessions)
        except Exception as error:  # as above
            outcomes += [_failure(session.inputs, error) for session in sessions]
        else:
            outcomes += [self._outcome(*each) for each in zip(sessions, described, strict=True)]
        return {"outcome": [pickle.dumps(each) for each in outcomes]}

    def _outcome(self, session: Ready, vectors: np.ndarray) -> Outcome | Failure:
        try:
            return self._predictor.predict(session, vectors)
        except Exception as error:  # as above
            return _failure(session.inputs, error)


def _failure(inputs: str, error: Exception) -> Failure:
    return Failure(inputs, str(error) if isinstance(error, BfpError) else f"{type(error).__name__}: {error}")
