"""kind: infer — a model and new cohorts become one row of predictions a session, or one mask; of an encoder without a
head, one row of embeddings.

1. the cohorts are listed; a session whose row exists already, from the same files and model, is not done again
2. each other one is prepared from its raw scans exactly as the model's training data were (CPUs, Ray Data)
3. a pool of copies of the model turns its stacks into vectors, pools them, and predicts
4. rows are committed in parts as they come; a kill costs the sessions since the last part. A session that lacks what
   may be there the next time (no permission, a disk that fails, the time limit) is in no part: the next submit does it
   again
5. at the end the rows of all listed sessions are united into two tables: predictions, rejected

<run>/predictions/, <run>/rejected/   see `bfp.inference.kept`
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp import __version__
from bfp.cohorts import Session
from bfp.cohorts.sessions import BRAIN
from bfp.drivers import sizing
from bfp.drivers.attempts import Lost, attempts
from bfp.drivers.infer_model import (
    brain_program_of,
    channels_of,
    check_masks,
    embeds,
    learned_by,
    model_of,
    preprocessing_of,
    segments,
)
from bfp.drivers.inputs import carried, recipe_of, sessions_of
from bfp.drivers.plan import Capacity, Plan, capacity_here, memory_warnings
from bfp.drivers.preparing import (
    TRIED_AGAIN,
    check_available,
    cost_of,
    estimate_warnings,
    minutes,
    not_done,
    too_many,
    worker_gb,
)
from bfp.drivers.streaming import until_stopped
from bfp.errors import InputError, Interrupted, JobFailed
from bfp.models.folders import WEIGHTS, encoder_folder, read_config
from bfp.runs import Run
from bfp.specs.backbones import backbones
from bfp.specs.infer import Infer
from bfp.specs.preprocessing import Preprocessing
from bfp.specs.profile import NO_PROFILE, Profile
from bfp.storage import Place, place
from bfp.words import counted, some_of

if TYPE_CHECKING:
    from bfp.inference.kept import Predictions
    from bfp.inference.outcomes import Outcome
    from bfp.inference.pipeline import Machine
    from bfp.inference.pseudonyms import Pseudonyms

SESSIONS_PER_PART = 64
SECONDS_PER_PART = 30.0
SHOWN_SESSIONS = 8

SMALLER = "leave out the sessions whose scans are the largest"

MODEL_GB = 1.3  # what a copy took beside its weights: ViT-S and ViT-B, 64 stacks of 224 pixels at a time
ROW_BYTES = 1000  # of a session beside its embedding


def plan(spec: Infer, *, capacity: Capacity | None = None, profile: Profile = NO_PROFILE) -> Plan:
    """Reads the model's description and lists the cohorts: what is wrong with them is said before a scan is read.

    capacity: what the target lends; None for this machine.
    """
    folder, told = model_of(spec)
    check_masks(spec, told)
    check_available(preprocessing_of(told), spec.cohorts)
    brain_program_of(told, profile)
    _pseudonyms(spec, told)
    sessions = [each for each in _sessions(spec, told) if each.scans]
    scans = Counter(scan.modality for session in sessions for scan in session.scans)
    found = ", ".join(f"{count:,} {name}" for name, count in sorted(scans.items()))
    begun = bool((place(spec.output) / spec.name / "predictions").names())
    todo = list(_work(spec, folder, told, sessions).todo.values()) if begun else sessions
    capacity = capacity or capacity_here()
    estimate = _estimate(spec, folder, told, todo, cpus=capacity.cpus)
    workers, models = counted(estimate.workers, "worker"), counted(spec.compute.models, "copy", "copies")
    done = counted(len(sessions) - len(todo), "is", "are")
    masks = [each for each in carried(spec.cohorts, sessions) if each.segmentation == BRAIN]
    if told["preprocessing"]["brain"] != "given":
        masks = []
    return Plan(
        rows=[
            ("model", f"{folder}: {learned_by(told)}"),
            ("found", f"{counted(len(sessions), 'session')}: {found}"),
            *(("brain masks", each.text) for each in masks),
            ("to do", f"{counted(len(todo), 'session')}; {done} predicted already"),
            ("will write", f"about {estimate.size_bytes / 1e6:,.1f} MB"),
            ("memory", f"about {estimate.memory_gb:.1f} GB: {workers} that prepare, {models} of the model"),
            ("time", f"{minutes(estimate.seconds)} on {counted(estimate.workers, 'CPU')}; less where a GPU predicts"),
        ],
        figures={
            "sessions": len(sessions),
            "scans": sum(scans.values()),
            "sessions_to_do": len(todo),
            "workers": estimate.workers,
            "bytes_estimated": estimate.size_bytes,
            "seconds_estimated": round(estimate.seconds),
        },
        warnings=[f"no {name}: the model was trained with it" for name in told["shown"] if not scans[name]]
        + [each.warning for each in masks if each.warning]
        + _picture_warnings(spec, told)
        + _estimate_warnings(preprocessing_of(told))
        + memory_warnings(estimate.memory_gb, capacity),
    )


def _picture_warnings(spec: Infer, told: dict[str, Any]) -> list[str]:
    if spec.privacy.pictures != "brain" or told["preprocessing"]["brain"] != "none":
        return []
    return ["no pictures (privacy.pictures: brain): the model's stacks show the whole head (preprocessing.brain: none)"]


def _pseudonyms(spec: Infer, told: dict[str, Any]) -> Pseudonyms | None:
    """Raises InputError where the key is not in the environment, or too short, and where names cannot be kept back."""
    if spec.privacy.identifiers == "keep":
        return None
    if segments(told):
        raise InputError(
            "privacy.identifiers: hash: the model segments, and its masks are named for subjects and sessions, as BIDS "
            "has it; keep them (identifiers: keep), and hash what you pass on"
        )
    from bfp.inference.pseudonyms import Pseudonyms

    variable = spec.privacy.key_variable
    return Pseudonyms(os.environ.get(variable, ""), variable=variable)


def _estimate_warnings(preprocessing: Preprocessing) -> list[str]:
    held = [
        "volumes: each: a worker holds all stacks of a session at once; where they come to 1 GiB it takes about 3.5 GB"
    ]
    return estimate_warnings(preprocessing) + (held if preprocessing.volumes == "each" else [])


class _Estimate(NamedTuple):
    """What the work will come to, on CPUs alone. size_bytes: the rows, which stand in a part and in the one table."""

    workers: int
    memory_gb: float
    size_bytes: int
    seconds: float


def _estimate(spec: Infer, folder: Place, told: dict[str, Any], todo: list[Session], *, cpus: int) -> _Estimate:
    preprocessing = preprocessing_of(told)
    cost = cost_of(todo, preprocessing)
    encoder = encoder_folder(folder)
    config = read_config(encoder)
    weights_bytes = (encoder / WEIGHTS).size()  # four a weight
    tokens = (preprocessing.size // backbones()[config["architecture"]].patch_px) ** 2
    predicting = sizing.predicting_s(parameters=weights_bytes / 4, tokens=tokens, stacks=cost.stacks)
    workers = min(spec.compute.workers or cpus, cpus)
    embedding = 2 * 4 * config["num_features"] * (3 if embeds(told) else 1) if spec.embedding else 0
    seconds = max((cost.seconds + predicting) / cpus, cost.seconds / workers)
    return _Estimate(
        workers=workers,
        memory_gb=workers * worker_gb(preprocessing) + spec.compute.models * (MODEL_GB + weights_bytes / 1e9),
        size_bytes=2 * len(todo) * (ROW_BYTES + embedding),
        seconds=sizing.RAY_START_S + seconds,
    )


def execute(spec: Infer, run: Run, *, profile: Profile = NO_PROFILE) -> None:
    """Predict what is new, and say what stands of all."""
    from bfp.drivers import infer_embedding, infer_segmentation
    from bfp.drivers.infer_outputs import told_by
    from bfp.drivers.infer_results import results_of, write_pictures
    from bfp.models.typical import WARNED_FROM

    folder, told = model_of(spec)
    brain_program = brain_program_of(told, profile)
    run.phase("listing", unit="sessions")
    sessions = _sessions(spec, told)
    run.progress(len(sessions))
    by_inputs, kept, todo = _work(spec, folder, told, sessions)
    if damaged := kept.damaged():
        run.warn(f"damaged predictions are made again: {', '.join(damaged)}")
        kept.discard(damaged)

    if not _shows_pictures(spec, told):
        for name in (pictures := run.folder / "pictures").names():  # of an earlier submission that was to show them
            (pictures / name).delete()
    shown, passing = _predict(spec, run, folder, told, todo, kept, brain_program=brain_program)
    for warning in _picture_warnings(spec, told):
        run.warn(warning)
    if _shows_pictures(spec, told) and shown and segments(told):
        infer_segmentation.write_pictures(run, shown, axis=preprocessing_of(told).slice_axis)
    elif _shows_pictures(spec, told) and shown:
        brief = (lambda row: "") if embeds(told) else told_by(told).brief
        write_pictures(run, shown, brief=brief, channels=channels_of(told), axis=preprocessing_of(told).slice_axis)

    run.phase("uniting")
    early = [row for session in sessions if not session.scans for row in session.left_out]
    if pseudonyms := _pseudonyms(spec, told):
        early = [pseudonyms.left_out(row) for row in early]
    united = kept.unite(by_inputs, passing=passing, left_out=early)
    say = results_of
    if segments(told) or embeds(told):
        say = infer_segmentation.results_of if segments(told) else infer_embedding.results_of
    results = say(spec, run, told, united, with_pictures=_shows_pictures(spec, told))
    run.result(results.as_json())
    predicted, rejected = united.predictions.num_rows, united.rejected.num_rows
    run.note(f"{counted(predicted, 'session')} predicted, {counted(rejected, 'scan')} rejected")
    if passing:
        run.warn(f"scans of {counted(len(passing), 'session')} {TRIED_AGAIN}")
    measured = [] if segments(told) or embeds(told) else united.predictions["atypical"].to_pylist()
    if far := sum(atypical is not None and atypical >= WARNED_FROM for atypical in measured):
        lie = counted(far, "session lies", "sessions lie")
        run.warn(f"{lie} beyond 99 % of the training sessions: the model was trained on nothing like it")
    if outside := results.figures.get("outside_range"):
        learned = f"{told['trained_from']:g} to {told['trained_to']:g}"
        are = counted(int(outside), "session is", "sessions are")
        run.warn(f"{are} predicted outside the numbers that the model learned from ({learned})")
    for name in told["shown"]:
        lacking = sum(name in missing for missing in united.predictions["missing"].to_pylist())
        if lacking:
            without = counted(lacking, "session has", "sessions have")
            run.warn(f"{without} no {name}, which the model was trained with")
    doubtful = sum(
        any(text.startswith(tuple(f"{name}: " for name in row["modalities"])) for text in row["warnings"])
        for row in united.predictions.select(["modalities", "warnings"]).to_pylist()
    )
    if doubtful:
        are = counted(doubtful, "session has a scan", "sessions have scans")
        run.warn(f"{are} about which there is doubt; see the page, Sessions to look at")
    refused = too_many(
        Counter(united.rejected["reason"].to_pylist()),
        used=sum(map(len, united.predictions["scans"].to_pylist())),
        allowed=spec.max_rejected,
        meanwhile="the predictions of the others are kept",
    )
    if refused:
        raise JobFailed(refused)


def _sessions(spec: Infer, told: dict[str, Any]) -> list[Session]:
    """The sessions that are asked for. Raises InputError where a subject that is asked for has none."""
    found = sessions_of(spec.cohorts, preprocessing_of(told))
    if spec.subjects is None:
        return found
    there = {session.key.subject for session in found}
    if absent := [subject for subject in spec.subjects if subject not in there]:
        raise InputError(f"subjects: {', '.join(absent)}: in no cohort; there are {some_of(sorted(there))}")
    return [session for session in found if session.key.subject in spec.subjects]


class _Work(NamedTuple):
    """The sessions that have scans, by what their rows follow from; what is kept of them; those that are to do."""

    by_inputs: dict[str, Session]
    kept: Predictions
    todo: dict[str, Session]


def _work(spec: Infer, folder: Place, told: dict[str, Any], sessions: list[Session]) -> _Work:
    from bfp.inference.kept import (
        Predictions,
        embeddings_schema,
        predictions_schema,
        segmentations_schema,
        told_columns,
    )
    from bfp.inference.ready import inputs_of, model_hash

    run, model, classes = place(spec.output) / spec.name, model_hash(folder), told.get("classes", ())
    if segments(told):
        schema = segmentations_schema(classes)
    elif embeds(told):
        schema = embeddings_schema()
    else:
        schema = predictions_schema(told_columns(told["type"], classes), embedding=spec.embedding)
    kept = Predictions(run, schema=schema, model=model, version=__version__)
    by_inputs = {inputs_of(session, model=model): session for session in sessions if session.scans}
    if pseudonyms := _pseudonyms(spec, told):  # or a guess at a file's name could be checked
        by_inputs = {pseudonyms.of("inputs", inputs): session for inputs, session in by_inputs.items()}
    done = kept.done()
    return _Work(by_inputs, kept, {inputs: each for inputs, each in by_inputs.items() if inputs not in done})


def _shows_pictures(spec: Infer, told: dict[str, Any]) -> bool:
    return spec.privacy.pictures == "shown" or (
        spec.privacy.pictures == "brain" and told["preprocessing"]["brain"] != "none"
    )


class _Predicted(NamedTuple):
    """shown: a few outcomes with stacks, to be looked at; passing: those that stand in no part."""

    shown: list[Outcome]
    passing: list[Outcome]


def _predict(
    spec: Infer,
    run: Run,
    folder: Place,
    told: dict[str, Any],
    todo: dict[str, Session],
    kept: Predictions,
    *,
    brain_program: list[str],
) -> _Predicted:
    """Predict these sessions and keep their rows.

    Raises Interrupted when the run is asked to stop, and JobFailed, once all others are done, where a session was not.
    """
    from bfp.drivers.infer_segmentation import segment_sessions
    from bfp.inference.outcomes import Failure
    from bfp.inference.pipeline import predict_sessions
    from bfp.inference.pseudonyms import sentence

    run.phase("predicting", total=len(todo), unit="sessions")
    if not todo:
        return _Predicted([], [])

    def once(sessions: list[tuple[str, Session]], workers: int | None) -> Iterator[Outcome | Failure]:
        do = segment_sessions(told, folder=run.folder) if segments(told) else predict_sessions
        return do(
            sessions,
            model=folder,
            recipe=recipe_of(preprocessing_of(told), brain_program=brain_program, scan_timeout_s=limit_s),
            shown=told["shown"],
            scan_timeout_s=limit_s,
            machine=replace(machine, workers=workers),
        )

    machine, limit_s, pseudonyms = _machine(spec), spec.compute.scan_timeout_s, _pseudonyms(spec, told)
    arriving = attempts(
        {inputs: (inputs, session) for inputs, session in todo.items()},
        once,
        name_of=lambda outcome: outcome.inputs,
        workers=machine.workers,
        retries=spec.compute.retries,
    )
    waiting: list[Outcome] = []
    shown: list[Outcome] = []
    passing: list[Outcome] = []
    failures: list[str] = []
    lost = Lost()
    arrived, part_began = 0, time.monotonic()
    try:
        for outcome in until_stopped(arriving, lambda: run.stopping):
            if isinstance(outcome, Lost):
                lost = outcome
                continue
            if isinstance(outcome, Failure):
                cause = outcome.cause
                failures.append(sentence(cause, todo[outcome.inputs]) if pseudonyms else cause)
                continue
            if pseudonyms:
                outcome = pseudonyms.outcome(outcome, todo[outcome.inputs])
            arrived += 1
            if outcome.passing:
                passing.append(replace(outcome, preview=None))
            else:
                waiting.append(outcome)
            if outcome.preview is not None and len(shown) < SHOWN_SESSIONS:
                shown.append(outcome)
            run.progress(arrived)
            if waiting and (len(waiting) == SESSIONS_PER_PART or time.monotonic() - part_began > SECONDS_PER_PART):
                kept.add(waiting)
                waiting, part_began = [], time.monotonic()
    finally:
        if waiting:
            kept.add(waiting)
    if run.stopping:
        raise Interrupted(f"stopped after {arrived} of {counted(len(todo), 'session')}; submit it again to go on")
    if message := not_done(len(todo), failures, lost, unit="session", verb="predicted", smaller=SMALLER):
        raise JobFailed(message)
    return _Predicted(shown, passing)


def _machine(spec: Infer) -> Machine:
    import ray

    from bfp.inference.pipeline import Machine

    compute, resources = spec.compute, ray.cluster_resources()
    gpus = compute.gpus_per_model
    if gpus is None:
        gpus = min(1.0, resources.get("GPU", 0.0) / compute.models)
    threads = max(1, int(resources["CPU"]) // len(ray.nodes()) // compute.models)
    return Machine(compute.workers, compute.models, gpus, threads, compute.batch_size, compute.retries)
