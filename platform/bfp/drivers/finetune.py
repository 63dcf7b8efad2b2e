"""kind: finetune — a store, an encoder and labels become a classifier of sessions, with its cross-validated figures.

1. each stack becomes a vector: the encoder's class token and spread of patch tokens (frozen), kept
2. the vectors of a session are pooled by slice position to one
3. folds: subjects dealt out, stratified by class and cohort
4. for each fold a logistic regression, its strength chosen inside the training subjects; the same for
   every baseline, on the same folds
5. AUROC of each fold, their mean with its 95 % interval over subjects, and paired differences
6. one more head on all sessions: the model folder, with the heads of the folds for the spread

<run>/features/      vectors of stacks          <run>/folds.csv        the split
<run>/checkpoints/   folds that are done        <run>/predictions/     predictions.parquet, out of fold
<run>/inputs.json    the snapshot that is used  <run>/model/           the classifier
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp import __version__
from bfp.drivers.inputs import check_encoder
from bfp.drivers.plan import Plan
from bfp.errors import InputError
from bfp.runs import Run
from bfp.specs.encoders import parse_encoder
from bfp.specs.finetune import Classification, Finetune
from bfp.storage import place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.drivers.finetune_results import Said
    from bfp.finetuning.crossvalidation import Judged
    from bfp.finetuning.labels import Labelled
    from bfp.finetuning.logistic import FittedHead
    from bfp.models.encoder import LoadedEncoder
    from bfp.models.pooling import Pooling
    from bfp.reports.blocks import Results
    from bfp.store.reader import SliceStore

POSITION_BANDS = 8
"""Bands of height: in a head cut every 4 to 6 mm three or four slices each."""

MODEL, UNTRAINED, HISTOGRAMS, COVARIATES, ORACLE = "encoder", "untrained", "histograms", "covariates", "oracle"


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a spec comes down to: the stacks that are used, the sessions with a class, and their folds."""

    store: SliceStore
    index: pa.Table
    shown: tuple[str, ...]
    task: Classification
    labelled: Labelled
    folds: np.ndarray
    covariates: dict[str, list[str]]
    oracle: list[str] | None


def plan(spec: Finetune) -> Plan:
    """Opens the store and the labels: whatever is wrong with them is said before anything is written."""
    _check_available(spec)
    check_encoder(spec.encoder)
    material = _material(spec, snapshot=None)
    per_class = _per_class(material)
    approaches = [name for name in _approaches(spec) if name != ORACLE]
    left_out = sum(material.labelled.left_out.values())
    warnings = []
    if len(material.labelled.sessions) < 10 * len(material.task.classes):
        warnings.append(f"{len(material.labelled.sessions)} sessions are few: the intervals will be wide")
    return Plan(
        rows=[
            (
                "store",
                f"{material.store.place}, snapshot {material.store.snapshot}: {material.index.num_rows:,} stacks",
            ),
            ("encoder", spec.encoder),
            (
                "learned",
                f"{material.task.target}: " + ", ".join(f"{name} ({text})" for name, text in per_class.items()),
            ),
            ("left out", f"{left_out:,} sessions"),
            ("shown", ", ".join(material.shown)),
            ("cross-validation", f"{spec.folds} folds by subject; {', '.join(approaches)}"),
        ],
        figures={
            "snapshot": material.store.snapshot,
            "stacks": material.index.num_rows,
            "sessions": len(material.labelled.sessions),
            "left_out": left_out,
            "folds": spec.folds,
        },
        warnings=warnings,
    )


def execute(spec: Finetune, run: Run) -> None:
    """Run it to its end, or to where the user stops it; Ray is up already."""
    import ray

    from bfp.drivers.finetune_results import results_of
    from bfp.finetuning.crossvalidation import Study, cross_validate
    from bfp.finetuning.tables import folds_csv, predictions_parquet

    _check_available(spec)
    material = _material(spec, snapshot=pinned_snapshot(spec, run))
    labelled, classes = material.labelled, material.task.classes
    (run.folder / "folds.csv").write(folds_csv(labelled, folds=material.folds, classes=classes))
    for reason, count in labelled.left_out.items():
        run.note(f"{count} session{'s' * (count > 1)} left out: {reason}")

    encoder, pooling = _load_encoder(spec, material.store.size_px), _pooling(spec, material)
    vectors = _vectors(spec, run, material, encoder, pooling)
    study = Study(
        classes=labelled.classes,
        persons=labelled.persons,
        folds=material.folds,
        class_count=len(classes),
        strengths=list(spec.regularisation),
        seed=spec.seed,
    )
    run.phase("cross-validation", total=spec.folds * len(vectors), unit="folds")
    judged = cross_validate(
        study,
        vectors,
        kept=run.folder / "checkpoints" / "folds",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=spec.compute.workers or int(ray.cluster_resources()["CPU"]),
    )
    predictions = predictions_parquet(judged, labelled, folds=material.folds, classes=classes)
    (run.folder / "predictions" / "predictions.parquet").write(predictions)

    run.phase("figures and model")
    said = _said(spec, material, encoder)
    results = results_of(study, judged, labelled, said)
    final = study.fit(vectors[MODEL], labelled.classes >= 0)
    _export(run, spec, material, encoder, pooling, final, judged[MODEL], results, said)
    run.result(results.as_json())


# what is asked for ---------------------------------------------------------------------------------------------------


def _check_available(spec: Finetune) -> None:
    if not isinstance(spec.task, Classification):
        raise InputError(f"task.type: {spec.task.type} is not available in bfp {__version__}; classification is")
    if spec.tune != "frozen":
        raise InputError(f"tune: {spec.tune} is not available in bfp {__version__}; frozen is")


def _approaches(spec: Finetune) -> list[str]:
    """The model and its baselines, in the order in which they are shown."""
    asked = {
        UNTRAINED: spec.baselines.untrained and parse_encoder(spec.encoder).origin != "random",
        HISTOGRAMS: spec.baselines.histograms,
        COVARIATES: bool(spec.baselines.covariates),
        ORACLE: spec.baselines.oracle is not None,
    }
    return [MODEL, *(name for name, wanted in asked.items() if wanted)]


def pinned_snapshot(spec: Finetune, run: Run) -> int:
    """The store's snapshot that this run uses: the latest at its first submission, for ever."""
    from bfp.store.reader import SliceStore

    pin = run.folder / "inputs.json"
    if not pin.exists():
        pin.write(json.dumps({"store": spec.store, "snapshot": SliceStore.open(place(spec.store)).snapshot}).encode())
    return int(json.loads(pin.read())["snapshot"])


def _material(spec: Finetune, *, snapshot: int | None) -> Material:
    from bfp.finetuning.splits import grouped_folds
    from bfp.store.reader import SliceStore
    from bfp.store.where import read_subjects, select

    assert isinstance(spec.task, Classification)
    store = SliceStore.open(place(spec.store), snapshot)
    shown = _shown(spec, store)
    index = select(
        store.stack_index(),
        cohorts=spec.where.cohorts,
        modalities=spec.where.modalities,
        subjects=read_subjects(place(spec.where.subjects)) if spec.where.subjects else None,
        exclude_subjects=read_subjects(place(spec.where.exclude_subjects)) if spec.where.exclude_subjects else None,
    )
    index = select(index, modalities=shown)
    source = spec.labels or spec.store
    labelled, index = _labelled(spec, store, index, source=source)
    folds = grouped_folds(
        persons=labelled.persons,
        classes=labelled.classes,
        strata=[key.cohort for key in labelled.sessions],
        class_names=spec.task.classes,
        folds=spec.folds,
        seed=spec.seed,
    )
    oracle = spec.baselines.oracle
    return Material(
        store=store,
        index=index,
        shown=shown,
        task=spec.task,
        labelled=labelled,
        folds=folds,
        covariates={name: labelled.column(name, source=source) for name in spec.baselines.covariates},
        oracle=labelled.column(oracle, source=source) if oracle else None,
    )


def _shown(spec: Finetune, store: SliceStore) -> tuple[str, ...]:
    stacks = store.preprocessing["stacks"]
    held = tuple(stacks["modalities"] if store.form == "neighbours" else stacks["channels"])
    unknown = [name for name in spec.modalities or () if name not in held]
    if unknown:
        raise InputError(f"modalities: {', '.join(unknown)}: the store {store.place} has {', '.join(held)}")
    return tuple(spec.modalities or held)


def _labelled(spec: Finetune, store: SliceStore, index: pa.Table, *, source: str) -> tuple[Labelled, pa.Table]:
    """The sessions that have stacks and a class, and the stacks of these alone."""
    import pyarrow as pa

    from bfp.cohorts.labels import read_labels
    from bfp.cohorts.sessions import Key
    from bfp.finetuning.labels import assign_classes, of_table

    assert isinstance(spec.task, Classification)
    identity = [Key(*key) for key in zip(*(index[name].to_pylist() for name in Key._fields), strict=True)]
    with_stacks = set(identity)
    if not with_stacks:
        raise InputError(f"{spec.store}: no stack is left by `where` and `modalities`")
    if spec.labels:
        labels = of_table(read_labels(place(spec.labels)), with_stacks)
    else:
        rows = store.sessions().to_pylist(maps_as_pydicts="strict")
        carried = {Key(row["cohort"], row["subject"], row["session"]): row["labels"] for row in rows}
        labels = {key: carried.get(key, {}) for key in with_stacks}
    labelled = assign_classes(labels, target=spec.task.target, classes=spec.task.classes, source=source)
    used = set(labelled.sessions)
    return labelled, index.filter(pa.array([key in used for key in identity]))


def _per_class(material: Material) -> dict[str, str]:
    """Sessions and subjects of each class, in words."""
    counts = {}
    for number, name in enumerate(material.task.classes):
        persons = [p for p, k in zip(material.labelled.persons, material.labelled.classes, strict=True) if k == number]
        counts[name] = f"{len(persons):,} sessions of {len(set(persons)):,} subjects"
    return counts


# from stacks to vectors ----------------------------------------------------------------------------------------------


def _load_encoder(spec: Finetune, size_px: int) -> LoadedEncoder:
    from bfp.models.encoder import load

    reference, shape = parse_encoder(spec.encoder), spec.encoder_shape
    return load(
        origin=reference.origin,
        name=reference.name,
        uri=reference.uri,
        size_px=size_px,
        width=shape.width if shape else None,
        depth=shape.depth if shape else None,
        heads=shape.heads if shape else None,
        seed=spec.seed,
    )


def _untrained(encoder: LoadedEncoder, *, seed: int) -> LoadedEncoder:
    """The same architecture with random weights; its pixels are normalised in the same way."""
    from dataclasses import replace

    from bfp.models.encoder import load

    told = encoder.description
    made = load(
        origin="random",
        name=told["architecture"],
        uri=None,
        size_px=told["size_px"],
        width=told["width"],
        depth=told["depth"],
        heads=told["heads"],
        seed=seed,
    )
    return replace(made, mean=encoder.mean, std=encoder.std)


def _pooling(spec: Finetune, material: Material) -> Pooling:
    from bfp.models.pooling import Pooling

    parts = material.shown if material.store.form == "neighbours" else ("",)
    by_position = spec.pooling == "position"
    return Pooling(bands=POSITION_BANDS if by_position else 1, parts=parts, relative=by_position)


def _vectors(
    spec: Finetune, run: Run, material: Material, encoder: LoadedEncoder, pooling: Pooling
) -> dict[str, np.ndarray]:
    """One vector a session for each approach, (n, F) each."""
    import ray

    from bfp.features.describe import Describe, EncoderVectors, Histograms
    from bfp.features.kept import Extraction
    from bfp.features.sessions import pool_sessions
    from bfp.finetuning.covariates import covariate_vectors

    machine = ray.cluster_resources()
    gpus = min(1.0, machine.get("GPU", 0.0)) if spec.compute.gpus is None else spec.compute.gpus
    describe: dict[str, Describe] = {MODEL: EncoderVectors(encoder)}
    approaches = _approaches(spec)
    if UNTRAINED in approaches:
        describe[UNTRAINED] = EncoderVectors(_untrained(encoder, seed=spec.seed))
    if HISTOGRAMS in approaches:
        describe[HISTOGRAMS] = Histograms()
    vectors = {}
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
            vectors[name] = pool_sessions(table, material.labelled.sessions, pooling)
    if COVARIATES in approaches:
        vectors[COVARIATES] = covariate_vectors(material.covariates)
    if material.oracle is not None:
        vectors[ORACLE] = covariate_vectors({ORACLE: material.oracle})
    return vectors


# what is said of it --------------------------------------------------------------------------------------------------


def _said(spec: Finetune, material: Material, encoder: LoadedEncoder) -> Said:
    from bfp.drivers.finetune_results import Said

    told, store = encoder.description, material.store
    by_position = f"taken relative to the session's mean and spread and averaged in {POSITION_BANDS} bands of height"
    pooled = by_position if spec.pooling == "position" else "averaged over all slices"
    return Said(
        target=material.task.target,
        classes=material.task.classes,
        model=MODEL,
        truth=ORACLE,
        names={
            MODEL: "untrained encoder" if told["origin"] == "random" else "pretrained encoder",
            UNTRAINED: "same encoder, untrained",
            HISTOGRAMS: "histograms of the slices",
            COVARIATES: f"covariates alone ({', '.join(spec.baselines.covariates)})",
            ORACLE: f"oracle ({spec.baselines.oracle})",
        },
        per_class=_per_class(material),
        facts=[
            ("store", f"{store.place}, snapshot {store.snapshot}"),
            ("preprocessing", store.fingerprint),
            ("stacks", material.index.num_rows),
            ("modalities shown", ", ".join(material.shown)),
            ("encoder", spec.encoder),
            ("architecture", f"{told['architecture']}, width {told['width']}, {told['depth']} blocks"),
            ("weights", told["weights"][:16]),
            ("tuned", spec.tune),
            ("seed", spec.seed),
        ],
        methods=(
            f"Axial slice stacks of {', '.join(material.shown)} were passed through a frozen {told['architecture']} "
            f"({told['parameters'] / 1e6:.1f} million parameters; {spec.encoder}). The class token and the standard "
            f"deviation of the patch tokens of each stack were {pooled}; what a session lacked took the training mean."
        ),
    )


def _export(
    run: Run,
    spec: Finetune,
    material: Material,
    encoder: LoadedEncoder,
    pooling: Pooling,
    final: FittedHead,
    judged: Judged,
    results: Results,
    said: Said,
) -> None:
    """The model folder: the head that was fitted on all sessions, beside the encoder that it needs."""
    from bfp.drivers.finetune_results import model_card
    from bfp.imaging import IMAGING_VERSION
    from bfp.models.classifier import Classifier, save_classifier
    from bfp.models.encoder import export

    folder, store = run.folder / "model", material.store
    card = model_card(run.name, results, said)
    provenance = {"run": run.name, "bfp": __version__, "encoder": spec.encoder}
    export(encoder.model, folder / "encoder", mean=encoder.mean, std=encoder.std, card=card, provenance=provenance)
    classifier = Classifier(
        target=material.task.target,
        classes=tuple(material.task.classes),
        pooling=pooling,
        shown=material.shown,
        preprocessing=store.preprocessing,
        head=final.head,
        fold_heads=tuple(fold.head for fold in judged.folds),
        facts={
            **provenance,
            "imaging": IMAGING_VERSION,
            "store": {"uri": spec.store, "snapshot": store.snapshot, "fingerprint": store.fingerprint},
            "weights": encoder.description["weights"],
            "strength": final.strength,
            "figures": results.figures,
        },
    )
    save_classifier(classifier, folder, card=card)
