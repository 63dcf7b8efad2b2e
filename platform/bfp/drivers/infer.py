"""kind: infer — a model and new cohorts become one row of predictions a session.

1. the cohorts are listed; a session whose row exists already, from the same files and model, is not done again
2. each other one is prepared from its raw scans exactly as the model's training data were (CPUs, Ray Data)
3. a pool of copies of the model turns its stacks into vectors, pools them, and predicts
4. rows are committed in parts as they come; a kill costs the sessions since the last part
5. at the end the parts of all listed sessions are united into two tables: predictions, rejected

<run>/predictions/, <run>/rejected/   see `bfp.inference.kept`
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.cohorts import Session
from bfp.drivers.inputs import recipe_of, sessions_of
from bfp.drivers.plan import Plan
from bfp.drivers.streaming import until_stopped
from bfp.errors import InputError, Interrupted, JobFailed, Reason
from bfp.imaging import IMAGING_VERSION
from bfp.runs import Run
from bfp.specs.infer import Infer
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import Place, place

if TYPE_CHECKING:
    from bfp.inference.kept import Kept, Predictions
    from bfp.inference.pipeline import Machine
    from bfp.inference.predictor import Outcome

SESSIONS_PER_PART = 64
SECONDS_PER_PART = 30.0
SHOWN_SESSIONS = 8


def plan(spec: Infer) -> Plan:
    """Reads the model's description and lists the cohorts: what is wrong with them is said before a scan is read."""
    folder, told = _model(spec)
    sessions = [each for each in sessions_of(spec.cohorts, _preprocessing(told)) if each.scans]
    scans = Counter(scan.modality for session in sessions for scan in session.scans)
    counted = ", ".join(f"{count:,} {name}" for name, count in sorted(scans.items()))
    workers = spec.compute.workers or os.cpu_count() or 1
    warnings = [f"no {name}: the model was trained with it" for name in told["shown"] if not scans[name]]
    return Plan(
        rows=[
            ("model", f"{folder}: {told['target']} ({', '.join(told['classes'])})"),
            ("found", f"{len(sessions):,} sessions: {counted}"),
            ("spread out", f"{workers} workers, {spec.compute.models} of the model"),
        ],
        figures={"sessions": len(sessions), "scans": sum(scans.values()), "workers": workers},
        warnings=warnings,
    )


def execute(spec: Infer, run: Run) -> None:
    """Predict what is new, and say what stands of all."""
    from bfp.drivers.infer_results import results_of, write_pictures
    from bfp.inference.kept import Predictions
    from bfp.inference.predictor import model_hash
    from bfp.inference.ready import inputs_of

    folder, told = _model(spec)
    run.phase("listing", unit="sessions")
    sessions = sessions_of(spec.cohorts, _preprocessing(told))
    run.progress(len(sessions))
    model = model_hash(folder)
    by_inputs = {inputs_of(session, model=model): session for session in sessions if session.scans}
    kept = Predictions(run.folder, classes=told["classes"], embedding=spec.embedding, model=model, version=__version__)
    done = kept.done()
    todo = {inputs: session for inputs, session in by_inputs.items() if inputs not in done}

    shown = _predict(spec, run, folder, told, todo, kept)
    if spec.pictures and shown:
        write_pictures(run, shown, channels=_channels(told))

    run.phase("uniting")
    early = [row for session in sessions if not session.scans for row in session.left_out]
    united = kept.unite(by_inputs, left_out=early)
    run.result(results_of(spec, run, told, united).as_json())
    run.note(f"{united.predictions.num_rows} sessions predicted, {united.rejected.num_rows} scans rejected")
    for name in told["shown"]:
        lacking = sum(name in missing for missing in united.predictions["missing"].to_pylist())
        if lacking:
            run.warn(f"{lacking} sessions have no {name}, which the model was trained with")
    if spec.max_rejected is not None:
        check_rejected(united, spec.max_rejected)


def _model(spec: Infer) -> tuple[Place, dict[str, Any]]:
    """The model's folder and its description.

    Raises InputError where this bfp would make other stacks than the model was trained on.
    """
    from bfp.models.classifier import model_folder, read_description

    folder = model_folder(place(spec.model))
    told = read_description(folder)
    if told["facts"]["imaging"] != IMAGING_VERSION:
        raise InputError(
            f"{folder}: trained on stacks of imaging version {told['facts']['imaging']}, this bfp makes version "
            f"{IMAGING_VERSION}: fine-tune again, or predict with bfp {told['facts']['bfp']}"
        )
    return folder, told


def _preprocessing(told: dict[str, Any]) -> Preprocessing:
    return Preprocessing.model_validate(told["preprocessing"])


def _channels(told: dict[str, Any]) -> tuple[str, ...]:
    stacks = told["preprocessing"]["stacks"]
    return tuple(stacks["channels"]) if stacks["form"] == "modalities" else ("below", "centre", "above")


def _predict(
    spec: Infer, run: Run, folder: Place, told: dict[str, Any], todo: dict[str, Session], kept: Predictions
) -> list[Outcome]:
    """Predict these sessions and keep their rows; a few outcomes with stacks, to be looked at.

    Raises Interrupted when the run is asked to stop, and JobFailed, once all others are done, where a session was not.
    """
    from bfp.inference.pipeline import Failure, predict_sessions

    run.phase("predicting", total=len(todo), unit="sessions")
    if not todo:
        return []
    arriving = predict_sessions(
        list(todo.items()),
        model=folder,
        recipe=recipe_of(_preprocessing(told)),
        shown=told["shown"],
        scan_timeout_s=spec.compute.scan_timeout_s,
        machine=_machine(spec),
    )
    waiting: list[Outcome] = []
    shown: list[Outcome] = []
    failures: list[str] = []
    arrived, part_began = 0, time.monotonic()
    try:
        for outcome in until_stopped(arriving, lambda: run.stopping):
            if isinstance(outcome, Failure):
                failures.append(outcome.cause)
                continue
            arrived += 1
            waiting.append(outcome)
            if outcome.preview is not None and len(shown) < SHOWN_SESSIONS:
                shown.append(outcome)
            run.progress(arrived)
            if len(waiting) == SESSIONS_PER_PART or time.monotonic() - part_began > SECONDS_PER_PART:
                kept.add(waiting)
                waiting, part_began = [], time.monotonic()
    finally:
        if waiting:
            kept.add(waiting)
    if run.stopping:
        raise Interrupted(f"stopped after {arrived} of {len(todo)} sessions; submit it again to go on")
    check_done(len(todo), arrived, failures)
    return shown


def _machine(spec: Infer) -> Machine:
    import ray

    from bfp.inference.pipeline import Machine

    compute = spec.compute
    gpus = compute.gpus_per_model
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0) / compute.models)
    return Machine(compute.workers, compute.models, gpus, compute.batch_size, compute.retries)


def check_done(asked: int, arrived: int, failures: list[str]) -> None:
    lost = asked - arrived - len(failures)
    causes = list(dict.fromkeys(failures))
    if lost:
        causes.append(f"{lost} lost their worker each time, most likely for want of memory: lower compute.workers")
    if causes:
        listed = "\n".join(f"    {cause}" for cause in causes)
        raise JobFailed(
            f"{asked - arrived} of {asked} sessions could not be predicted; the others are kept, and submitting again "
            f"goes on from there\n{listed}"
        )


def check_rejected(united: Kept, max_rejected: float) -> None:
    """Raise JobFailed where a larger share of the scans is rejected; what the user chose not to use is no fault."""
    chosen = (Reason.UNWANTED, Reason.DUPLICATE)
    faulty = sum(reason not in chosen for reason in united.rejected["reason"].to_pylist())
    used = sum(len(scans) for scans in united.predictions["scans"].to_pylist())
    share = faulty / max(faulty + used, 1)
    if share > max_rejected:
        raise JobFailed(
            f"{faulty} of {faulty + used} scans ({share:.1%}) are rejected, more than max_rejected: "
            f"{max_rejected:g}; the predictions of the others are kept. The report lists them: mend the scans, or "
            "raise max_rejected, and submit again"
        )
