"""kind: finetune — a store, an encoder and labels become a model of sessions, with its cross-validated figures.

1. each stack becomes a vector: the spread of the encoder's patch tokens (frozen), kept
2. the vectors of a session are pooled by slice position to one
3. folds: subjects dealt out, stratified by class (or by parts of a number, or by event) and cohort
4. for each fold a linear head (logistic, ridge or Cox), its strength chosen inside the training subjects; the same
   for every baseline, on the same folds
5. AUROC (absolute error, concordance) of each fold, their mean with its 95 % interval over subjects, and paired
   differences
6. one more head on all sessions: the model folder, with the heads of the folds for the spread

<run>/features/      vectors of stacks          <run>/folds.csv        the split
<run>/checkpoints/   folds that are done        <run>/predictions/     predictions.parquet, out of fold
<run>/inputs.json    the snapshot that is used  <run>/model/           the classifier
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp import __version__
from bfp.drivers import finetune_segmentation
from bfp.drivers.acquaintance import Acquaintance, acquaintance, keep_acquaintances, scans_of
from bfp.drivers.finetune_material import (
    Material,
    classes_of,
    learned_in_words,
    learner_of,
    material_of,
    target_of,
)
from bfp.drivers.plan import Plan, cpus_here
from bfp.drivers.stores import encoder_arguments, pin_inputs, warnings_of
from bfp.runs import Run
from bfp.specs.encoders import parse_encoder
from bfp.specs.finetune import Finetune, SegmentationTask
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    import numpy as np

    from bfp.drivers.finetune_results import Said
    from bfp.finetuning.crossvalidation import Judged
    from bfp.finetuning.heads import FittedHead
    from bfp.models.encoder import LoadedEncoder
    from bfp.models.pooling import Pooling
    from bfp.reports.blocks import Cell, Results

POSITION_BANDS = 20
"""Bands of height, about 7 mm each. Of 8 and 20 the better on the sessions that chose `EncoderVectors`."""

MODEL, UNTRAINED, HISTOGRAMS, COVARIATES = "encoder", "untrained", "histograms", "covariates"
SITE, PERMUTED, ORACLE = "site", "permuted", "oracle"
NO_RIVALS = (PERMUTED, ORACLE)
"""Approaches that are there to be compared with and not to be beaten."""

ALIKE = {"classification": "class", "regression": "parts of the number", "survival": "event"}
"""By the type of the task: what folds are dealt alike by."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was made of the material: the encoder, how its vectors are pooled, the head on all sessions, what those of
    the folds said, and the vectors, float32 (n, F)."""

    encoder: LoadedEncoder
    pooling: Pooling
    head: FittedHead
    folds: Judged
    vectors: np.ndarray


def plan(spec: Finetune, *, cpus: int | None = None) -> Plan:
    """Opens the store and the labels: whatever is wrong with them is said before anything is written."""
    if isinstance(spec.task, SegmentationTask):
        return finetune_segmentation.plan(spec, cpus=cpus)

    from bfp.finetuning.covariates import in_words

    run = place(spec.output) / spec.name
    material = material_of(spec, run=run)
    stacks, sessions = material.index.num_rows, len(material.labelled.sessions)
    counts = ", ".join(f"{name} ({text})" for name, text in learned_in_words(material.task, material.labelled).items())
    approaches = [name for name in _approaches(spec, material) if name not in NO_RIVALS]
    left_out = sum(material.labelled.left_out.values())
    columns = {**material.covariates}
    if spec.baselines.oracle and material.oracle:
        columns[spec.baselines.oracle] = material.oracle
    covariates = [("covariates", "; ".join(f"{name}: {in_words(values)}" for name, values in columns.items()))]
    dealt = f"as in {spec.splits}" if spec.splits else "by subject"
    warnings = warnings_of([material.store], spec.where)
    if sessions < 10 * max(2, len(classes_of(material.task))):
        warnings.append(f"only {counted(sessions, 'session')}: the intervals will be wide")
    return Plan(
        rows=[
            ("store", f"{material.store.place}, snapshot {material.store.snapshot}: {counted(stacks, 'stack')}"),
            ("encoder", spec.encoder),
            ("learned", f"{target_of(material.task)}: {counts}"),
            ("left out", counted(left_out, "session")),
            ("shown", ", ".join(material.shown)),
            ("cross-validation", f"{spec.folds} folds {dealt}; {', '.join(approaches)}"),
            *(covariates if columns else []),
            ("side by side", f"stacks and folds on {counted(cpus or cpus_here(), 'CPU')}"),
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
    from bfp.finetuning.crossvalidation import Study, cross_validate
    from bfp.finetuning.tables import folds_csv, predictions_parquet
    from bfp.models.encoder import load

    material = material_of(spec, run=run.folder)
    pin_inputs([material.store], spec.where, run=run.folder)
    labelled, kind, classes = material.labelled, material.task.type, classes_of(material.task)
    (run.folder / "folds.csv").write(folds_csv(labelled, folds=material.folds, kind=kind, classes=classes))
    for reason, count in labelled.left_out.items():
        run.note(f"{counted(count, 'session')} left out: {reason}")

    encoder = load(**encoder_arguments(spec, size_px=material.store.size_px))
    pooling = _pooling(spec, material)
    vectors = _vectors(spec, run, material, encoder, pooling)
    study = Study(
        learner=learner_of(material.task),
        targets=labelled.targets,
        persons=labelled.persons,
        folds=material.folds,
        strengths=list(spec.regularisation),
        seed=spec.seed,
    )
    run.phase("cross-validation", total=spec.folds * len(vectors), unit="folds")
    judged = cross_validate(
        study,
        vectors,
        by_lot=[PERMUTED],
        kept=run.folder / "checkpoints" / "folds",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=spec.compute.workers or int(ray.cluster_resources()["CPU"]),
    )
    predictions = predictions_parquet(judged, labelled, folds=material.folds, kind=kind, classes=classes)
    (run.folder / "predictions" / "predictions.parquet").write(predictions)

    run.phase("figures and model")
    head = study.fit(vectors[MODEL], np.ones(len(labelled.sessions), dtype=bool))
    met = acquaintance(spec.encoder, [scans_of(material.store, set(labelled.sessions))])
    said = _said(spec, material, encoder, met)
    results = results_of(study, judged, labelled, said)
    for warning in _faults(results.figures, material):
        run.warn(warning)
    if met.is_met:
        run.warn(f"encoder: its pretraining has met {met.told}")
    _export(run, spec, material, Fitted(encoder, pooling, head, judged[MODEL], vectors[MODEL]), results, said)
    run.result(results.as_json())


def _faults(figures: Mapping[str, Cell], material: Material) -> Iterator[str]:
    """What is wrong with the study, where lots or the site alone are told better than chance has it."""
    from bfp.metrics.measures import MEASURES

    first, chance = MEASURES[material.task.type].first, MEASURES[material.task.type].chance
    for approach in (SITE, PERMUTED):
        low = figures.get(f"{first.name}_{approach}_low")
        if chance is None or not isinstance(low, float) or low <= chance:
            continue
        if approach == PERMUTED:
            yield (
                f"permuted labels are told from the images ({first.label} of {low:.2f} or more): by chance in one "
                "study of forty, else a fault of the study; submit it with another name and another seed"
            )
        else:
            yield (
                f"{', '.join(material.site)} tells {target_of(material.task)} by itself ({first.label} of {low:.2f}): "
                "read what images add beside that; compare within sites, or leave sites out that have one class"
            )


def _approaches(spec: Finetune, material: Material) -> list[str]:
    """The model and its baselines, in the order in which they are shown."""
    asked = {
        UNTRAINED: spec.baselines.untrained and parse_encoder(spec.encoder).origin != "random",
        HISTOGRAMS: spec.baselines.histograms,
        COVARIATES: bool(spec.baselines.covariates),
        SITE: bool(material.site),
        PERMUTED: spec.baselines.permuted,
        ORACLE: spec.baselines.oracle is not None,
    }
    return [MODEL, *(name for name, wanted in asked.items() if wanted)]


# from stacks to vectors ----------------------------------------------------------------------------------------------


def _pooling(spec: Finetune, material: Material) -> Pooling:
    from bfp.models.pooling import Pooling

    parts = material.shown if material.store.form == "neighbours" else ("",)
    return Pooling(bands=POSITION_BANDS if spec.pooling == "position" else 1, parts=parts)


def _vectors(
    spec: Finetune, run: Run, material: Material, encoder: LoadedEncoder, pooling: Pooling
) -> dict[str, np.ndarray]:
    """One vector a session for each approach, (n, F) each."""
    import ray

    from bfp.features.describe import Describe, EncoderVectors, Histograms
    from bfp.features.doubles import check_parted, doubles
    from bfp.features.kept import Extraction
    from bfp.features.sessions import pool_sessions
    from bfp.finetuning.covariates import covariate_vectors
    from bfp.models.encoder import untrained

    machine = ray.cluster_resources()
    gpus = min(1.0, machine.get("GPU", 0.0)) if spec.compute.gpus is None else spec.compute.gpus
    approaches = _approaches(spec, material)
    describe: dict[str, Describe] = {HISTOGRAMS: Histograms()} if HISTOGRAMS in approaches else {}  # cheap: goes first
    describe[MODEL] = EncoderVectors(encoder)
    if UNTRAINED in approaches:
        describe[UNTRAINED] = EncoderVectors(untrained(encoder))
    vectors: dict[str, np.ndarray] = {}
    workers = spec.compute.workers or int(machine["CPU"])
    with Extraction(workers=workers, gpus=gpus, batch_size=spec.compute.batch_size) as extraction:
        for name, own in describe.items():
            run.phase(f"features: {name}", total=material.index.num_rows, unit="stacks")
            table = extraction.features(
                material.store,
                material.index,
                own,
                shown=material.shown,
                kept=run.folder / "features",
                on_done=run.progress,
                stopping=lambda: run.stopping,
            )
            if not vectors:  # planes are the same in every table
                homes = dict(zip(material.labelled.persons, material.folds.tolist(), strict=True))
                source = str(material.store.place)
                check_parted(doubles(table), homes, source=source, note=run.note, warn=run.warn)
            vectors[name] = pool_sessions(table, material.labelled.sessions, pooling)
    if COVARIATES in approaches:
        vectors[COVARIATES] = covariate_vectors(material.covariates)
    if SITE in approaches:
        vectors[SITE] = covariate_vectors(material.site)
    if PERMUTED in approaches:
        vectors[PERMUTED] = vectors[MODEL]
    if material.oracle is not None:
        vectors[ORACLE] = covariate_vectors({ORACLE: material.oracle})
    return {name: vectors[name] for name in approaches}


# what is said of it --------------------------------------------------------------------------------------------------


def _said(spec: Finetune, material: Material, encoder: LoadedEncoder, met: Acquaintance) -> Said:
    from bfp.drivers.finetune_results import Said

    told, store = encoder.description, material.store
    pooled = (
        f"averaged in {POSITION_BANDS} bands of height" if spec.pooling == "position" else "averaged over all slices"
    )
    return Said(
        kind=material.task.type,
        target=target_of(material.task),
        classes=classes_of(material.task),
        model=MODEL,
        no_rivals=NO_RIVALS,
        names={
            MODEL: "untrained encoder" if told["origin"] == "random" else "pretrained encoder",
            UNTRAINED: "same encoder, untrained",
            HISTOGRAMS: "histograms of the slices",
            SITE: f"the site alone ({', '.join(material.site)})",
            COVARIATES: f"covariates alone ({', '.join(spec.baselines.covariates)})",
            PERMUTED: "permuted labels",
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
            ("seed", spec.seed),
        ],
        methods=(
            f"{store.slice_axis.capitalize()} slice stacks of {', '.join(material.shown)} were passed through a frozen "
            f"{told['architecture']} "
            f"({told['parameters'] / 1e6:.1f} million parameters; {spec.encoder}). The standard deviations over the "
            f"patch tokens of each stack were {pooled}; what a session lacked took the training mean."
            f" Subjects whom its pretraining had met, without labels: {met.told}."
        ),
    )


def _export(run: Run, spec: Finetune, material: Material, fitted: Fitted, results: Results, said: Said) -> None:
    """The model folder: the head that was fitted on all sessions, beside the encoder that it needs."""
    from bfp.drivers.finetune_material import complete_sessions
    from bfp.drivers.finetune_results import model_card
    from bfp.imaging import IMAGING_VERSION
    from bfp.metrics.recalibration import recalibration_of, threshold_of
    from bfp.models.classifier import Classifier, save_classifier
    from bfp.models.encoder import export
    from bfp.models.typical import fit_typical

    folder, store = run.folder / "model", material.store
    card = model_card(run.name, results, said)
    provenance = {"run": run.name, "bfp": __version__, "encoder": spec.encoder}
    export(fitted.encoder, folder / "encoder", card=card, provenance=provenance)
    keep_acquaintances(spec.encoder, folder / "encoder")
    held_out, classes = fitted.folds, classes_of(material.task)
    classifier = Classifier(
        target=target_of(material.task),
        classes=tuple(classes),
        pooling=fitted.pooling,
        shown=material.shown,
        preprocessing=store.preprocessing,
        head=fitted.head.head,
        fold_heads=tuple(fold.head for fold in fitted.folds.folds),
        typical=fit_typical(fitted.vectors, material.folds, complete=complete_sessions(material)),
        recalibration=recalibration_of(held_out.targets, held_out.said),
        threshold=threshold_of(held_out.targets == 1, held_out.said[:, 1]) if len(classes) == 2 else None,
        facts={
            **provenance,
            "imaging": IMAGING_VERSION,
            "store": {"uri": spec.store, "snapshot": store.snapshot, "fingerprint": store.fingerprint},
            "weights": fitted.encoder.description["weights"],
            "strength": fitted.head.strength,
            "figures": results.figures,
        },
    )
    save_classifier(classifier, folder, card=card)
