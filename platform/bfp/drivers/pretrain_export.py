"""A pretraining's encoder as it was after one of its steps: from a checkpoint, of a run that goes on too.

The run's folder is only read. What is written is the folder that a finished run has as `model/`.
"""

from __future__ import annotations

from dataclasses import replace

from bfp.drivers.acquaintance import write_seen_by
from bfp.drivers.pretrain_card import card, provenance
from bfp.drivers.pretrain_material import material_of
from bfp.drivers.pretrain_results import Probed
from bfp.drivers.stores import encoder_arguments
from bfp.errors import InputError
from bfp.models.encoder import export, facts, load
from bfp.models.weights import fingerprint
from bfp.pretraining import checkpoint
from bfp.runs import RunFolder
from bfp.specs import Pretrain, loads
from bfp.storage import Place


def export_checkpoint(run: RunFolder, folder: Place, *, step: int | None) -> int:
    """Write the encoder of a checkpoint as a folder that plain timm loads, and say of which step it is.

    step: None for the last that is complete. Raises InputError for a run that is no pretraining or has no such
    checkpoint, StorageError for one that is damaged or was removed meanwhile.
    """
    spec = loads(run.spec_text() or "", file=f"{run.folder}/spec.yaml")
    if not isinstance(spec, Pretrain):
        raise InputError(
            f"{run.folder}: a run of kind {spec.kind} that has no exported model, and no checkpoints to make one from "
            f"(it is {run.outcome()})"
        )
    checkpoints = run.folder / "checkpoints"
    complete = checkpoint.steps(checkpoints)
    if not complete:
        raise InputError(f"{run.folder}: has no complete checkpoint to export (the run is {run.outcome()})")
    if step is None:
        step = complete[-1]
    if step not in complete:
        there = ", ".join(f"{each:,}" for each in complete)
        raise InputError(f"--step: {step:,}: {run.folder} has no complete checkpoint of it; those of {there} are there")

    steps, earlier = checkpoint.lengths(checkpoints, step=step)
    material = replace(material_of(spec, run=run.folder), steps=steps)  # as it was then, before it was extended
    size_px = spec.crops.global_size_px or material.stores[0].size_px
    encoder = replace(load(**encoder_arguments(spec, size_px=size_px)), fill=spec.crops.fill)
    mask_token = checkpoint.load_teacher(encoder.model, checkpoints, step=step)
    described = {**encoder.description, **facts(encoder.model), "weights": fingerprint(encoder.model)}
    encoder = replace(encoder, description=described, mask_token=mask_token)
    told = card(
        spec,
        material,
        encoder,
        name=run.name,
        step=step,
        logged=run.metrics(),
        probed=None if spec.probe else Probed(),
        earlier=earlier,
    )
    export(encoder, folder, card=told, provenance=provenance(spec, material, name=run.name, step=step))
    write_seen_by(spec, material, folder)
    return step
