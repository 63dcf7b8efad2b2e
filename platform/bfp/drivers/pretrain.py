"""kind: pretrain — slice stores become an encoder, by DINOv2 self-supervision (Oquab et al. 2023, arXiv 2304.07193).

1. the stacks that are used: one or more stores, filtered; subjects of the probe are held out by hash
2. the order of the batches is planned for the whole run, whatever the number of workers
3. workers on Ray Train: student, teacher and heads, from the last checkpoint or from the encoder that the spec names
4. the teacher's backbone is exported as a folder that plain timm loads
5. the probe, on the held-out subjects: residual tissue R², AUROC of a label, beside the same encoder untrained

A run that has ended goes on where `train.epochs` has grown: its encoder stays until the new one is there.

<run>/inputs.json     the snapshots that are used      <run>/pictures/    views, maps of patch tokens
<run>/checkpoints/    step-*/ and their markers        <run>/model/       the encoder
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.drivers import pretrain_outlook as outlook
from bfp.drivers.acquaintance import write_seen_by
from bfp.drivers.plan import Capacity, Plan, capacity_here
from bfp.drivers.pretrain_material import Material, material_of, probed_sessions, recipe_of
from bfp.drivers.stores import encoder_arguments, pin_inputs, warnings_of
from bfp.errors import InputError, Interrupted, StorageError
from bfp.models.folders import CARD
from bfp.reports.numbers import duration_text, number_text
from bfp.runs import Run, RunFolder
from bfp.specs.pretrain import Pretrain
from bfp.storage import Place, place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.drivers.board import News
    from bfp.drivers.pretrain_results import Probed
    from bfp.drivers.training_worker import Task
    from bfp.models.encoder import LoadedEncoder
    from bfp.pretraining.labelled import LabelledSessions
    from bfp.pretraining.schedules import Length
    from bfp.pretraining.tripwire import Watch
    from bfp.store.reader import SliceStore


SAVED = "saved"
"""The figure that says of which step a checkpoint is."""


def plan(spec: Pretrain, *, capacity: Capacity | None = None) -> Plan:
    """Opens the stores: whatever is wrong with them, the encoder or the crops is said before anything is written."""
    from bfp.batches.plan import WINDOW

    capacity = capacity or capacity_here()
    run = place(spec.output) / spec.name
    material = material_of(spec, run=run)
    _check_checkpoints(run, steps=material.steps)
    batch_size, (subjects, held) = spec.train.batch_size, material.subjects
    held_out = f"{counted(held, 'subject')} held out for the probe"
    steps = f"{material.steps:,} of {batch_size} stacks, {material.steps_per_epoch:,} an epoch"
    most = max(material.times(cohort) for cohort in material.order.cohorts.values())
    ahead_mb = 2 * WINDOW * batch_size * 3 * material.stores[0].size_px ** 2 / 1e6
    warnings = warnings_of(material.stores, spec.where)
    training = outlook.of(spec, steps=material.steps, size_px=material.stores[0].size_px, gpus=capacity.gpus)
    if most > 1000:
        warnings.append(f"stacks are seen up to {most:,.0f} times: more data would serve better than more epochs")
    if not spec.encoder.startswith("random:") and not spec.ssl.freeze_backbone_epochs:
        prototypes = spec.ssl.freeze_last_layer_epochs
        rest = min(prototypes + 1, (prototypes + spec.train.epochs) / 2)  # a spec takes what lies between the two
        warnings.append(
            "the heads are new and the encoder is not, so that their first gradients may ruin it; let them learn alone "
            f"at first (ssl.freeze_backbone_epochs: {rest:g}), and the encoder slowly after that (ssl.backbone_rate: "
            "0.1)"
        )
    for name in ("warmup_epochs", "teacher_temperature_warmup_epochs", "freeze_last_layer_epochs"):
        if (epochs := getattr(spec.ssl, name)) > spec.train.epochs / 3:
            warnings.append(f"ssl.{name}: {epochs:g}, of a run of {spec.train.epochs:g} epochs: made for a longer one")
    return Plan(
        rows=[
            *(("store", f"{store.place}, snapshot {store.snapshot}") for store in material.stores),
            ("stacks", f"{material.stacks:,} of {counted(subjects, 'subject')}; {held_out}"),
            ("encoder", spec.encoder),
            ("steps", steps),
            ("batches", material.batches),
            (
                "workers",
                f"{spec.compute.workers} × {counted(spec.compute.cpus_per_worker, 'CPU')}, of {capacity.cpus}",
            ),
            ("memory", f"{number_text(ahead_mb)} MB at the most for stacks read ahead; the network's is not known yet"),
            *([("checkpoints", training.checkpoints)] if training.checkpoints else []),
            ("time", _time(RunFolder(run), steps=material.steps, batch_size=batch_size, before=training.time)),
        ],
        figures={
            "snapshots": [store.snapshot for store in material.stores],
            "stacks": material.stacks,
            "subjects": subjects,
            "subjects_held_out": held,
            "steps": material.steps,
            **training.figures,
        },
        warnings=warnings,
    )


def execute(spec: Pretrain, run: Run) -> None:
    """Run it to its end, or to where the user stops it; Ray is up already."""
    run.phase("reading the store's index")
    material = material_of(spec, run=run.folder)
    pin_inputs(material.stores, spec.where, run=run.folder)
    _check_checkpoints(run.folder, steps=material.steps)
    trained = _exported_steps(run.folder) == material.steps
    if trained and run.results().get("figures", {}).get("steps") == material.steps:
        run.note(f"all {counted(material.steps, 'step')} were done before: nothing is left to do")
        return

    from bfp.drivers.pretrain_card import card
    from bfp.drivers.pretrain_results import opening_of, results_of
    from bfp.drivers.pretrain_views import picture_of_views

    picture_of_views(spec, run, material)
    if run.results().get("figures", {}).get("steps"):
        run.note(f"the page and its figures are those of {run.results()['figures']['steps']:,} steps until this ends")
    else:
        run.result(opening_of(spec, material).as_json())
    if not trained:
        _train(spec, run, material)
    write_seen_by(spec, material, run.folder / "model")
    encoder, lengths = _exported(run), _earlier(run.folder, steps=material.steps)

    def tell(probed: Probed | None) -> None:
        told = card(
            spec,
            material,
            encoder,
            name=run.name,
            step=material.steps,
            logged=run.metrics(),
            probed=probed,
            earlier=lengths,
        )
        (run.folder / "model" / CARD).write(told.encode())

    tell(None)  # whoever takes the encoder before it is probed, or where that is stopped, has a card too
    probed = _probe_on_ray(spec, run, material)

    run.phase("figures and model card")
    results = results_of(spec, run, material, encoder.description, probed, earlier=lengths)
    tell(probed)
    run.result(results.as_json())


def _time(run: RunFolder, *, steps: int, batch_size: int, before: str) -> str:
    """How long it will take, by its own last steps; before: what to say before the first."""
    rates = {row["step"]: row["value"] for row in run.metrics() if row["name"] == "samples_per_s"}
    if not rates:
        return before
    left = steps - max(rates)
    if left <= 0:
        return "none for training, which is done"
    rate = statistics.median([rates[step] for step in sorted(rates)[-10:]])
    return (
        f"about {duration_text(left * batch_size / rate)} for the {counted(left, 'step')} left, at the "
        f"{number_text(rate)} stacks a second of its last steps"
    )


# training ------------------------------------------------------------------------------------------------------------


def _train(spec: Pretrain, run: Run, material: Material) -> None:
    """To the last step and the export. Raises Interrupted where the user stops it before."""
    from bfp.drivers.training import train_on_ray

    task = _task(spec, run, material)
    follow = _Follow(run, steps=material.steps, retries=spec.compute.retries)
    run.phase("starting workers")
    done = train_on_ray(
        task,
        workers=spec.compute.workers,
        gpus_per_worker=_gpus_per_worker(spec),
        retries=spec.compute.retries,
        on_news=follow.hear,
        stopping=lambda: run.stopping,
    )
    if done < material.steps:
        raise Interrupted(f"stopped after step {done:,} of {material.steps:,}, with a checkpoint; submit to go on")


def _task(spec: Pretrain, run: Run, material: Material) -> Task:
    from bfp.drivers.pretrain_card import provenance
    from bfp.drivers.training_worker import Task
    from bfp.models.encoder import load
    from bfp.pretraining.loop import Cadence

    size_px = spec.crops.global_size_px or material.stores[0].size_px
    arguments = encoder_arguments(spec, size_px=size_px)
    encoder = load(**arguments)
    return Task(
        encoder=arguments,
        recipe=recipe_of(spec, material, encoder),
        cadence=Cadence(
            log_every=spec.train.log_every,
            save_every=spec.train.checkpoint_every,
            keep=spec.train.keep_checkpoints,
            keep_every=spec.train.keep_every,
        ),
        stores=material.stores,
        plan=material.order,
        threads=spec.compute.cpus_per_worker,
        checkpoints=run.folder / "checkpoints",
        model=run.folder / "model",
        card=f"# {run.name}\n\nAn encoder of brain MRI, pretrained with bfp {__version__}.\n",
        provenance=provenance(spec, material, name=run.name, step=material.steps),
        watch=_watch(spec, material, patch_px=encoder.patch_px),
    )


def _gpus_per_worker(spec: Pretrain) -> int:
    import ray

    if spec.compute.gpus_per_worker is not None:
        return spec.compute.gpus_per_worker
    return int(ray.cluster_resources().get("GPU", 0) > 0)


class _Follow:
    """Tells the run what the workers say."""

    def __init__(self, run: Run, *, steps: int, retries: int) -> None:
        self._run, self._steps, self._retries = run, steps, retries
        self._started, self._losses = False, 0
        self._last_step = self._saved = 0
        self._verdict: str | None = None
        self._worse = self._told_to_end = False

    def hear(self, news: News) -> None:
        for step in news.starts:
            self._start(step)
        self._told_to_end |= news.finished is not None
        for text in news.notes:
            self._run.note(text)
        for step, figures in news.figures:
            self._log(step, figures)
        if news.saving > self._saved:
            self._run.figures(news.saving, {SAVED: news.saving})
            self._run.keep_figures()
            self._saved = news.saving

    def _start(self, step: int) -> None:
        if not self._started:
            self._run.phase("training", total=self._steps, unit="steps")
            if step:
                self._run.note(f"going on from the checkpoint of step {step:,}")
        elif self._told_to_end:
            self._run.note(f"the workers were told to end, and saved step {step:,}; training went on from there")
            self._told_to_end, self._losses = False, 0
        else:
            self._losses += 1
            self._run.warn(
                f"a worker was lost after step {self._last_step:,}; training went on from the checkpoint of step "
                f"{step:,} (restart {self._losses} of {self._retries})"
            )
        self._started = True
        self._run.progress(step)

    def _log(self, step: int, figures: dict[str, float]) -> None:
        from bfp.pretraining import monitors, tripwire

        self._run.figures(step, figures)
        if step == 0:  # what the probe says before the first step
            return
        self._last_step = step
        self._run.progress(step, loss=figures["loss"], samples_per_s=figures["samples_per_s"])
        said = monitors.verdict(figures)
        if said is not None and self._verdict is None:
            self._run.warn(f"step {step:,}: {said}")
        self._verdict = said
        worse = tripwire.verdict(figures)
        if worse is not None and not self._worse:
            self._worse = True
            self._run.warn(f"step {step:,}: {worse}")


def _check_checkpoints(run: Place, *, steps: int) -> None:
    """Raise InputError where a run is to go on, and its checkpoints are gone."""
    exported, checkpoints = _exported_steps(run), run / "checkpoints"
    if exported == steps or checkpoints.names():  # the markers; the files lie below
        return
    if exported is not None:
        raise InputError(
            f"{checkpoints}: none is complete: the run ended after {exported:,} steps, and cannot go on to "
            f"{steps:,}; bring its checkpoints back, or give --name another and start from `encoder: {run}`"
        )
    saved = {int(row["step"]) for row in RunFolder(run).metrics() if row["name"] == SAVED}
    if len(saved) > 1 or (saved and not checkpoints.folders()):  # the first may have come to no marker
        raise InputError(
            f"{checkpoints}: none is complete, and there was one of step {max(saved):,}: training would begin "
            "again beside the figures of before; bring its checkpoints back, or give --name another"
        )


def _exported_steps(run: Place) -> int | None:
    """The steps that the exported encoder was trained for; None where there is none."""
    config = run / "model" / "config.json"
    return int(json.loads(config.read())["bfp"]["steps"]) if config.exists() else None


def _earlier(run: Place, *, steps: int) -> list[Length]:
    """The lengths that the run had before (see `schedules`), as its last checkpoint tells, if it is there."""
    from bfp.pretraining import checkpoint

    folder = run / "checkpoints"
    return checkpoint.lengths(folder, step=steps)[1] if steps in checkpoint.steps(folder) else []


def _exported(run: Run) -> LoadedEncoder:
    """The encoder at the size that it was trained at."""
    from bfp.models.encoder import load
    from bfp.models.folders import read_config

    size_px = read_config(run.folder / "model")["model_args"]["img_size"]
    return load(origin="folder", name=None, uri=str(run.folder / "model"), size_px=size_px)


# the probe -----------------------------------------------------------------------------------------------------------


def _probe_on_ray(spec: Pretrain, run: Run, material: Material) -> Probed:
    """As a task, since the GPU and the memory are the workers' and not the driver's; empty without a probe."""
    import ray

    from bfp.drivers.pretrain_results import Probed

    if spec.probe is None:
        return Probed()
    assert material.probed is not None
    store, index = material.stores[material.probed], material.indices[material.probed]
    cpus, gpus, retries = spec.compute.cpus_per_worker, _gpus_per_worker(spec), spec.compute.retries
    probing: Any = _probe  # Ray's types know no keyword arguments
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(probing)
    run.phase("probing")
    waiting = task.remote(
        store,
        index,
        run.folder / "model",
        segmentation=spec.probe.segmentation,
        sessions=probed_sessions(spec.probe, store, index),
        share=spec.probe.held_out,
        threads=cpus,
        device="cuda" if gpus else "cpu",
        seed=spec.seed,
    )
    while not ray.wait([waiting], timeout=0.5)[0]:
        if run.stopping:
            ray.cancel(waiting, force=True)
            raise Interrupted("stopped while probing; the encoder is done: submit again for the probe")
    found: Probed | str = ray.get(waiting)
    if isinstance(found, str):
        run.warn(f"the encoder is done, and cannot be probed: {found}")
        return Probed()
    return found


def _probe(
    store: SliceStore,
    index: pa.Table,
    model: Place,
    *,
    segmentation: str | None,
    sessions: LabelledSessions | None,
    share: float,
    threads: int,
    device: str,
    seed: int,
) -> Probed | str:
    """The probe's figures, or why these stacks give none: too few patches of brain, which only their labels tell."""
    import torch

    from bfp.drivers.pretrain_results import PRETRAINED, UNTRAINED, Probed
    from bfp.models.encoder import load, untrained
    from bfp.pretraining.probe import probe
    from bfp.pretraining.session_probe import probe_sessions

    torch.set_num_threads(threads)
    on = torch.device(device)
    encoder = load(origin="folder", name=None, uri=model.uri, size_px=store.size_px)
    encoders = {PRETRAINED: encoder, UNTRAINED: untrained(encoder)}
    try:
        tissue = label = None
        if segmentation is not None:
            tissue = probe(store, index, encoders, segmentation=segmentation, share=share, device=on, seed=seed)
        if sessions is not None:
            label = probe_sessions(store, sessions, encoders, device=on, seed=seed)
        return Probed(tissue, label)
    except StorageError:
        raise
    except InputError as error:
        return str(error)


def _watch(spec: Pretrain, material: Material, *, patch_px: int) -> Watch | None:
    """What is read while training; None where nothing is."""
    from bfp.batches.held_out import is_held_out
    from bfp.pretraining.probe import stacks_with_labels
    from bfp.pretraining.tripwire import MAX_PATCHES, Watch

    probe = spec.probe
    if probe is None or probe.every is None:
        return None
    assert material.probed is not None
    store, index = material.stores[material.probed], material.indices[material.probed]
    tissue = None
    if probe.segmentation is not None:
        most = MAX_PATCHES // (store.size_px // patch_px) ** 2
        tissue = stacks_with_labels(store, index, segmentation=probe.segmentation, share=probe.held_out, most=most)
    return Watch(
        store=store,
        every=probe.every,
        stop=probe.on_worse == "stop",
        bf16=spec.compute.precision == "bf16",
        seed=spec.seed,
        sessions=probed_sessions(probe, store, index),
        tissue=tissue,
        classes=store.classes(probe.segmentation) if probe.segmentation is not None else {},
        held=None if tissue is None else is_held_out(tissue, share=probe.held_out),
    )
