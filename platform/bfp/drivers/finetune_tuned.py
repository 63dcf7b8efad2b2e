"""What `kind: finetune` does where more is trained than a head: `tune: lora` or `full`, or attention.

1. for each fold the network begins as the frozen model and is trained, an epoch at a time (`finetuning.tuning`)
2. each fold's best epoch, chosen inside its training subjects, is tested
3. the model: trained on all sessions, for as many epochs as the folds chose (their median)

<run>/checkpoints/tuned/     trainings that are done, and the last epoch of those that go on

Heads of folds tell the spread of a prediction where they look at the same vectors: with attention on a frozen encoder
they do, each by its own map. Where the encoder was tuned, each fold has another one, which is not kept; the model then
has no heads of folds, and tells no spread.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray

from bfp.drivers.finetune_material import Material
from bfp.finetuning.crossvalidation import Judged, Study, gather
from bfp.finetuning.network import Pooled
from bfp.finetuning.session_stacks import KeptVectors, StoredPixels
from bfp.finetuning.tuned_folds import Training, tune_side_by_side
from bfp.finetuning.tuning import Epoch, Trial, TunedFold, Tuning, digest_of_trial, tuned_encoder
from bfp.models.attention import AttentionPooling
from bfp.models.linear import LinearHead
from bfp.reports.blocks import Cell, Table
from bfp.runs import Run
from bfp.specs.finetune import Finetune

if TYPE_CHECKING:
    from bfp.models.encoder import LoadedEncoder

ALL = "all"


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """judged: the folds; folds, model: what came of each training. encoder, pooling, head, fold_heads: of the model."""

    judged: Judged
    folds: list[TunedFold]
    model: TunedFold
    encoder: LoadedEncoder
    pooling: Pooled
    head: LinearHead
    fold_heads: tuple[LinearHead, ...]


def tune_folds(
    spec: Finetune,
    run: Run,
    material: Material,
    study: Study,
    *,
    encoder: LoadedEncoder,
    features: pa.Table,
    pooling: Pooled,
    gpus: float,
) -> Tuned:
    """Train every fold, then the model. features: of the encoder at rest; gpus: for all of it."""
    tuning, count = _tuning(spec), len(study.persons)
    sessions, parts = material.labelled.sessions, pooling.parts
    rests = spec.tune == "frozen"
    vectors = KeptVectors.of(features, sessions, parts=parts)
    stacks = (
        vectors if rests else StoredPixels(material.store, material.index, sessions, shown=material.shown, parts=parts)
    )
    source = _source(material)

    def training(name: str, *, number: int, learned: np.ndarray, tested: np.ndarray, epochs: int | None) -> Training:
        trial = Trial(
            study=study,
            learned=learned,
            tested=tested,
            stacks=stacks,
            vectors=vectors,
            encoder=None if rests else encoder,
            pooling=pooling,
            tuning=tuning,
            number=number,
            epochs=epochs,
            batch_size=spec.compute.batch_size,
        )
        return Training(trial, run.folder / "checkpoints" / "tuned" / f"{name}-{digest_of_trial(trial, source=source)}")

    def train(phase: str, trainings: dict[str, Training], *, epochs: int) -> dict[str, TunedFold]:
        run.phase(phase, total=epochs * len(trainings), unit="epochs")
        reached = dict.fromkeys(trainings, 0)

        def heard(name: str, epoch: Epoch) -> None:
            reached[name] = epoch.number
            told = {"loss": epoch.loss, **({"merit": epoch.merit[0]} if epoch.merit else {})}
            run.figures(epoch.number, {f"{key} ({name})": value for key, value in told.items() if np.isfinite(value)})
            run.progress(sum(reached.values()))

        return tune_side_by_side(
            trainings,
            gpus_each=min(1.0, gpus),
            at_once=max(1, int(gpus)) if gpus else spec.compute.workers or int(ray.cluster_resources()["CPU"]),
            on_epoch=heard,
            stopping=lambda: run.stopping,
        )

    trainings = {
        f"fold {fold + 1}": training(
            f"fold-{fold + 1}",
            number=fold,
            learned=study.learned_from(fold),
            tested=study.folds == fold,
            epochs=None,
        )
        for fold in range(study.fold_count)
    }
    folds = list(train("training", trainings, epochs=tuning.epochs).values())
    judged = gather([fold.result for fold in folds], study)

    epochs = int(np.ceil(np.median([fold.epoch for fold in folds])))
    everyone = np.ones(count, dtype=bool)
    last = training(ALL, number=study.fold_count, learned=everyone, tested=everyone, epochs=epochs)
    model = train("training on all sessions", {ALL: last}, epochs=epochs)[ALL]
    if rests and isinstance(model.pooling, AttentionPooling):
        all_maps = [each.pooling for each in (model, *folds)]
        maps = tuple(each.maps[0] for each in all_maps if isinstance(each, AttentionPooling))
        heads = [_beside(each.result.head, number, len(maps)) for number, each in enumerate((model, *folds))]
        return Tuned(
            judged, folds, model, encoder, AttentionPooling(maps, model.pooling.within), heads[0], tuple(heads[1:])
        )
    return Tuned(
        judged, folds, model, tuned_encoder(encoder, tuning, model.weights), model.pooling, model.result.head, ()
    )


def methods(spec: Finetune, tuned: Tuned) -> str:
    """The paragraph of the report that follows the frozen model's."""
    tuning = _tuning(spec)
    what = {
        "frozen": "Attention over the stacks (gated attention; Ilse et al., 2018, with each stack's height beside its "
        "vector), which begins as their mean, and the head were trained",
        "lora": f"Low-rank adapters (Hu et al., 2021) of rank {tuning.rank} in every block of the encoder, and the "
        "head, were trained end to end",
        "full": f"The whole encoder and the head were trained end to end by the recipe {_preset(spec)} (layer decay "
        f"{tuning.layer_decay:g}, drop path {tuning.drop_path:g})"
        if tuning.layer_decay is not None and tuning.drop_path is not None
        else "",
    }[spec.tune]
    loss = {
        "classification": f"labels smoothed by {tuning.label_smoothing:g}",
        "regression": "by the Huber loss of standardised numbers",
    }[spec.task.type]
    return (
        f"{what} from this frozen model on: AdamW, peak rate {tuning.rate_at(tuning.warmup_epochs):.2g}, weight decay "
        f"{tuning.weight_decay:g}, a warm-up of {tuning.warmup_epochs:g} and a cosine to {tuning.epochs} epochs, "
        f"{tuning.sessions_per_step} sessions a step and {tuning.slices_per_session} slices of each, {loss}. "
        "The epoch was chosen on a fifth of each fold's training subjects, which nothing else was learned "
        "from; epoch 0, the frozen model, could be chosen too. The model was trained on all "
        f"sessions for the median of the folds' epochs ({tuned.model.epoch})."
    )


def epochs_table(tuned: Tuned, *, label: str, sign: int) -> Table:
    """Which epoch each fold took, and what it gained by it on the sessions that chose it."""
    rows: list[list[Cell]] = []
    for number, fold in enumerate(tuned.folds):
        first, taken = fold.epochs[0].merit, fold.epochs[fold.epoch].merit
        merits: list[Cell] = [sign * each[0] if each else None for each in (first, taken)]
        rows.append([f"fold {number + 1}", fold.epoch, len(fold.epochs) - 1, *merits])
    return Table(
        title="Was training worth it?",
        columns=["training", "epoch taken", "of", f"{label} before", f"{label} after"],
        rows=rows,
        note=f"{label[:1].upper()}{label[1:]} on the training subjects that were set aside to choose the epoch: after "
        "is the best of many and so too good. What counts is the comparison with the frozen encoder above. An epoch 0 "
        "is the frozen model.",
    )


def _tuning(spec: Finetune) -> Tuning:
    assert spec.training is not None
    return Tuning(tune=spec.tune, **spec.training.model_dump(exclude={"preset"}))


def _preset(spec: Finetune) -> str:
    assert spec.training is not None
    return spec.training.preset


def _source(material: Material) -> str:
    """A hash of which stacks are used, and what is shown of them."""
    files = [file.place.name for file in material.store.stack_files()]
    rows = [material.index[name].to_pylist() for name in ("file", "row_group", "row")]
    return hashlib.sha256(json.dumps([files, rows, sorted(material.shown)]).encode()).hexdigest()


def _beside(head: LinearHead, number: int, count: int) -> LinearHead:
    """The head as one that looks at the vector of that number among so many side by side, and at nothing else."""
    length = head.weights.shape[1]
    own = slice(number * length, (number + 1) * length)
    centre, scale = np.zeros(count * length), np.full(count * length, np.inf)
    weights = np.zeros((len(head.weights), count * length))
    centre[own], scale[own], weights[:, own] = head.centre, head.scale, head.weights
    return LinearHead(centre, scale, weights, head.bias)
