"""kind: pretrain — slice stores become an encoder, by DINOv2 self-supervision (Oquab et al. 2023, arXiv 2304.07193).

1. the stacks that are used: one or more stores, filtered; subjects of the probe are held out by hash
2. the order of the batches is planned for the whole run, whatever the number of workers
3. workers on Ray Train: student, teacher and heads, from the last checkpoint or from the encoder that the spec names
4. the teacher's backbone is exported as a folder that plain timm loads
5. the probe: residual tissue R² on the held-out subjects, beside the same encoder untrained and sorted pixels

<run>/inputs.json     the snapshots that are used      <run>/pictures/    views, maps of patch tokens
<run>/checkpoints/    step-*/ and their markers        <run>/model/       the encoder
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from bfp import __version__
from bfp.drivers.plan import Plan, cpus_here
from bfp.drivers.pretrain_material import Material, material_of, recipe_of
from bfp.drivers.stores import encoder_arguments, pin_stores
from bfp.errors import InputError, Interrupted, StorageError
from bfp.reports.numbers import duration_text, number_text
from bfp.runs import Run, RunFolder
from bfp.specs.pretrain import Pretrain
from bfp.storage import Place, place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.drivers.board import News
    from bfp.drivers.training import Task
    from bfp.models.encoder import LoadedEncoder
    from bfp.pretraining.probe import ProbeResult
    from bfp.store.reader import SliceStore


def plan(spec: Pretrain, *, cpus: int | None = None) -> Plan:
    """Opens the stores: whatever is wrong with them, the encoder or the crops is said before anything is written."""
    from bfp.batches.plan import WINDOW

    run = place(spec.output) / spec.name
    material = material_of(spec, run=run)
    batch_size, (subjects, held) = spec.train.batch_size, material.subjects
    held_out = f"{counted(held, 'subject')} held out for the probe"
    steps = f"{material.steps:,} of {batch_size} stacks, {material.steps_per_epoch:,} an epoch"
    most = max(material.times(cohort) for cohort in material.order.cohorts.values())
    ahead_mb = 2 * WINDOW * batch_size * 3 * material.stores[0].size_px ** 2 / 1e6
    warnings = []
    if most > 1000:
        warnings.append(f"stacks are seen up to {most:,.0f} times: more data would serve better than more epochs")
    return Plan(
        rows=[
            *(("store", f"{store.place}, snapshot {store.snapshot}") for store in material.stores),
            ("stacks", f"{material.stacks:,} of {counted(subjects, 'subject')}; {held_out}"),
            ("encoder", spec.encoder),
            ("steps", steps),
            ("batches", material.batches),
            (
                "workers",
                f"{spec.compute.workers} × {counted(spec.compute.cpus_per_worker, 'CPU')}, of {cpus or cpus_here()}",
            ),
            ("memory", f"{number_text(ahead_mb)} MB at the most for stacks read ahead; the network's is not known yet"),
            ("time", _outlook(RunFolder(run), steps=material.steps, batch_size=batch_size)),
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
    run.phase("reading the store's index")
    material = material_of(spec, run=run.folder)
    pin_stores(material.stores, run=run.folder)
    trained = _exported_steps(run) == material.steps
    if trained and run.results().get("figures", {}).get("steps") == material.steps:
        run.note(f"all {counted(material.steps, 'step')} were done before: nothing is left to do")
        return

    from bfp.drivers.pretrain_results import card, opening_of, results_of
    from bfp.drivers.pretrain_views import picture_of_views

    picture_of_views(spec, run, material)
    run.result(opening_of(spec, material).as_json())
    if not trained:
        _train(spec, run, material)
    probed = _probe_on_ray(spec, run, material)

    run.phase("figures and model card")
    encoder = _exported(run)
    results = results_of(spec, run, material, encoder.description, probed)
    (run.folder / "model" / "README.md").write(card(spec, run, material, encoder.description, probed).encode())
    run.result(results.as_json())


def _outlook(run: RunFolder, *, steps: int, batch_size: int) -> str:
    """How long it will take, as far as that is known."""
    rates = {row["step"]: row["value"] for row in run.metrics() if row["name"] == "samples_per_s"}
    if not rates:
        return "not known before the first steps are done; it can be stopped and resumed at any moment"
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
    from bfp.drivers.training import Task
    from bfp.models.encoder import load
    from bfp.pretraining.loop import Cadence

    size_px = spec.crops.global_size_px or material.stores[0].size_px
    arguments = encoder_arguments(spec, size_px=size_px)
    encoder = load(**arguments)
    return Task(
        encoder=arguments,
        recipe=recipe_of(spec, material, encoder),
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


def _exported_steps(run: Run) -> int | None:
    """The steps that the exported encoder was trained for; None where there is none."""
    config = run.folder / "model" / "config.json"
    return int(json.loads(config.read())["bfp"]["steps"]) if config.exists() else None


def _exported(run: Run) -> LoadedEncoder:
    """The encoder at the size that it was trained at."""
    from bfp.models.encoder import load
    from bfp.models.folders import read_config

    size_px = read_config(run.folder / "model")["model_args"]["img_size"]
    return load(origin="folder", name=None, uri=str(run.folder / "model"), size_px=size_px)


# the probe -----------------------------------------------------------------------------------------------------------


def _probe_on_ray(spec: Pretrain, run: Run, material: Material) -> ProbeResult | None:
    """As a task, since the GPU and the memory are the workers' and not the driver's; None where there is no probe."""
    import ray

    if spec.probe is None:
        return None
    assert material.probed is not None
    cpus, gpus, retries = spec.compute.cpus_per_worker, _gpus_per_worker(spec), spec.compute.retries
    probing: Any = _probe  # Ray's types know no keyword arguments
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(probing)
    run.phase("probing")
    waiting = task.remote(
        material.stores[material.probed],
        material.indices[material.probed],
        run.folder / "model",
        segmentation=spec.probe.segmentation,
        share=spec.probe.held_out,
        threads=cpus,
        device="cuda" if gpus else "cpu",
        seed=spec.seed,
    )
    while not ray.wait([waiting], timeout=0.5)[0]:
        if run.stopping:
            ray.cancel(waiting, force=True)
            raise Interrupted("stopped while probing; the encoder is done: submit again for the probe")
    found: ProbeResult | str = ray.get(waiting)
    if isinstance(found, str):
        run.warn(f"the encoder is done, and cannot be probed: {found}")
        return None
    return found


def _probe(
    store: SliceStore,
    index: pa.Table,
    model: Place,
    *,
    segmentation: str,
    share: float,
    threads: int,
    device: str,
    seed: int,
) -> ProbeResult | str:
    """The probe's figures, or why these stacks give none: too few patches of brain, which only their labels tell."""
    import torch

    from bfp.drivers.pretrain_results import PRETRAINED, UNTRAINED
    from bfp.models.encoder import load, untrained
    from bfp.pretraining.probe import probe

    torch.set_num_threads(threads)
    encoder = load(origin="folder", name=None, uri=model.uri, size_px=store.size_px)
    try:
        return probe(
            store,
            index,
            {PRETRAINED: encoder, UNTRAINED: untrained(encoder)},
            segmentation=segmentation,
            share=share,
            device=torch.device(device),
            seed=seed,
        )
    except StorageError:
        raise
    except InputError as error:
        return str(error)
