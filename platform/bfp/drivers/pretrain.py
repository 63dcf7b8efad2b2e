"""kind: pretrain — slice stores become an encoder, by DINOv2 self-supervision (Oquab et al. 2023, arXiv 2304.07193).

1. the stacks that are used: one or more stores, filtered; subjects of the probe are held out by hash
2. the order of the batches is planned for the whole run, whatever the number of workers
3. workers on Ray Train: student, teacher and heads, from the last checkpoint or from the encoder that the spec names
4. the teacher's backbone is exported as a folder that plain timm loads
5. the probe: residual tissue R² on the held-out subjects, beside the same encoder untrained and sorted pixels

<run>/inputs.json     the snapshots that are used      <run>/pictures/    maps of patch tokens
<run>/checkpoints/    step-*/ and their markers        <run>/model/       the encoder
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.drivers.inputs import check_encoder
from bfp.drivers.plan import Plan
from bfp.errors import InputError, Interrupted
from bfp.runs import Run
from bfp.specs.encoders import parse_encoder
from bfp.specs.pretrain import Pretrain
from bfp.storage import place

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.batches.plan import BatchPlan
    from bfp.drivers.pretrain_results import Trained
    from bfp.drivers.training import News, Task
    from bfp.models.encoder import LoadedEncoder
    from bfp.pretraining.loop import Recipe
    from bfp.pretraining.probe import ProbeResult
    from bfp.store.reader import SliceStore

SUBJECT = ("cohort", "subject")


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a spec comes down to: the stores, what is used of each, and the order of training.

    indices: the stacks of each store that `where` keeps; training: those of them that are not held out.
    """

    stores: tuple[SliceStore, ...]
    indices: tuple[pa.Table, ...]
    training: tuple[pa.Table, ...]
    order: BatchPlan
    steps_per_epoch: int
    steps: int

    @property
    def stacks(self) -> int:
        """How many training sees."""
        return sum(len(index) for index in self.training)

    @property
    def subjects(self) -> tuple[int, int]:
        """How many training sees, and how many it does not."""
        seen, wanted = (
            {key for index in indices for key in zip(*(index[name].to_pylist() for name in SUBJECT), strict=True)}
            for indices in (self.training, self.indices)
        )
        return len(seen), len(wanted) - len(seen)


def plan(spec: Pretrain) -> Plan:
    """Opens the stores: whatever is wrong with them, the encoder or the crops is said before anything is written."""
    check_encoder(spec.encoder)
    material = _material(spec, snapshots=None)
    subjects, held = material.subjects
    steps = f"{material.steps:,} of {spec.train.batch_size} stacks, {material.steps_per_epoch:,} an epoch"
    passes = material.steps * spec.train.batch_size / material.stacks
    warnings = []
    if passes > 1000:
        warnings.append(f"every stack is seen {passes:,.0f} times: more data would serve better than more epochs")
    return Plan(
        rows=[
            *(("store", f"{store.place}, snapshot {store.snapshot}") for store in material.stores),
            ("stacks", f"{material.stacks:,} of {subjects:,} subjects; {held:,} subjects held out for the probe"),
            ("encoder", spec.encoder),
            ("steps", f"{steps}; every stack {passes:,.1f} times"),
            ("workers", f"{spec.compute.workers} × {spec.compute.cpus_per_worker} CPUs"),
            ("time", "said once the first steps are done; it can be stopped and resumed at any moment"),
        ],
        figures={
            "snapshots": [store.snapshot for store in material.stores],
            "stacks": material.stacks,
            "subjects": subjects,
            "subjects_held_out": held,
            "steps": material.steps,
        },
        warnings=warnings,
    )


def execute(spec: Pretrain, run: Run) -> None:
    """Run it to its end, or to where the user stops it; Ray is up already."""
    from bfp.drivers.pretrain_results import card, results_of
    from bfp.drivers.training import train_on_ray

    check_encoder(spec.encoder)
    run.phase("reading the store's index")
    material = _material(spec, snapshots=_pinned_snapshots(spec, run))
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

    probed = _probe_on_ray(spec, run, material) if spec.probe is not None else None
    run.phase("figures and model card")
    trained = _trained(run, material)
    results = results_of(spec, run, trained, probed)
    (run.folder / "model" / "README.md").write(card(spec, run, trained, probed).encode())
    run.result(results.as_json())


# what is asked for ---------------------------------------------------------------------------------------------------


def _store_places(spec: Pretrain) -> list[str]:
    return [spec.store] if isinstance(spec.store, str) else list(spec.store)


def _pinned_snapshots(spec: Pretrain, run: Run) -> list[int]:
    """The snapshot of each store that this run uses: the latest at its first submission, for ever."""
    from bfp.store.reader import SliceStore

    pin = run.folder / "inputs.json"
    if not pin.exists():
        stores = [{"store": at, "snapshot": SliceStore.open(place(at)).snapshot} for at in _store_places(spec)]
        pin.write(json.dumps({"stores": stores}).encode())
    return [int(entry["snapshot"]) for entry in json.loads(pin.read())["stores"]]


def _material(spec: Pretrain, *, snapshots: list[int] | None) -> Material:
    from bfp.batches.plan import BatchPlan, units_of
    from bfp.store.reader import SliceStore

    places = _store_places(spec)
    pinned: Sequence[int | None] = snapshots or [None] * len(places)
    stores = tuple(SliceStore.open(place(at), snapshot) for at, snapshot in zip(places, pinned, strict=True))
    if spec.probe is not None:
        _probed_store(spec, stores)
    indices = tuple(_wanted(spec, store.stack_index()) for store in stores)
    training = tuple(_seen_in_training(spec, index) for index in indices)
    order = BatchPlan(units_of(training), batch_size=spec.train.batch_size, seed=spec.seed)
    steps_per_epoch = spec.train.steps_per_epoch or order.pass_steps
    return Material(
        stores=stores,
        indices=indices,
        training=training,
        order=order,
        steps_per_epoch=steps_per_epoch,
        steps=max(1, round(spec.train.epochs * steps_per_epoch)),
    )


def _wanted(spec: Pretrain, index: pa.Table) -> pa.Table:
    from bfp.store.where import read_subjects, select

    where = spec.where
    return select(
        index,
        cohorts=where.cohorts,
        modalities=where.modalities,
        subjects=read_subjects(place(where.subjects)) if where.subjects else None,
        exclude_subjects=read_subjects(place(where.exclude_subjects)) if where.exclude_subjects else None,
    )


def _seen_in_training(spec: Pretrain, index: pa.Table) -> pa.Table:
    from bfp.batches.held_out import is_held_out

    if spec.probe is None:
        return index
    return index.filter(~is_held_out(index, share=spec.probe.held_out))


def _probed_store(spec: Pretrain, stores: tuple[SliceStore, ...]) -> int:
    """Which store the probe reads: the first that carries the segmentation."""
    assert spec.probe is not None
    reasons = []
    for number, store in enumerate(stores):
        try:
            store.classes(spec.probe.segmentation)
        except InputError as error:
            reasons.append(str(error))
        else:
            return number
    raise InputError("probe.segmentation: " + "; ".join(reasons))


# training ------------------------------------------------------------------------------------------------------------


def _task(spec: Pretrain, run: Run, material: Material) -> Task:
    from bfp.drivers.training import Task
    from bfp.models.encoder import load
    from bfp.pretraining.loop import Cadence

    size_px = spec.crops.global_size_px or material.stores[0].size_px
    arguments = _encoder_arguments(spec, size_px=size_px)
    encoder = load(**arguments)
    return Task(
        encoder=arguments,
        recipe=_recipe(spec, material, encoder),
        cadence=Cadence(
            log_every=spec.train.log_every, save_every=spec.train.checkpoint_every, keep=spec.train.keep_checkpoints
        ),
        stores=material.stores,
        plan=material.order,
        threads=spec.compute.cpus_per_worker,
        checkpoints=run.folder / "checkpoints",
        model=run.folder / "model",
        card=f"# {run.name}\n\nAn encoder of brain MRI, pretrained with bfp {__version__}.\n",
        provenance={
            "run": run.name,
            "bfp": __version__,
            "started_from": spec.encoder,
            "stores": [
                {"uri": str(store.place), "snapshot": store.snapshot, "preprocessing": store.preprocessing}
                for store in material.stores
            ],
            "steps": material.steps,
        },
    )


def _encoder_arguments(spec: Pretrain, *, size_px: int) -> dict[str, Any]:
    """The arguments of `models.encoder.load`."""
    reference, shape = parse_encoder(spec.encoder), spec.encoder_shape
    smaller = shape.model_dump() if shape else {}
    return {
        "origin": reference.origin,
        "name": reference.name,
        "uri": str(place(reference.uri)) if reference.uri else None,
        "size_px": size_px,
        "seed": spec.seed,
        **smaller,
    }


def _recipe(spec: Pretrain, material: Material, encoder: LoadedEncoder) -> Recipe:
    """The spec's numbers, with epochs as steps, as the training loop takes them."""
    from bfp.pretraining.contrast import Contrast
    from bfp.pretraining.crops import CropSettings, Normalisation
    from bfp.pretraining.loop import Recipe
    from bfp.pretraining.schedules import Schedules, scaled_rate
    from bfp.pretraining.step import SslSettings

    ssl, crops, epoch = spec.ssl, spec.crops, material.steps_per_epoch
    numbers = ssl.model_dump(include=set(SslSettings.__dataclass_fields__))
    return Recipe(
        ssl=SslSettings(**numbers, constant_masks=True),
        schedules=Schedules(
            steps=material.steps,
            learning_rate=scaled_rate(ssl.learning_rate, batch_size=spec.train.batch_size),
            min_learning_rate=ssl.min_learning_rate,
            warmup_steps=round(ssl.warmup_epochs * epoch),
            freeze_last_layer_steps=round(ssl.freeze_last_layer_epochs * epoch),
            weight_decay=ssl.weight_decay,
            momentum=ssl.momentum,
            teacher_temperature=ssl.teacher_temperature,
            teacher_temperature_warmup_steps=round(ssl.teacher_temperature_warmup_epochs * epoch),
        ),
        crops=CropSettings(
            large_px=encoder.description["size_px"],
            small_px=crops.local_size_px,
            small_count=crops.local_count,
            large_scale=crops.global_scale,
            small_scale=crops.local_scale,
            flip=crops.flip,
            modality_views=crops.modality_views,
            fill=crops.fill,
            teacher_views=crops.teacher_views,
            contrast=Contrast(
                brightness=crops.brightness,
                contrast=crops.contrast,
                gamma=crops.gamma,
                bias_field=crops.bias_field,
                noise=crops.noise,
                blur=crops.blur,
                # neighbouring slices of one scan share its contrast; modalities each have their own
                per_channel=all(store.form == "modalities" for store in material.stores),
            ),
        ),
        normalisation=Normalisation(encoder.mean, encoder.std),
        batch_size=spec.train.batch_size,
        seed=spec.seed,
        precision=spec.compute.precision,
    )


def _gpus_per_worker(spec: Pretrain) -> int:
    import ray

    if spec.compute.gpus_per_worker is not None:
        return spec.compute.gpus_per_worker
    return int(ray.cluster_resources().get("GPU", 0) >= spec.compute.workers)


class _Follow:
    """Tells the run what the workers say."""

    def __init__(self, run: Run, *, steps: int, retries: int) -> None:
        self._run, self._steps, self._retries = run, steps, retries
        self._starts = 0
        self._last_step = 0
        self._verdict: str | None = None

    def hear(self, news: News) -> None:
        for step in news.starts:
            self._start(step)
        for step, figures in news.figures:
            self._log(step, figures)

    def _start(self, step: int) -> None:
        if self._starts == 0:
            self._run.phase("training", total=self._steps, unit="steps")
            if step:
                self._run.note(f"going on from the checkpoint of step {step:,}")
        else:
            self._run.warn(
                f"a worker was lost after step {self._last_step:,}; training went on from the checkpoint of step "
                f"{step:,} (restart {self._starts} of {self._retries})"
            )
        self._starts += 1
        self._run.progress(step)

    def _log(self, step: int, figures: dict[str, float]) -> None:
        from bfp.pretraining.monitors import verdict

        self._last_step = step
        self._run.figures(step, figures)
        self._run.progress(step, loss=figures["loss"], samples_per_s=figures["samples_per_s"])
        said = verdict(figures)
        if said is not None and self._verdict is None:
            self._run.warn(f"step {step:,}: {said}")
        self._verdict = said


# the probe -----------------------------------------------------------------------------------------------------------


def _probe_on_ray(spec: Pretrain, run: Run, material: Material) -> ProbeResult:
    """As a task, since the GPU and the memory are the workers' and not the driver's."""
    import ray

    assert spec.probe is not None
    from bfp.drivers.pretrain_results import PRETRAINED, UNTRAINED

    number = _probed_store(spec, material.stores)
    store, index = material.stores[number], material.indices[number]
    cpus, gpus, retries = spec.compute.cpus_per_worker, _gpus_per_worker(spec), spec.compute.retries
    probing: Any = _probe  # Ray's types know no keyword arguments
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(probing)
    pretrained = {"origin": "folder", "name": None, "uri": str(run.folder / "model"), "size_px": store.size_px}
    encoders = {PRETRAINED: pretrained, UNTRAINED: _untrained_arguments(spec, run, size_px=store.size_px)}
    run.phase("probing")
    waiting = task.remote(
        store,
        index,
        encoders,
        segmentation=spec.probe.segmentation,
        share=spec.probe.held_out,
        threads=cpus,
        seed=spec.seed,
    )
    while not ray.wait([waiting], timeout=0.5)[0]:
        if run.stopping:
            ray.cancel(waiting, force=True)
            raise Interrupted("stopped while probing; the encoder is done: submit again for the probe")
    result: ProbeResult = ray.get(waiting)
    return result


def _untrained_arguments(spec: Pretrain, run: Run, *, size_px: int) -> dict[str, Any]:
    """The pretrained encoder's architecture with random weights."""
    facts = json.loads((run.folder / "model" / "config.json").read())
    shape = facts["model_args"]
    return {
        "origin": "random",
        "name": facts["architecture"],
        "uri": None,
        "size_px": size_px,
        "width": shape["embed_dim"],
        "depth": shape["depth"],
        "heads": shape["num_heads"],
        "seed": spec.seed,
    }


def _probe(
    store: SliceStore,
    index: pa.Table,
    encoders: dict[str, dict[str, Any]],
    *,
    segmentation: str,
    share: float,
    threads: int,
    seed: int,
) -> ProbeResult:
    import torch

    from bfp.models.encoder import load
    from bfp.pretraining.probe import probe

    torch.set_num_threads(threads)
    return probe(
        store,
        index,
        {name: load(**arguments) for name, arguments in encoders.items()},
        segmentation=segmentation,
        share=share,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        seed=seed,
    )


def _trained(run: Run, material: Material) -> Trained:
    from bfp.drivers.pretrain_results import Trained
    from bfp.models.encoder import load

    size_px = json.loads((run.folder / "model" / "config.json").read())["model_args"]["img_size"]
    encoder = load(origin="folder", name=None, uri=str(run.folder / "model"), size_px=size_px)
    return Trained(material.stores, material.stacks, material.subjects, material.steps, encoder.description)
