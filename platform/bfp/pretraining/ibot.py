"""The iBOT loss: the student predicts the teacher's patch token behind each hidden patch (arXiv 2111.07832)."""

from __future__ import annotations

from torch import Tensor

from bfp.pretraining.cross_entropy import cross_entropy


def ibot_loss(*, student: Tensor, targets: Tensor, weights: Tensor, crops: int, temperature: float) -> Tensor:
    """Σ over hidden patches of weight · cross-entropy, divided by the number of global crops, masked or not; a scalar.

    student: logits (M, K); targets: the teacher's probabilities (M, K), without gradient.
    weights: (M,), one over the number of hidden patches in the patch's own crop, so that crops count alike.
    crops: 2·B, as in the released code: neither the masked crops alone nor M.
    """
    return (cross_entropy(student, targets, temperature=temperature) * weights).sum() / crops
