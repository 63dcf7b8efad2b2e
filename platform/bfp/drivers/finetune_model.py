"""What a fine-tuning leaves to be used: the model folder, with the head that was fitted on all sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp import __version__
from bfp.drivers.acquaintance import keep_acquaintances
from bfp.drivers.finetune_material import Material, target_of
from bfp.drivers.stores import imaging_of
from bfp.runs import Run
from bfp.specs.finetune import Classification, Finetune, Regression, Survival

if TYPE_CHECKING:
    import numpy as np

    from bfp.drivers.finetune_results import Said
    from bfp.finetuning.crossvalidation import Judged
    from bfp.finetuning.network import Pooled
    from bfp.models.encoder import LoadedEncoder
    from bfp.models.linear import LinearHead
    from bfp.models.outputs import Outputs
    from bfp.reports.blocks import Results


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was made of the material: the encoder, how its vectors are pooled, the head on all sessions and the strength
    that was chosen for it; heads of the folds, none where each has another encoder; and what the folds said.

    Of a frozen classification or survival the folds are fitted once more for this, at the strength of the model's own
    head: what heads of other strengths say is on other scales, and can neither be put in one order nor stand beside
    what the model says.

    vectors: float32 (n, F) of a frozen model; None where encoder or pooling were trained on these very sessions.
    """

    encoder: LoadedEncoder
    pooling: Pooled
    head: LinearHead
    strength: float
    fold_heads: tuple[LinearHead, ...]
    folds: Judged
    vectors: np.ndarray | None


def export_model(run: Run, spec: Finetune, material: Material, fitted: Fitted, results: Results, said: Said) -> None:
    """The model folder: the head that was fitted on all sessions, beside the encoder that it needs."""
    from bfp.drivers.finetune_material import complete_sessions
    from bfp.drivers.finetune_results import model_card
    from bfp.models.encoder import export
    from bfp.models.session_model import SessionModel, save_model
    from bfp.models.typical import fit_typical

    folder, store = run.folder / "model", material.store
    card = model_card(run.name, results, said)
    provenance = {"run": run.name, "bfp": __version__, "encoder": spec.encoder}
    export(fitted.encoder, folder / "encoder", card=card, provenance=provenance)
    keep_acquaintances(spec.encoder, folder / "encoder")
    vectors = fitted.vectors
    model = SessionModel(
        target=target_of(material.task),
        outputs=_outputs(material, fitted.folds),
        pooling=fitted.pooling,
        shown=material.shown,
        preprocessing=store.preprocessing,
        head=fitted.head,
        fold_heads=fitted.fold_heads,
        typical=None if vectors is None else fit_typical(vectors, material.folds, complete=complete_sessions(material)),
        facts={
            **provenance,
            "imaging": imaging_of(store),
            "store": {"uri": spec.store, "snapshot": store.snapshot, "fingerprint": store.fingerprint},
            "weights": fitted.encoder.description["weights"],
            "strength": fitted.strength,
            "tuned": spec.tune,
            "figures": results.figures,
        },
    )
    save_model(model, folder, card=card)


def _outputs(material: Material, held_out: Judged) -> Outputs:
    """What the head's numbers mean, by what the folds' heads said of sessions that they had not seen."""
    import numpy as np

    from bfp.metrics.conformal import COVERAGE, half_width
    from bfp.metrics.recalibration import recalibration_of, threshold_of
    from bfp.models.outputs import Classes, Hazards, Margin, Numbers

    targets, said = held_out.targets, held_out.said
    match material.task:
        case Classification(classes=classes):
            threshold = threshold_of(targets == 1, said[:, 1]) if len(classes) == 2 else None
            return Classes(tuple(classes), recalibration_of(targets, said), threshold)
        case Regression():
            width = half_width(np.abs(said[:, 0] - targets), subjects=material.labelled.persons)
            margin = None if width is None else Margin(COVERAGE, width)
            return Numbers(float(targets.min()), float(targets.max()), margin)
        case Survival():
            return Hazards(np.sort(said[:, 0]))
