"""kind: finetune — a store, an encoder and labels become a model of sessions, with its cross-validated figures.

1. each stack becomes a vector: the spread of the encoder's patch tokens (frozen), kept
2. the vectors of a session are pooled by slice position to one
3. folds: subjects dealt out, stratified by class (or by parts of a number, or by event) and cohort
4. for each fold a linear head (logistic, ridge or Cox), its strength chosen inside the training subjects; the same
   for every baseline, on the same folds
5. AUROC (absolute error, concordance) of each fold, their mean with its 95 % interval over subjects, and paired
   differences
6. one more head on all sessions: the model folder, with the heads of the folds for the spread

With `tune: lora` or `full`, or `pooling: attention`, that is a rival of the model (`finetune_tuned`).

<run>/features/      vectors of stacks          <run>/folds.csv        the split
<run>/checkpoints/   folds that are done        <run>/predictions/     predictions.parquet, out of fold
<run>/inputs.json    the snapshot that is used  <run>/model/           the model
<run>/pictures/      single cases, explained
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bfp.drivers import finetune_segmentation
from bfp.drivers.acquaintance import Acquaintance, acquaintance, scans_of
from bfp.drivers.finetune_material import (
    Material,
    classes_of,
    doubts_of,
    learned_in_words,
    learner_of,
    material_of,
    target_of,
)
from bfp.drivers.finetune_model import Fitted, export_model
from bfp.drivers.finetune_vectors import (
    COVARIATES,
    FROZEN,
    HISTOGRAMS,
    MEAN,
    MODEL,
    NEIGHBOURS,
    NO_RIVALS,
    ORACLE,
    PERMUTED,
    POSITION_BANDS,
    SITE,
    UNTRAINED,
    approaches_of,
    parts_of,
    pooling_of,
    vectors_of,
)
from bfp.drivers.gpus import gpus_of
from bfp.drivers.plan import Capacity, Plan, capacity_here
from bfp.drivers.stores import encoder_arguments, pin_inputs, warnings_of
from bfp.runs import Run
from bfp.specs.finetune import Finetune, SegmentationTask
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.drivers.finetune_results import Said, Trained
    from bfp.drivers.finetune_tuned import Tuned
    from bfp.finetuning.crossvalidation import Judged, Study
    from bfp.models.encoder import LoadedEncoder
    from bfp.reports.blocks import Block, Cell

ATTENTION_BANDS = 1
"""As published. On 120 sessions of a made cohort and an untrained encoder (AUROC, the mean of 5 folds of two seeds):
within 1, 4 and 20 bands attention 0.74, 0.70 and 0.69, plain means 0.75, 0.71 and 0.71: it finds a few slices that tell
(`tests/finetuning/test_tuning.py`), and has nothing to find where all tell a little."""

ALIKE = {"classification": "class", "regression": "parts of the number", "survival": "event"}
"""By the type of the task: what folds are dealt alike by."""


def plan(spec: Finetune, *, capacity: Capacity | None = None) -> Plan:
    """Opens the store and the labels: whatever is wrong with them is said before anything is written."""
    if isinstance(spec.task, SegmentationTask):
        return finetune_segmentation.plan(spec, capacity=capacity)

    from bfp.finetuning.covariates import in_words
    from bfp.finetuning.labels import reasons_in_words

    run = place(spec.output) / spec.name
    material = material_of(spec, run=run)
    stacks, sessions = material.index.num_rows, len(material.labelled.sessions)
    counts = ", ".join(f"{name} ({text})" for name, text in learned_in_words(material.task, material.labelled).items())
    approaches = [name for name in approaches_of(spec, material) if name not in NO_RIVALS]
    left_out = sum(material.labelled.left_out.values())
    columns = {**material.covariates}
    if spec.baselines.oracle and material.oracle:
        columns[spec.baselines.oracle] = material.oracle
    covariates = [("covariates", "; ".join(f"{name}: {in_words(values)}" for name, values in columns.items()))]
    dealt = f"as in {spec.splits}" if spec.splits else "by subject"
    warnings = warnings_of([material.store], spec.where)
    if sessions < 10 * max(2, len(classes_of(material.task))):
        warnings.append(f"only {counted(sessions, 'session')}: the intervals will be wide")
    warnings += doubts_of(material.task, material.labelled, folds=material.folds)
    return Plan(
        rows=[
            ("store", f"{material.store.place}, snapshot {material.store.snapshot}: {counted(stacks, 'stack')}"),
            ("encoder", spec.encoder),
            ("learned", f"{target_of(material.task)}: {counts}"),
            (
                "left out",
                counted(left_out, "session") + (f" ({reasons_in_words(material.labelled.left_out)})" * bool(left_out)),
            ),
            ("shown", ", ".join(material.shown)),
            ("cross-validation", f"{spec.folds} folds {dealt}; {', '.join(approaches)}"),
            *([("training", _training_in_words(spec))] if spec.trains else []),
            *(covariates if columns else []),
            ("side by side", f"stacks and folds on {counted((capacity or capacity_here()).cpus, 'CPU')}"),
            ("memory", "a copy of the encoder and some hundreds of stacks for each worker; how much is not known yet"),
            ("time", "not known before the first stacks are done; it can be stopped and resumed at any moment"),
        ],
        figures={
            "snapshot": material.store.snapshot,
            "stacks": stacks,
            "sessions": sessions,
            "left_out": left_out,
            "folds": spec.folds,
        },
        warnings=warnings,
    )


def execute(spec: Finetune, run: Run) -> None:
    """Run it to its end, or to where the user stops it; Ray is up already."""
    if isinstance(spec.task, SegmentationTask):
        finetune_segmentation.execute(spec, run)
        return

    import numpy as np
    import ray

    from bfp.drivers.finetune_results import results_of
    from bfp.drivers.finetune_tripod import known_of, reported
    from bfp.finetuning.crossvalidation import Study, cross_validate
    from bfp.finetuning.neighbours import judge_by_neighbours
    from bfp.finetuning.tables import folds_csv, predictions_parquet
    from bfp.models.encoder import load

    material = material_of(spec, run=run.folder)
    pin_inputs([material.store], spec.where, run=run.folder)
    labelled, kind, classes = material.labelled, material.task.type, classes_of(material.task)
    (run.folder / "folds.csv").write(folds_csv(labelled, folds=material.folds, kind=kind, classes=classes))
    for reason, count in labelled.left_out.items():
        run.note(f"{counted(count, 'session')} left out: {reason}")
    for doubt in doubts_of(material.task, labelled, folds=material.folds):
        run.warn(doubt)

    encoder = load(**encoder_arguments(spec, size_px=material.store.size_px))
    vectors, features = vectors_of(spec, run, material, encoder)
    study = Study(
        learner=learner_of(material.task),
        targets=labelled.targets,
        persons=labelled.persons,
        folds=material.folds,
        strengths=list(spec.regularisation),
        seed=spec.seed,
    )
    cross = partial(
        cross_validate,
        by_lot=[PERMUTED],
        kept=run.folder / "checkpoints" / "folds",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=spec.compute.workers or int(ray.cluster_resources()["CPU"]),
    )
    run.phase("cross-validation", total=spec.folds * len(vectors), unit="folds")
    judged = cross(study, vectors)
    tuned = _tuned(spec, run, material, study, encoder, features) if spec.trains else None
    if tuned is not None:
        judged[MODEL] = tuned.judged
    approaches = approaches_of(spec, material)
    if NEIGHBOURS in approaches:
        judged[NEIGHBOURS] = judge_by_neighbours(study, vectors[FROZEN if tuned else MODEL], class_count=len(classes))
    judged = {name: judged[name] for name in approaches}
    predictions = predictions_parquet(judged, labelled, folds=material.folds, kind=kind, classes=classes)
    (run.folder / "predictions" / "predictions.parquet").write(predictions)

    refitted = tuned is None and kind != "regression"  # whose numbers have one unit
    if tuned is None:
        head, strength = study.fit(vectors[MODEL], np.ones(len(labelled.sessions), dtype=bool))
        alike = judged[MODEL]
        if refitted:
            run.phase("folds as strong as the model", total=spec.folds, unit="folds")
            alike = cross(replace(study, strengths=[strength]), {MODEL: vectors[MODEL]})[MODEL]
        fold_heads, pooling = tuple(fold.head for fold in alike.folds), pooling_of(spec, material)
        fitted = Fitted(encoder, pooling, head, strength, fold_heads, alike, vectors[MODEL])
    else:
        strength = tuned.model.result.strength
        fitted = Fitted(tuned.encoder, tuned.pooling, tuned.head, strength, tuned.fold_heads, tuned.judged, None)
    cases = _cases(spec, run, material, encoder, features, fitted.folds, tuned, refitted=refitted)

    run.phase("figures")
    met = acquaintance(spec.encoder, [scans_of(material.store, set(labelled.sessions))])
    said = _said(spec, material, encoder, met, judged[MODEL], tuned)
    results = results_of(study, judged, labelled, said, cases=cases)
    results = reported(results, known_of(spec, material, said, met=met.told))
    for warning in _faults(results.figures, material):
        run.warn(warning)
    if met.is_met:
        run.warn(f"encoder: its pretraining has met {met.told}")
    export_model(run, spec, material, fitted, results, said)
    run.result(results.as_json())


def _faults(figures: Mapping[str, Cell], material: Material) -> Iterator[str]:
    """What is wrong with the study, where lots or the site alone are told better than chance has it."""
    from bfp.metrics.measures import MEASURES

    telling = MEASURES[material.task.type].telling
    if telling is None:
        return
    measure, chance = telling
    for approach in (SITE, PERMUTED):
        low = figures.get(f"{measure.name}_{approach}_low")
        if not isinstance(low, float) or low <= chance:
            continue
        if approach == PERMUTED:
            yield (
                f"permuted labels are told from the images ({measure.label} of {low:.2f} or more): by chance in one "
                "study of forty, else a fault of the study; submit it with another name and another seed"
            )
        else:
            yield (
                f"{', '.join(material.site)} tells {target_of(material.task)} by itself ({measure.label} of {low:.2f}"
                "): read what images add beside that; compare within sites, or leave sites out that have one class"
            )


def _tuned(
    spec: Finetune, run: Run, material: Material, study: Study, encoder: LoadedEncoder, features: pa.Table
) -> Tuned:
    from bfp.drivers.finetune_tuned import tune_folds
    from bfp.models.attention import AttentionPooling
    from bfp.models.pooling import Pooling

    attends = spec.pooling == "attention"
    pooling = (
        AttentionPooling((), Pooling(ATTENTION_BANDS, parts_of(material))) if attends else pooling_of(spec, material)
    )
    return tune_folds(
        spec, run, material, study, encoder=encoder, features=features, pooling=pooling, gpus=gpus_of(spec.compute)
    )


def _training_in_words(spec: Finetune) -> str:
    """For the plan: what is trained, and in what steps."""
    training = spec.training
    assert training is not None
    what = {"frozen": "attention and head", "lora": f"adapters of rank {training.rank}", "full": "the whole encoder"}
    return (
        f"{what[spec.tune]}, at most {training.epochs} epochs; {training.sessions_per_step} sessions a step, "
        f"{training.slices_per_session} slices of each"
    )


def _cases(
    spec: Finetune,
    run: Run,
    material: Material,
    encoder: LoadedEncoder,
    features: pa.Table,
    judged: Judged,
    tuned: Tuned | None,
    *,
    refitted: bool,
) -> list[Block]:
    """Single sessions, explained where a head of a fold can say why."""
    from bfp.drivers.finetune_cases import TITLE, TUNED, case_blocks
    from bfp.reports.blocks import Text

    if spec.tune != "frozen":
        return [Text(TITLE, [TUNED])]
    poolings = [fold.pooling for fold in tuned.folds] if tuned else [pooling_of(spec, material)] * spec.folds
    return case_blocks(run, material, encoder, features, judged, poolings, refitted=refitted)


# what is said of it --------------------------------------------------------------------------------------------------


def _said(
    spec: Finetune,
    material: Material,
    encoder: LoadedEncoder,
    met: Acquaintance,
    judged: Judged,
    tuned: Tuned | None,
) -> Said:
    from bfp.drivers.finetune_results import Said

    told, store = encoder.description, material.store
    pooled = f"averaged in {POSITION_BANDS} bands of height" if spec.pooling != "mean" else "averaged over all slices"
    begun = "untrained" if told["origin"] == "random" else "pretrained"
    frozen = {MODEL: f"{begun} encoder"}
    if tuned is not None:
        trained = {"frozen": "attention on the", "lora": "low-rank adapters in the", "full": "tuned"}[spec.tune]
        frozen = {
            MODEL: f"{trained} {begun} encoder",
            FROZEN: "same encoder, frozen, slices by position" if spec.pooling != "mean" else "same encoder, frozen",
            MEAN: "same encoder, frozen, mean of slices",
        }
    return Said(
        kind=material.task.type,
        target=target_of(material.task),
        classes=classes_of(material.task),
        model=MODEL,
        no_rivals=NO_RIVALS,
        names={
            **frozen,
            NEIGHBOURS: "same encoder, nearest neighbours",
            UNTRAINED: "same encoder, untrained" + (", frozen" if spec.trains else ""),
            HISTOGRAMS: "histograms of the slices",
            SITE: f"the site alone ({', '.join(material.site)})",
            COVARIATES: f"covariates alone ({', '.join(spec.baselines.covariates)})",
            PERMUTED: "permuted labels" + (", frozen encoder" if spec.trains else ""),
            ORACLE: f"oracle ({spec.baselines.oracle})",
        },
        counts=learned_in_words(material.task, material.labelled),
        groups=material.groups,
        dealt=", in folds that were given"
        if spec.splits
        else f" and stratified by {ALIKE[material.task.type]} and cohort",
        facts=[
            ("store", f"{store.place}, snapshot {store.snapshot}"),
            ("preprocessing", store.fingerprint),
            ("stacks", material.index.num_rows),
            ("modalities shown", ", ".join(material.shown)),
            ("encoder", spec.encoder),
            ("architecture", f"{told['architecture']}, width {told['width']}, {told['depth']} blocks"),
            ("weights", told["weights"][:16]),
            ("tuned", spec.tune),
            (
                "folds",
                f"as in {spec.splits}"
                if spec.splits
                else f"dealt by the seed, stratified by {ALIKE[material.task.type]} and cohort",
            ),
            ("strengths (C) that the folds chose", _strengths(spec, judged)),
            ("seed", spec.seed),
        ],
        methods=(
            f"{store.slice_axis.capitalize()} slice stacks of {', '.join(material.shown)} were passed through a frozen "
            f"{told['architecture']} "
            f"({told['parameters'] / 1e6:.1f} million parameters; {spec.encoder}). The standard deviations over the "
            f"patch tokens of each stack were {pooled}; what a session lacked took the training mean."
            f" Subjects whom its pretraining had met, without labels: {met.told}."
        ),
        trained=_trained(spec, tuned) if tuned is not None else None,
    )


def _strengths(spec: Finetune, judged: Judged) -> str:
    """How many folds chose which; where one lies at an end of the list, a longer list may have a better one."""
    chosen = Counter(fold.strength for fold in judged.folds)
    ends = {min(spec.regularisation): "the lowest", max(spec.regularisation): "the highest"}
    told = [
        f"{value:g} ({', '.join(filter(None, (f'{count} of {spec.folds}', ends.get(value))))})"
        for value, count in sorted(chosen.items())
    ]
    return "; ".join(told)


def _trained(spec: Finetune, tuned: Tuned) -> Trained:
    from bfp.drivers.finetune_results import Trained
    from bfp.drivers.finetune_tuned import epochs_table, methods
    from bfp.metrics.measures import MEASURES

    measures = MEASURES[spec.task.type]
    return Trained(methods(spec, tuned), epochs_table(tuned, label=measures.first.label, sign=measures.sign))
