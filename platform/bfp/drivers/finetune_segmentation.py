"""kind: finetune, task.type segmentation — a store, its masks and an encoder become a model that draws them.

1. the tokens of each stack's patches (frozen encoder), its pixels and its classes, kept, one file a session
2. folds: subjects dealt out, stratified by cohort
3. for each fold a decoder, as many steps as the spec says; the same for the encoder untrained; beside them an atlas
   that sees no image and, of one class, the best grey threshold (`finetuning.segmentation`)
4. Dice and HD95 of every class and session, in the voxels of the file in which it was drawn; their means with 95 %
   intervals over subjects; how much higher than each baseline
5. one more decoder on all sessions: the model folder

<run>/features/       sessions for decoders      <run>/folds.csv        the split
<run>/checkpoints/    folds that are done        <run>/predictions/     segmentations.parquet, out of fold
<run>/derivatives/    masks, out of fold         <run>/model/           encoder and decoder
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.drivers.acquaintance import acquaintance, keep_acquaintances, scans_of
from bfp.drivers.finetune_material import shown_of
from bfp.drivers.gpus import gpus_of
from bfp.drivers.plan import Capacity, Plan, capacity_here
from bfp.drivers.segmentation_material import dealt, drawn_in, labels_seen, split_csv
from bfp.drivers.stores import (
    check_encoder,
    check_size,
    encoder_arguments,
    imaging_of,
    open_stores,
    pin_inputs,
    wanted_stacks,
    warnings_of,
)
from bfp.errors import InputError
from bfp.runs import Run
from bfp.specs.encoders import parse_encoder
from bfp.specs.finetune import Finetune, SegmentationTask
from bfp.storage import Place, place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.finetuning.segmentation import Approach, FoldResult, Recipe, Segmented
    from bfp.models.encoder import LoadedEncoder
    from bfp.reports.blocks import Results
    from bfp.store.reader import SliceStore


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """index: the stacks that have labels; left_out: why sessions are not among them, and how many."""

    store: SliceStore
    task: SegmentationTask
    index: pa.Table
    shown: tuple[str, ...]
    study: Segmented
    left_out: dict[str, int]

    @property
    def persons(self) -> list[str]:
        return [f"{key.cohort}/{key.subject}" for key in self.study.sessions]

    @property
    def classes(self) -> list[str]:
        return list(self.study.labels.classes)


def plan(spec: Finetune, *, capacity: Capacity | None = None) -> Plan:
    """Opens the store: whatever is wrong with it is said before anything is written."""
    material = material_of(spec, run=place(spec.output) / spec.name)
    stacks, sessions = material.index.num_rows, len(material.study.sessions)
    subjects, decoder = len(set(material.persons)), material.task.decoder
    warnings = warnings_of([material.store], spec.where)
    if subjects < 20:
        warnings.append(f"only {counted(subjects, 'subject')}: the intervals will be wide")
    dealt = f"as in {spec.splits}" if spec.splits else "by subject"
    left_out = sum(material.left_out.values())
    return Plan(
        rows=[
            ("store", f"{material.store.place}, snapshot {material.store.snapshot}: {counted(stacks, 'stack')}"),
            ("encoder", spec.encoder),
            ("learned", f"{material.task.target}: {', '.join(material.classes)}"),
            ("drawn on", f"{counted(sessions, 'session')} of {counted(subjects, 'subject')}"),
            ("left out", counted(left_out, "session")),
            ("shown", ", ".join(material.shown)),
            ("decoder", f"{decoder.layers} layers, {decoder.steps:,} steps of {decoder.batch_size} slices in a fold"),
            ("cross-validation", f"{spec.folds} folds {dealt}; {', '.join(approaches_of(spec, material))}"),
            ("side by side", f"sessions and folds on {counted((capacity or capacity_here()).cpus, 'CPU')}"),
            ("memory", "a copy of the encoder, or one session's probabilities, for each worker"),
            ("time", "not known before the first sessions are done; it can be stopped and resumed at any moment"),
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
    import ray

    from bfp.cohorts.derivatives import Masks
    from bfp.drivers.finetune_segmentation_results import known_of, results_of, write_pictures
    from bfp.drivers.finetune_tripod import reported
    from bfp.features.doubles import check_parted, doubles
    from bfp.features.token_maps import planes_of
    from bfp.finetuning.segmentation import ALL, LEARNED, dump_fold, load_fold, run_fold
    from bfp.finetuning.side_by_side import Job, side_by_side
    from bfp.finetuning.tables import segmentations_parquet
    from bfp.models.encoder import load

    material = material_of(spec, run=run.folder)
    study = material.study
    pin_inputs([material.store], spec.where, run=run.folder)
    (run.folder / "folds.csv").write(split_csv(study.sessions, study.folds))
    for reason, count in material.left_out.items():
        run.note(f"{counted(count, 'session')} left out: {reason}")

    encoder = load(**encoder_arguments(spec, size_px=material.store.size_px))
    files = _token_maps(spec, run, material, encoder)
    planes = planes_of(study.sessions, files["encoder"])
    homes = dict(zip(material.persons, study.folds.tolist(), strict=True))
    check_parted(doubles(planes), homes, source=str(material.store.place), note=run.note, warn=run.warn)
    description = f"out of fold: each by a decoder that was learned without the subject (run {run.name})"
    masks = Masks(run.folder / "derivatives", material.task.target, tuple(material.classes), description)
    recipe, gpus = _recipe(spec, material.task), gpus_of(spec.compute)
    approaches = approaches_of(spec, material)
    maps_of = {name: files["untrained" if name == "untrained" else "encoder"] for name in approaches}
    wanted: list[tuple[Approach, int]] = [(name, fold) for name in approaches for fold in range(spec.folds)]
    wanted.append(("encoder", ALL))
    gpus_each = {name: min(1.0, gpus) if name in LEARNED else 0.0 for name in approaches}
    seen = labels_seen(study)
    digests = {name: _digest(material, recipe, maps_of[name], seen) for name in approaches}
    jobs = {
        (name, fold): Job(
            run.folder / "checkpoints" / "folds" / f"{name}-{fold}-{digests[name]}.fold",
            (study, name, maps_of[name], fold, recipe, "cuda" if gpus_each[name] else "cpu", masks),
            gpus=gpus_each[name],
        )
        for name, fold in wanted
    }
    run.phase("cross-validation", total=len(jobs), unit="folds")
    done = side_by_side(
        run_fold,
        jobs,
        dump=dump_fold,
        load=load_fold,
        unit="fold",
        on_done=run.progress,
        stopping=lambda: run.stopping,
        at_once=spec.compute.workers or int(ray.cluster_resources()["CPU"]),
    )
    folds: dict[str, list[FoldResult]] = {name: [done[name, fold] for fold in range(spec.folds)] for name in approaches}

    run.phase("figures and model")
    masks.describe([(key, where.scan) for key, where in zip(study.sessions, study.drawn_on, strict=True)])
    table = segmentations_parquet(study, folds)
    (run.folder / "predictions" / "segmentations.parquet").write(table)
    shown = write_pictures(run, study, folds["encoder"], masks)
    results = results_of(spec, material, encoder.description, folds, pictures=shown)
    met = acquaintance(spec.encoder, [scans_of(material.store, set(study.sessions))])
    results = reported(results, known_of(spec, material, met=met.told))
    if met.is_met:
        run.warn(f"encoder: its pretraining has met {met.told}")
    for reason, count in _not_native(folds["encoder"]).items():
        run.warn(f"{counted(count, 'session')} judged in the working grid of the stacks, not in native space: {reason}")
    _export(run, spec, material, encoder, done["encoder", ALL], results)
    run.result(results.as_json())


def approaches_of(spec: Finetune, material: Material) -> list[Approach]:
    """The model and its baselines, in the order in which they are shown."""
    found: list[Approach] = ["encoder"]
    if spec.baselines.untrained and parse_encoder(spec.encoder).origin != "random":
        found.append("untrained")
    found.append("atlas")
    if len(material.classes) == 1:
        found.append("threshold")
    return found


# material ------------------------------------------------------------------------------------------------------------


def material_of(spec: Finetune, *, run: Place) -> Material:
    """The store as the run in that folder has pinned it, else as it is. Raises InputError for what is wrong."""
    from bfp.store.where import select

    task = spec.task
    assert isinstance(task, SegmentationTask)
    if spec.tune != "frozen":
        raise InputError(f"tune: {spec.tune} is not available for a segmentation in bfp {__version__}; frozen is")
    (store,) = open_stores([spec.store], spec.where, run=run)
    check_size(store, patch_px=check_encoder(spec.encoder), encoder=spec.encoder)
    imaging_of(store)
    shown = shown_of(spec.modalities, store)
    index = select(wanted_stacks(store, spec.where), modalities=shown)
    drawn = drawn_in(store, index, task.target)
    folds = dealt(drawn.study.sessions, task.target, folds=spec.folds, seed=spec.seed, splits=spec.splits)
    study = replace(drawn.study, folds=folds)
    return Material(store=store, task=task, index=drawn.index, shown=shown, study=study, left_out=drawn.left_out)


# work ----------------------------------------------------------------------------------------------------------------


def _token_maps(spec: Finetune, run: Run, material: Material, encoder: LoadedEncoder) -> dict[str, list[Place]]:
    """The kept files of the sessions, for each encoder that a decoder is learned on."""
    import ray

    from bfp.features.kept import Extraction
    from bfp.features.token_maps import TokenMaps
    from bfp.models.decoder import blocks_of
    from bfp.models.encoder import untrained

    blocks = blocks_of(material.task.decoder.layers, depth=encoder.description["depth"])
    maps = {"encoder": TokenMaps(encoder, blocks)}
    if "untrained" in approaches_of(spec, material):
        maps["untrained"] = TokenMaps(untrained(encoder), blocks)
    workers = spec.compute.workers or int(ray.cluster_resources()["CPU"])
    files = {}
    with Extraction(workers=workers, gpus=gpus_of(spec.compute), batch_size=spec.compute.batch_size) as extraction:
        for name, own in maps.items():
            run.phase(f"features: {name}", total=material.index.num_rows, unit="stacks")
            files[name] = extraction.token_maps(
                material.store,
                material.index,
                own,
                material.study.labels,
                shown=material.shown,
                kept=run.folder / "features",
                on_done=run.progress,
                stopping=lambda: run.stopping,
            )
    return files


def _recipe(spec: Finetune, task: SegmentationTask) -> Recipe:
    from bfp.finetuning.segmentation import Recipe

    return Recipe(**task.decoder.model_dump(), seed=spec.seed)


def _digest(material: Material, recipe: Recipe, maps: list[Place], seen: list[list[Any]]) -> str:
    """A hash of all that the folds of an approach follow from; files of maps are named by their content.

    seen: as of `labels_seen`.
    """
    from bfp.finetuning.segmentation import FORMAT

    study = material.study
    content = [
        FORMAT,
        asdict(recipe),
        [file.name for file in maps],
        study.folds.tolist(),
        seen,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _not_native(folds: list[FoldResult]) -> dict[str, int]:
    """Why sessions were not judged in native space, and how many."""
    reasons: dict[str, int] = {}
    for fold in folds:
        for score in fold.scores:
            if score.space != "native":
                reasons[score.why] = reasons.get(score.why, 0) + 1
    return reasons


def _export(
    run: Run,
    spec: Finetune,
    material: Material,
    encoder: LoadedEncoder,
    final: FoldResult,
    results: Results,
) -> None:
    """The model folder: the decoder that was learned on all sessions, beside the encoder that it needs."""
    from bfp.drivers.finetune_segmentation_results import model_card
    from bfp.models.encoder import export
    from bfp.models.segmenter import Segmenter, decoder_of, save_segmenter

    folder, store, told = run.folder / "model", material.store, material.task.decoder
    card = model_card(run.name, results, material)
    provenance = {"run": run.name, "bfp": __version__, "encoder": spec.encoder}
    export(encoder, folder / "encoder", card=card, provenance=provenance)
    keep_acquaintances(spec.encoder, folder / "encoder")
    segmenter = Segmenter(
        target=material.task.target,
        classes=tuple(material.classes),
        drawn_on=store.drawn_on(material.task.target),
        shown=material.shown,
        layers=told.layers,
        width=told.width,
        preprocessing=store.preprocessing,
        decoder=decoder_of(
            final.decoder,
            encoder=encoder,
            layers=told.layers,
            classes=len(material.classes),
            width=told.width,
            size_px=store.size_px,
        ),
        facts={
            **provenance,
            "imaging": imaging_of(store),
            "store": {"uri": spec.store, "snapshot": store.snapshot, "fingerprint": store.fingerprint},
            "weights": encoder.description["weights"],
            "figures": results.figures,
        },
    )
    save_segmenter(segmenter, folder, card=card)
