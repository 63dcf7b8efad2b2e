"""The DINO loss: the student's class token of one crop predicts the teacher's of another.

Caron et al. 2021, arXiv 2104.14294. With H(P, q) the cross-entropy between a target and softmax(q / temperature),
meaned over images, the loss is the mean of H over all pairs of a teacher's crop and a student's crop, except a crop
with itself. It is given in the two parts that DINOv2 reports, whose sum it is.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bfp.pretraining.cross_entropy import cross_entropy


class DinoLoss(NamedTuple):
    """The pairs with a local crop of the student, and those with a global one; scalars."""

    local_crops: Tensor
    global_crops: Tensor


def dino_loss(*, student_global: Tensor, student_local: Tensor, targets: Tensor, temperature: float) -> DinoLoss:
    """The loss of class tokens.

    student_global: logits (2, B, K) of the two global crops; student_local: logits (L, B, K), L may be 0.
    targets: probabilities (2, B, K) of the teacher's two global crops, without gradient.
    """
    B = targets.shape[1]
    pairs = 2 + 2 * len(student_local)
    # A local crop is paired with both targets, a global crop with that of the other one.
    local = cross_entropy(student_local.flatten(0, 1), targets.sum(0), temperature=temperature, mass=2.0).sum()
    other = cross_entropy(student_global.flatten(0, 1), targets.flip(0).flatten(0, 1), temperature=temperature).sum()
    return DinoLoss(local_crops=local / (B * pairs), global_crops=other / (B * pairs))
